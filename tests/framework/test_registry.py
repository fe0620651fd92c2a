from importlib.metadata import EntryPoint

import pytest

from framework import registry
from framework.errors import ConfigError
from framework.registry import advertised, is_trusted, trusted_modules


@pytest.fixture
def points(monkeypatch):
    """Advertise more plugins: `points(kind, name, target)`."""
    more = []
    real = registry.entry_points
    monkeypatch.setattr(
        registry,
        "entry_points",
        lambda group: [*real(group=group), *(point for point in more if point.group == group)],
    )
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


def test_two_plugins_of_one_name_are_refused_with_both_packages(points):
    points("backbones", "Timm", "elsewhere:Timm")
    with pytest.raises(ConfigError, match=r"two plugins are named Timm: plugins\.timm:Timm of vision-plugin-framework"):
        advertised()


def test_only_trusted_modules_may_be_imported():
    trusted = trusted_modules(advertised(), ["mine"])
    assert is_trusted("framework.tasks.segmentation.Segmentation", trusted)
    assert is_trusted("mine.Net", trusted)
    assert not is_trusted("mineral.Net", trusted)
    assert not is_trusted("os.system", trusted)
