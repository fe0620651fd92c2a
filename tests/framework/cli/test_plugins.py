"""`framework plugins`: list, show, new and check, and experiments that use local and installed plugins."""

import json
import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml

from benchmarks.resume import ended, fork
from framework.cli.main import main
from framework.conformance import backbones
from framework.conformance.training import heads_by_task
from framework.registry import advertised
from tests.folders import write_mask_folder
from tests.framework.cli.test_door import EXPERIMENT


@pytest.fixture
def call(capsys):
    """Run `framework plugins ...`; return what it printed, errors after it."""

    def run(*arguments, code=0):
        assert main(["plugins", *arguments]) == code
        printed = capsys.readouterr()
        assert len(printed.err.splitlines()) <= 10
        return printed.out + printed.err

    return run


@pytest.fixture
def experiment(tmp_path):
    """An experiment on a small folder, as plain values."""
    write_mask_folder(tmp_path / "set")
    return yaml.safe_load(EXPERIMENT)


@pytest.fixture
def _few_heads(monkeypatch):
    """Let checks train under the two linear heads alone, where the verdict on another rule is looked at."""
    few = [pair for pair in heads_by_task() if pair[1].name in ("LinearHead", "LinearClassifier")]
    monkeypatch.setattr(backbones, "heads_by_task", lambda: iter(few))


def install(folder):
    """Make a package importable and its entry points known, as pip does."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = folder / "src" / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    lines = [line for group, points in groups for line in (f"[{group}]", *(f"{k} = {v}" for k, v in points.items()))]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return folder / "src"


class TestList:
    def test_needs_no_torch_and_under_two_seconds(self):
        code = (
            "import sys; from framework.cli.main import main; main(['plugins', 'list']); print('torch' in sys.modules)"
        )
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert time.perf_counter() - began < 8  # 0.3 s here; a busy machine may take its time, importing torch takes 10
        assert done.stdout.splitlines()[-1] == "False"
        assert "Timm" in done.stdout

    def test_json_has_every_plugin(self, call):
        rows = {row["name"]: row for row in json.loads(call("list", "--json"))}
        assert set(rows) == set(advertised())
        assert rows["DINOv2"]["weights_licence"] == "Apache-2.0"
        assert rows["UNet"]["kind"] == "heads"
        assert rows["SampleCells"]["summary"].startswith("Live-cell microscopy")
        assert [row["problem"] for row in rows.values()] == [None] * len(rows)

    def test_task_and_kind_choose(self, call):
        names = [row["name"] for row in json.loads(call("list", "--json", "--task", "segmentation"))]
        assert {"Segmentation", "UNet", "Timm", "WarmupCosine"} <= set(names)
        assert "LinearClassifier" not in names
        assert "did you mean 'Segmentation'?" in call("list", "--task", "segmentatoin", code=2)
        assert {row["kind"] for row in json.loads(call("list", "--json", "--kind", "heads"))} == {"heads"}
        assert "did you mean 'heads'?" in call("list", "--kind", "head", code=2)

    def test_a_broken_package_is_listed_with_its_reason_and_stops_nobody(self, call, tmp_path, monkeypatch):
        folder = tmp_path / "broken_net-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: broken-net\nVersion: 1.0\nProvides-Extra: all\n"
            'Requires-Dist: no-such-library; extra == "all"\n'
        )
        (folder / "entry_points.txt").write_text(
            "[framework.backbones]\nNeedy = needy_net:Needy\nLate = late_net:Late\nGone = gone_net:Gone\n"
        )
        (tmp_path / "needy_net.py").write_text("import no_such_library\nclass Needy: pass\n")
        (tmp_path / "late_net.py").write_text("def f():\n    raise OSError('no camera')\nf()\nclass Late: pass\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        rows = {row["name"]: row for row in json.loads(call("list", "--json"))}
        assert rows["Needy"]["package"] == "broken-net 1.0"
        assert "it needs no_such_library, which is not installed" in rows["Needy"]["problem"]
        assert rows["Needy"]["problem"].endswith(': pip install "broken-net[all]"')
        assert rows["Gone"]["problem"] == "there is no module gone_net"
        assert rows["Timm"]["problem"] is None
        assert "BROKEN: it needs no_such_library" in call("list")
        printed = call("list", "--load", "--kind", "backbones")
        assert "importing late_net:Late raised OSError: no camera" in printed
        shown = call("show", "Needy", code=2)
        assert "plugin Needy of broken-net 1.0 is broken" in shown
        assert shown.rstrip().endswith(': pip install "broken-net[all]"')

    def test_two_of_one_name_are_both_named(self, call, tmp_path):
        (tmp_path / "other_net.py").write_text("from framework.backbone import Backbone\nclass Timm(Backbone): pass\n")
        printed = call("list", "--plugins", "other_net.py", code=2)
        assert "2 plugins are named Timm: plugins.timm:Timm of vision-plugin-framework" in printed
        assert "other_net:Timm of other_net.py" in printed


class TestShow:
    def test_arguments_levels_and_cost(self, call):
        facts = json.loads(call("show", "TorchVision", "name=resnet50", "--size", "224", "--json"))
        arguments = {argument["name"]: argument for argument in facts["arguments"]}
        assert arguments["name"]["required"]
        assert arguments["in_channels"] == {
            "name": "in_channels",
            "type": "int",
            "required": False,
            "default": "3",
            "doc": "Channels of the images; pretrained filters are repeated or summed over them.",
        }
        backbone = facts["backbone"]
        assert [level["stride"] for level in backbone["levels"]] == [2, 4, 8, 16, 32]
        assert [level["channels"] for level in backbone["levels"]] == [64, 256, 512, 1024, 2048]
        assert (
            backbone["parameters"] == sum(backbone["stages"]) == 25_557_032 - 2048 * 1000 - 1000
        )  # without its classifier
        published = 4.09e9  # multiply-adds, classifier included (torchvision's model page)
        assert backbone["flops"] / 2 == pytest.approx(published - 2048 * 1000, rel=0.01)

    def test_a_page_for_people(self, call):
        printed = call("show", "Timm", "name=test_vit", "--size", "100")
        assert "name: str, required" in printed
        assert "for an image of 112x112" in printed  # padded to the multiple of 16
        assert "for its levels and cost: framework plugins show Timm name=VALUE" in call("show", "Timm")
        head = call("show", "UNet")
        assert "norm: 'batch' | 'instance' | 'none', default batch" in head
        assert "prefix_tokens" not in head, "what the task gives is none of the user's arguments"

    def test_mistakes(self, call):
        assert "did you mean 'Timm'?" in call("show", "Tim", code=2)
        assert "Timm has no argument nam; did you mean 'name'?" in call("show", "Timm", "nam=resnet18", code=2)
        assert "did you mean 'resnet18'" in call("show", "Timm", "name=resnet_18", code=2)
        assert "int" in call("show", "Timm", "name=test_resnet", "in_channels=many", code=2)
        assert "write key=value" in call("show", "Timm", "test_resnet", code=2)
        assert "did you mean '--size'" in call("show", "Timm", "--sise", "3", code=2)
        assert "there is no plugin nowhere.Net" in call("show", "nowhere.Net", code=2)


class TestNew:
    @pytest.mark.parametrize("kind", ["backbone", "head", "detection_head", "loss", "depth_loss", "data"])
    def test_what_it_writes_conforms_as_it_stands(self, call, kind):
        printed = call("new", f"Fresh{kind}", "--kind", kind)
        assert f"framework plugins check fresh{kind}.py" in printed
        report = json.loads(call("check", f"fresh{kind}.py", "--json"))
        assert report["conforms"]
        assert len(report["checks"]) >= 8

    @pytest.mark.parametrize("kind", ["backbone", "head", "loss", "data"])
    def test_what_it_writes_trains(self, call, experiment, kind):
        call("new", f"Trained{kind}", "--kind", kind)
        name = f"Trained{kind}"
        if kind == "data":
            experiment["data"] = {"class_path": name, "init_args": {"count": 4, "batch_size": 2, "num_workers": 0}}
        else:
            experiment["model"]["init_args"][kind] = name
        experiment["plugins"] = f"trained{kind}.py"
        Path("x.yaml").write_text(yaml.safe_dump(experiment))
        assert main(["fit", "--config", "x.yaml"]) == 0

    @pytest.mark.parametrize(
        ("given", "file", "name"),
        [
            ("MyResNet", "my_res_net", "MyResNet"),
            ("my-own_net", "my_own_net", "MyOwnNet"),
            ("CNNet2d", "cn_net2d", "CNNet2d"),
        ],
    )
    def test_names(self, call, given, file, name):
        call("new", given)
        assert f"class {name}(Backbone):" in Path(f"{file}.py").read_text()

    def test_mistakes(self, call):
        assert "cannot be the name of a plugin" in call("new", "3d", code=2)
        assert "there is a module timm already" in call("new", "timm", code=2)
        assert "is a name of Python's own" in call("new", "class", code=2)
        call("new", "Twice")
        assert "twice.py is there already" in call("new", "Twice", code=2)
        assert "invalid choice: 'neck'" in call("new", "Neck", "--kind", "neck", code=2)

    @pytest.mark.usefixtures("_few_heads")  # all of them: test_what_it_writes_conforms_as_it_stands
    def test_a_package_is_a_plugin_once_it_is_installed(self, call, experiment, tmp_path, monkeypatch):
        call("new", "packednet", "--package")
        monkeypatch.syspath_prepend(str(install(tmp_path / "packednet")))
        (row,) = [row for row in json.loads(call("list", "--json")) if row["name"] == "Packednet"]
        assert (row["package"], row["problem"]) == ("packednet 0.1.0", None)
        assert json.loads(call("check", "Packednet", "width=8", "--json"))["conforms"]
        experiment["model"]["init_args"]["backbone"] = {"class_path": "Packednet", "init_args": {"width": 8}}
        Path("x.yaml").write_text(yaml.safe_dump(experiment))
        assert main(["fit", "--config", "x.yaml"]) == 0
        words = ["-q", "-p", "no:cacheprovider", "-k", "shapes or partition", "packednet"]
        process, pipe = fork(Path(), lambda pipe: pytest.main(words))  # a new process would import for ten seconds
        while (code := ended(process)) is None:
            time.sleep(0.05)
        os.close(pipe)
        assert (code, Path("log.txt").read_text().count("2 passed")) == (0, 1), Path("log.txt").read_text()


class TestCheck:
    @pytest.mark.usefixtures("_few_heads")
    def test_a_failure_says_what_was_wanted_found_and_how_to_mend_it(self, call, tmp_path):
        (tmp_path / "wrong_net.py").write_text(
            "from torch import nn\nfrom framework.backbone import Backbone, Features, Level\n\n"
            "class Wrong(Backbone):\n"
            "    def __init__(self, in_channels: int = 3):\n"
            "        super().__init__([Level(4, 2)], multiple=2, in_channels=in_channels)\n"
            "        self.first, self.second = nn.Conv2d(in_channels, 4, 1), nn.Conv2d(4, 4, 2, 2)\n"
            "    def extract(self, images): return Features([self.second(self.first(images))], [])\n"
            "    def stages(self): return [list(self.second.parameters()), list(self.first.parameters())]\n"
        )
        printed = call("check", "wrong_net.py", code=1)
        assert "FAIL stages_run_from_input_to_output" in printed
        for part in (
            "expected: stages in the order",
            "found: stage 0 is still used after stage 1",
            "to mend it: list the",
        ):
            assert part in printed
        report = json.loads(call("check", "wrong_net.py", "--json", code=1))
        (failed,) = [check for check in report["checks"] if check["outcome"] == "failed"]
        assert failed["name"] == "stages_run_from_input_to_output"
        assert not report["conforms"]
        assert "1 passed" in call("check", "wrong_net.py", "--only", "it_builds")
        assert "did you mean 'it_builds'" in call("check", "wrong_net.py", "--only", "it_build", code=2)

    def test_mistakes(self, call, tmp_path):
        assert "there is no file nowhere.py" in call("check", "nowhere.py", code=2)
        (tmp_path / "notes.py").write_text("x = 1\n")
        assert "notes.py holds no plugin" in call("check", "notes.py", code=2)
        assert "Timm needs name: add name=VALUE" in call("check", "Timm", code=2)
        assert "there is no conformance kit for schedules" in call("check", "Constant", code=2)
        two = "from framework.backbone import Backbone\nclass One(Backbone): pass\nclass Two(Backbone): pass\n"
        (tmp_path / "two_nets.py").write_text(two)
        assert "two_nets.py holds 2 plugins: name one, two_nets.One, two_nets.Two" in call(
            "check", "two_nets.py", code=2
        )
        half = "from framework.backbone import Backbone\nclass Half(Backbone):\n    def __init__(self): pass\n"
        (tmp_path / "half_net.py").write_text(half)
        assert "FAIL it_builds" in call("check", "half_net.py", code=1)


class TestExperiments:
    SOURCE = (Path(__file__).parents[2] / "tiny.py").read_text()

    def test_a_local_file_by_option_trains_and_its_checkpoint_asks_for_it(self, experiment, capsys):
        Path("option_net.py").write_text(self.SOURCE.replace("Tiny", "OptionNet"))
        experiment["model"]["init_args"]["backbone"] = {"class_path": "OptionNet", "init_args": {"width": 4}}
        Path("x.yaml").write_text(yaml.safe_dump(experiment))
        assert main(["fit", "--config", "x.yaml"]) == 2
        assert "there is no class OptionNet" in capsys.readouterr().err
        assert main(["fit", "--config", "x.yaml", "--plugins", "option_net.py"]) == 0
        (folder,) = Path("runs/x").iterdir()
        assert yaml.safe_load((folder / "config.yaml").read_text())["plugins"] == ["option_net.py"]
        checkpoint = str(folder / "checkpoints/best.ckpt")
        assert main(["test", "--ckpt_path", checkpoint]) == 2
        assert (
            "plugins in option_net.py, which a checkpoint may not run by itself: add --plugins"
            in capsys.readouterr().err
        )
        assert main(["test", "--ckpt_path", checkpoint, "--plugins", "option_net.py"]) == 0
        assert main(["fit", "--config", str(folder / "config.yaml")]) == 0

    def test_a_file_beside_the_experiment_is_found_and_one_elsewhere_is_not_run(self, experiment, tmp_path, capsys):
        (tmp_path / "project").mkdir()
        (tmp_path / "project/beside_net.py").write_text(self.SOURCE.replace("Tiny", "BesideNet"))
        experiment |= {"plugins": ["beside_net.py"]}
        experiment["model"]["init_args"]["backbone"] = "BesideNet"
        file = tmp_path / "project/x.yaml"
        file.write_text(yaml.safe_dump(experiment))
        assert main(["fit", "--config", str(file)]) == 0
        far = tmp_path.parent / f"{tmp_path.name}_far_net.py"
        far.write_text("open('ran', 'w')\n" + self.SOURCE)
        file.write_text(yaml.safe_dump(experiment | {"plugins": [f"../../{far.name}"]}))
        assert main(["fit", "--config", str(file)]) == 2
        message = capsys.readouterr().err
        assert "x.yaml:" in message
        assert "neither beside the experiment nor in the working folder" in message
        assert not Path("ran").exists()
        file.write_text(yaml.safe_dump(experiment | {"plugins": "besid_net.py"}))
        assert main(["fit", "--config", str(file)]) == 2
        assert "there is no file besid_net.py; did you mean 'beside_net.py'?" in capsys.readouterr().err

    def test_a_constructor_that_fails_is_named_with_its_line(self, experiment, capsys):
        broken = self.SOURCE.replace("Tiny", "BrokenNet").replace("super().__init__([Level", "print([Level", 1)
        Path("broken_net.py").write_text(broken.replace(", multiple=8, in_channels=in_channels)", ")"))
        experiment["model"]["init_args"]["backbone"] = "BrokenNet"
        Path("x.yaml").write_text(yaml.safe_dump(experiment))
        assert main(["fit", "--config", "x.yaml", "--plugins", "broken_net.py"]) == 2
        message = capsys.readouterr().err
        assert "broken_net.py:13: BrokenNet.__init__ raised AttributeError: cannot assign module before" in message
        assert len(message.splitlines()) <= 10
