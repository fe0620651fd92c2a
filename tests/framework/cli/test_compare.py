"""`framework compare`: names, tables, pictures, measurement, and the pages of docs that show what it prints."""

import csv
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from framework import compare
from framework.architectures import read_architectures
from framework.cli.main import main

DOCS = Path(__file__).parents[3] / "docs"
OWN = """
import torch
from framework.backbone import Backbone, Features, Level

class Mine(Backbone):
    def __init__(self, width: int = 4):
        super().__init__([Level(width, 8)], multiple=8)
        self.layer = torch.nn.Conv2d(3, width, 8, 8)

    def extract(self, images):
        return Features([self.layer(images)], [])

    def stages(self):
        return [list(self.parameters())]
"""


@pytest.fixture
def call(capsys):
    """Run `framework compare ...`; return what it printed, errors after it."""

    def run(*arguments, code=0):
        assert main(["compare", *arguments]) == code
        printed = capsys.readouterr()
        assert code == 0 or len(printed.err.splitlines()) <= 10
        return printed.out + printed.err

    return run


def table(file):
    with file.open() as stream:
        return {row["name"]: row for row in csv.DictReader(stream)}


class TestNames:
    def test_help_and_mistakes_need_no_torch(self):
        code = (
            "import sys; from framework.cli.main import main\n"
            "codes = [main(['compare', 'resnet51']), main(['compare', '--list'])]\n"
            "try: main(['compare', '--help'])\n"
            "except SystemExit: print(codes, 'torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[2, 0] False"
        assert "did you mean 'resnet50'?" in done.stderr

    def test_list_has_every_name(self, call):
        assert call("--list").split() == list(read_architectures())

    def test_patterns_plugins_and_arguments(self, call):
        Path("mine.py").write_text(OWN)
        call("lenet5", "mobilenet_v3_s*", "mine.py", "width=6", "Timm:name=test_resnet", "--out", "t.csv")
        rows = table(Path("t.csv"))
        assert list(rows) == ["lenet5", "mobilenet_v3_small", "Mine width=6", "Timm name=test_resnet"]
        mine = rows["Mine width=6"]
        assert float(mine["parameters"]) == pytest.approx((3 * 64 + 1) * 6 / 1e6)
        assert float(mine["multiply_adds"]) == pytest.approx(3 * 64 * 6 * 28 * 28 / 1e9)
        assert mine["receptive_field"] == "8"
        assert mine["top1"] == ""

    def test_yaml_lines_are_backbones(self, call):
        printed = call("alexnet_lrn", "vit_small", "LeNet", "--yaml").splitlines()
        assert printed == [
            "backbone: {class_path: AlexNet, init_args: {lrn: true}}  # alexnet_lrn",
            "backbone: {class_path: Timm, init_args: {name: vit_small_patch16_224}}  # vit_small",
            "backbone: {class_path: LeNet}  # LeNet",
        ]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["resnet5"], "no architecture or plugin resnet5; did you mean 'resnet50'?"),
            (["rsnet*"], "no architecture is named rsnet*; did you mean"),
            (["Tim", "name=resnet50"], "no architecture or plugin Tim; did you mean 'Timm'?"),
            (["UNet"], "UNet is no backbone: it is one of heads"),
            (["resnet50", "width=3"], "its plugin does: TorchVision name=resnet50 width=3"),
            (["width=3"], "of which plugin? write PLUGIN width=3"),
            (["Timm"], "Timm needs name: add name=VALUE"),
            (["Timm", "name=resnet5O"], "timm"),
            (["LeNet", "activatoin=relu"], "LeNet has no argument activatoin; did you mean 'activation'?"),
            (["lenet5", "--size", "0"], "--size: 0 is less than 1"),
            (["lenet5", "--sort", "flops"], "--sort: there is no column flops"),
            (["lenet5", "--sort", "latency"], "there is no column latency; add --measure"),
            (["lenet5", "--sort", "paramters"], "did you mean 'parameters'?"),
            (["lenet5", "--out", "t.xlsx"], "--out: t.xlsx ends neither in .md nor in .csv nor in .html"),
            (["lenet5", "--out", "no/t.md"], "--out: there is no folder no"),
            (["lenet5", "--plot", "t.svg"], "none of these networks has a published top-1 accuracy"),
            (["lenet5", "--sice", "3"], "unknown argument --sice; did you mean '--size'?"),
        ],
    )
    def test_mistakes(self, call, arguments, message):
        assert message in call(*arguments, code=2)


class TestTables:
    def test_terminal(self, call):
        printed = call("resnet18", "efficientnet_b0", "lenet5", "--sort", "multiply_adds")
        lines = [" ".join(line.split()) for line in printed.splitlines()]
        assert "efficientnet_b0 224 5.289 5.289 0.3858 0.386 84.2 all 77.69 ImageNet-1k" in lines
        assert "resnet18 224 11.69 11.69 1.814 1.814 21.2 435 69.76 ImageNet-1k" in lines
        assert printed.index("lenet5") < printed.index("efficientnet_b0") < printed.index("resnet18")
        assert "LeCun et al." in printed
        assert "Woo" not in printed

    def test_another_size(self, call):
        Path("mine.py").write_text(OWN)
        printed = call("resnet18", "lenet5", "inception_v3", "mine.py", "--size", "110", "--out", "t.csv")
        rows = table(Path("t.csv"))
        assert float(rows["resnet18"]["multiply_adds"]) == pytest.approx(1.814 / 4, rel=0.08)  # 7x7 cells become 4x4
        assert rows["lenet5"]["multiply_adds"] == ""
        assert "lenet5 does not take images of that size" in printed
        assert "inception_v3 does not take images of that size" in printed
        assert "1.814 @224" in printed
        assert rows["Mine"]["size"] == "112", "the next multiple of 8"

    def test_markdown_csv_html_and_pictures_agree(self, call):
        for name in ("t.md", "t.csv", "t.html"):
            call("alexnet", "vgg11", "--out", name, "--plot", "p.svg")
        cells = [line.split(" | ") for line in Path("t.md").read_text().splitlines() if line.startswith("| vgg")]
        assert cells[0][1:6] == ["TorchVision name=vgg11", "224", "132.9", "132.9", "7.609"]
        assert float(table(Path("t.csv"))["vgg11"]["parameters"]) == 132.863336
        page = Path("t.html").read_text()
        assert page.count("<tr>") == 3
        assert 'data-v="132.863336">132.9<' in page
        assert "<svg" in page
        assert "src=" not in page, "it needs no other file"
        picture = Path("p.svg").read_text()
        assert picture.count(">vgg11</text>") == 1
        assert ">AlexNet</text>" in picture

    def test_png(self, call):
        call("alexnet", "vgg11", "--plot", "p.png")
        with Image.open("p.png") as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 5


class TestMeasure:
    def test_throughput_and_latency(self, call, monkeypatch):
        monkeypatch.setattr(compare, "ROUNDS", 1)
        monkeypatch.setattr(compare, "TURN", 0.001)
        printed = call(
            "lenet5", "mobilenet_v3_small", "--measure", "--batch=2", "--size=32", "--sort=latency", "--out", "t.csv"
        )
        rows = table(Path("t.csv"))
        assert list(rows) == sorted(rows, key=lambda name: float(rows[name]["latency"]))
        assert all(float(row["throughput"]) > 0 and float(row["latency"]) > 0 for row in rows.values())
        assert f"threads, torch {torch.__version__}, fp32, throughput in batches of 2" in printed

    def test_networks_that_do_not_fit_into_memory(self, call, monkeypatch):
        monkeypatch.setattr(compare, "_free_memory", lambda device: 200_000)
        assert "holds all networks in memory at once: 0.0 GB of 0.0 GB free" in call("lenet5", "--measure", code=2)


def between(page, name):
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    return page[page.index(begin) + len(begin) : page.index(end)]


class TestPages:
    def test_the_printed_output_of_the_arithmetic_page(self, call):
        text = (DOCS / "arithmetic.md").read_text()
        for program in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S):
            Path(re.match(r"# (\w+\.py)\n", program)[1]).write_text(program)
        checked, printed = 0, []
        for line in "\n".join(re.findall(r"^```console\n(.*?)^```", text, re.M | re.S)).splitlines():
            if line.startswith("$ "):
                printed = [row.split() for row in call(*shlex.split(line)[3:]).splitlines()]
            elif line.strip():
                assert line.split() in printed, line
                checked += 1
        assert checked > 12

    def test_rows_of_the_architectures_page(self, call):
        call("lenet5", "alexnet*", "ladder_layer_norm", "--out", "t.md")
        rows = [line for line in Path("t.md").read_text().splitlines() if line.startswith("| ")]
        page = between((DOCS / "architectures.md").read_text(), "table").splitlines()
        assert len(rows) == 6, "heading, rule, four networks"
        assert [row for row in rows if row not in page] == []
        names = [line.split(" | ")[0].removeprefix("| ") for line in page if line.startswith("| ")]
        assert names[2:] == list(read_architectures())

    @pytest.mark.matrix
    def test_the_whole_table_of_the_architectures_page(self, call, request):
        call("--out", "t.md")
        made, file = Path("t.md").read_text(), DOCS / "architectures.md"
        text = file.read_text()
        if request.config.getoption("--write-matrix"):
            begin = text.index("begin -->\n", text.index("<!-- table:")) + len("begin -->\n")
            file.write_text(text[:begin] + made + text[text.index("<!-- table: end") :])
            call("[!l]*", "--plot", str(DOCS / "images/architectures.svg"))  # without the ladder, which crowds a corner
        assert between(file.read_text(), "table") == made
