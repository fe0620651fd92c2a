import sys
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from framework import registry
from framework.errors import ConfigError
from framework.registry import advertised, is_trusted, trusted_modules


@pytest.fixture
def points(monkeypatch):
    """Advertise more plugins: `points(kind, name, target)`."""
    more = []
    real = registry.entry_points
    ours = [point for kind in registry.KINDS for point in real().select(group=f"framework.{kind}")]
    monkeypatch.setattr(registry, "entry_points", lambda: EntryPoints((*ours, *more)))
    return lambda kind, name, target: more.append(EntryPoint(name, target, f"framework.{kind}"))


def test_our_own_plugins_are_advertised_and_load():
    adverts = advertised()
    assert {"Timm", "TorchVision", "UNet", "CrossEntropy", "SampleCells", "Segmentation"} <= set(adverts)
    for advert in adverts.values():
        assert advert.load().__name__ == advert.name


def test_nothing_is_imported_before_it_is_asked_for(points):
    points("backbones", "Broken", "no_such_module:Broken")
    advert = advertised()["Broken"]
    with pytest.raises(ConfigError, match=r"plugin Broken of .* is broken: importing no_such_module:Broken raised Mod"):
        advert.load()


def test_two_plugins_of_one_name_are_refused_with_both_packages_once_one_is_used(points):
    points("backbones", "Timm", "elsewhere:Timm")
    adverts = advertised()
    assert adverts["UNet"].load().__name__ == "UNet", "nobody else is in the way"
    with pytest.raises(
        ConfigError, match=r"2 plugins are named Timm: elsewhere:Timm of .* and plugins\.timm:Timm of vis"
    ):
        adverts["Timm"].load()


def test_a_plugin_that_is_no_class_is_broken(points):
    points("losses", "Function", "framework.losses.segmentation:cross_entropy")
    with pytest.raises(ConfigError, match=r"broken: framework\.losses\.segmentation:cross_entropy is no class"):
        advertised()["Function"].load()


NET = """
from tests.tiny import Tiny
import torch.nn as nn
class {name}(Tiny):
    "A tiny net."
    weights_licence = "MIT"
class _Hidden(Tiny): pass
class Layer(nn.Module): pass
"""


def test_local_files_and_folders_are_plugins_by_their_bases_alone(tmp_path):
    (tmp_path / "local_net.py").write_text(
        NET.format(name="LocalNet").replace("tests.tiny", "framework.backbone").replace("Tiny", "Backbone")
    )
    (tmp_path / "notes.py").write_text("x = 1\n")
    for given in (tmp_path, tmp_path / "local_net.py"):
        adverts = advertised([given])
        mine = [advert for advert in adverts.values() if "local_net" in advert.target]
        assert [(advert.name, advert.kind, advert.class_path) for advert in mine] == [
            ("LocalNet", "backbones", "local_net.LocalNet")
        ]
        assert mine[0].constant("weights_licence") == "MIT"
        assert "local_net" not in sys.modules
    assert is_trusted("local_net.LocalNet", trusted_modules(adverts))


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("notes.py", "x = 1\n", "notes.py holds no plugin: a class whose base is Backbone, "),
        ("notes.txt", "x = 1\n", "notes.txt holds no plugin"),
        ("torn.py", "class Net(:\n", "torn.py:1: "),
        ("timm.py", "from framework.backbone import Backbone\nclass Net(Backbone): pass\n", "timm already: rename"),
    ],
)
def test_a_file_that_is_no_plugin_is_refused(tmp_path, file, text, message):
    (tmp_path / file).write_text(text)
    with pytest.raises(ConfigError, match=message):
        advertised([tmp_path / file])


def test_a_local_file_that_is_missing_names_the_nearest(tmp_path):
    (tmp_path / "my_net.py").write_text("")
    with pytest.raises(ConfigError, match=r"there is no file .*my_nett\.py; did you mean 'my_net\.py'\?"):
        advertised([tmp_path / "my_nett.py"])


def test_a_plugin_says_which_tasks_it_serves():
    adverts = advertised()
    assert adverts["Timm"].tasks is None
    assert "Segmentation" in adverts["UNet"].tasks
    assert adverts["SampleCells"].tasks == ("Segmentation",)
    assert adverts["Segmentation"].tasks == ("Segmentation",)


def test_only_trusted_modules_may_be_imported():
    trusted = trusted_modules(advertised(), ["mine"])
    assert is_trusted("framework.tasks.segmentation.Segmentation", trusted)
    assert is_trusted("mine.Net", trusted)
    assert not is_trusted("mineral.Net", trusted)
    assert not is_trusted("os.system", trusted)
