"""`framework data check` counts what is in a data set and lists what is wrong; `framework data show` draws it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from framework.cli.build_data import build_data
from framework.cli.main import main
from framework.cli.show_data import augmented_samples, draw_sheet
from framework.data.choice import balanced, choose_samples
from framework.data.counts import object_table
from framework.heads.yolo import YOLO
from framework.tracking.drawing import MARGIN, palette
from tests.folders import (
    box_scenes,
    write_coco,
    write_depth_folder,
    write_image_folder,
    write_mask_folder,
    write_voc,
    write_yolo,
)
from tests.tiny import Tiny

CLASSES = ("blue", "green", "red")
WRITERS = {"VOCDetection": write_voc, "COCODetection": write_coco, "YOLODetection": write_yolo}
EXPERIMENT = """
model: {class_path: Detection, init_args: {backbone: {class_path: Timm, init_args: {name: no_such_network}}}}
data: {class_path: VOCDetection, init_args: {root: set, batch_size: 4}}
trainer: {max_epochs: 1}
"""


@pytest.fixture
def call(capsys):
    """Call `framework data`; return what is printed, errors where it fails."""

    def run(*arguments, code=0):
        assert main(["data", *arguments]) == code
        assert not list(Path("runs").glob("[!.]*"))  # what is known of the files is hidden, and serves fit
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    return run


def facts_of(call, *arguments):
    return json.loads(call("check", "--json", *arguments))


# Counting.


@pytest.mark.parametrize("name", WRITERS)
def test_counts_and_sizes_are_those_of_the_files(call, name):
    WRITERS[name](Path("set"))
    facts = facts_of(call, "--data", name, "--data.root", "set")
    assert (facts["data"], facts["task"], facts["classes"]) == (name, "Detection", list(CLASSES))
    for split, scenes in box_scenes().items():
        found = facts["splits"][split]
        boxes = [box for scene in scenes for box in scene.boxes]
        widths, heights = [x2 - x1 for x1, _, x2, _ in boxes], [y2 - y1 for _, y1, _, y2 in boxes]
        assert (found["images"], found["objects"], found["ignored"]) == (len(scenes), len(boxes), 0)
        assert found["without_objects"] == sum(not scene.boxes for scene in scenes) == 1
        for index, label in enumerate(CLASSES):
            images = sum(index in scene.labels for scene in scenes)
            objects = sum(scene.labels.count(index) for scene in scenes)
            assert found["classes"][label] == {"images": images, "objects": objects}
        for side, values in (("width", widths), ("height", heights)):
            spread = {"least": min(values), "median": np.median(values), "most": max(values)}
            assert found["sizes"][side] == pytest.approx(spread, abs=1e-3)
        aspects = [width / height for width, height in zip(widths, heights, strict=True)]
        assert found["sizes"]["aspect"]["median"] == pytest.approx(np.median(aspects), abs=1e-3)
        assert found["sizes"]["small"] == 1.0
    assert facts["warnings"][0].startswith("train: 1 of 6 images have no object")


@pytest.mark.parametrize("name", WRITERS)
def test_objects_counted_from_annotations_are_those_of_the_samples(name):
    WRITERS[name](Path("set"))
    data = build_data([], ["--data", name, "--data.root", "set"], [], [])
    samples = data.splits()["train"]
    table = object_table(samples)
    read = [samples.read(index) for index in range(len(samples))]
    assert table.sizes.tolist() == [list(sample["original_size"]) for sample in read]
    assert table.images.tolist() == [index for index, sample in enumerate(read) for _ in sample["boxes"]]
    assert table.labels.tolist() == [label for sample in read for label in sample["labels"].tolist()]
    sides = torch.cat([sample["boxes"][:, 2:] - sample["boxes"][:, :2] for sample in read])
    np.testing.assert_allclose(table.sides, sides, rtol=1e-6)
    np.testing.assert_allclose(table.areas, torch.cat([sample["area"] for sample in read]), rtol=1e-6)


def test_areas_decide_what_is_small_and_ignored_objects_do_not_count(call):
    write_coco(Path("set"))
    file = Path("set/annotations/instances_train2017.json")
    content = json.loads(file.read_text())
    content["annotations"][0] |= {"area": 100**2}
    content["annotations"][1] |= {"area": 50**2}
    content["annotations"][2] |= {"iscrowd": 1}
    file.write_text(json.dumps(content))
    found = facts_of(call, "--data", "COCODetection", "--data.root", "set")["splits"]["train"]
    count = len(content["annotations"])
    assert (found["objects"], found["ignored"]) == (count - 1, 1)
    shares = [found["sizes"][name] for name in ("small", "medium", "large")]
    assert shares == pytest.approx([(count - 3) / (count - 1), 1 / (count - 1), 1 / (count - 1)])


def test_sizes_are_given_as_the_network_sees_them_and_small_ones_have_a_hint(call):
    write_voc(Path("set"))
    source = ("--data", "VOCDetection", "--data.root", "set")
    facts = facts_of(call, *source, "--data.resize", "128", "--data.longest", "150")  # 64x80 becomes 120x150
    stored, shown = (facts["splits"]["train"][key] for key in ("sizes", "sizes_shown"))
    assert shown["width"]["most"] == pytest.approx(stored["width"]["most"] * 150 / 80)
    assert shown["height"]["least"] == pytest.approx(stored["height"]["least"] * 120 / 64)
    assert facts["hints"] == []
    assert "sizes_shown" not in facts_of(call, *source)["splits"]["train"]
    printed = call("check", *source, "--data.resize", "16")
    assert re.search(r"hint: half of the training objects are smaller than 8 px .* \(median 4\.\d px\)", printed)
    assert "train by data.resize 16" in printed


def test_other_tasks_are_counted_too(call):
    write_image_folder(Path("pics"), counts=(5, 2, 0))
    facts = facts_of(call, "--data", "ImageFolder", "--data.root", "pics")
    assert facts["splits"]["train"] == {"images": 15, "classes": {name: {"images": 5} for name in CLASSES}}
    write_mask_folder(Path("masks"))
    facts = facts_of(call, "--data", "MaskFolder", "--data.root", "masks")
    masks = [np.asarray(Image.open(path)) for path in sorted(Path("masks/masks/train").iterdir())]
    for index in range(3):
        found = facts["splits"]["train"]["classes"][f"class {index}"]
        assert found["images"] == sum((mask == index).any() for mask in masks)
        assert found["pixel_share"] == pytest.approx(np.mean([mask == index for mask in masks]))
    assert "class 0" in call("check", "--data", "MaskFolder", "--data.root", "masks")


def test_depth_is_counted_in_metres(call, capsys):
    write_depth_folder(Path("set"), counts=(3, 2, 0))
    arguments = ["--data", "DepthFolder", "--data.root", "set", "--data.depth_range", "[2, 6]"]
    facts = facts_of(call, *arguments)
    assert (facts["task"], facts["classes"], facts["depth_range"]) == ("Depth", [], [2, 6])
    for split, found in facts["splits"].items():
        stored = [np.asarray(Image.open(path)) for path in sorted(Path(f"set/{split}/depth").iterdir())]
        metres = np.stack(stored).astype(float) / 1000
        known = metres[metres > 0]
        assert found["images"] == len(stored)
        assert found["pixels_with_depth"] == pytest.approx(known.size / metres.size)
        assert found["depths_in_range"] == pytest.approx((known >= 2).mean())
        for percent, depth in found["depth"].items():
            assert depth == pytest.approx(np.percentile(known, float(percent[:-2])), rel=0.005)
        assert found["height"] == {"least": 48, "median": 48, "most": 48}
    printed = call("check", *arguments)
    assert re.search(r"split +images +height, px +width, px +pixels with depth +of these in 2 to 6 m", printed)
    assert re.search(r"train +3 +48 +64 +98\.4 % ", printed)
    wrong = call("check", "--data", "DepthFolder", "--data.root", "set", "--data.depth_scale", "1", code=2)
    assert "these look like millimetres: data.depth_scale: 1000 (now 1)" in wrong
    assert main(["data", "check", *arguments[:4], "--data.depth_scale", "1", "--data.depth_range", "[1, 9999]"]) == 0
    assert "warning: val: half of the readings are above" in capsys.readouterr().err


def test_a_picture_of_depth_has_the_image_the_depth_and_what_lacks_it():
    write_depth_folder(Path("set"), counts=(3, 2, 0), size=(90, 159))
    data = build_data([], ["--data", "DepthFolder", "--data.root", "set"], [], [])
    sample = data.splits()["train"].read(0)
    side = 318
    sheet = draw_sheet(data, [sample], "")
    lines = np.flatnonzero((sheet != 255).any((1, 2)))
    shown = sheet[lines[0] :]
    pictures = next(shown[top : top + 180] for top in range(80) if (shown[top, MARGIN + 10 : MARGIN + 300] < 250).all())
    image, depth = pictures[:, MARGIN : MARGIN + side], pictures[:, MARGIN + side + 4 : MARGIN + 2 * side + 4]
    grey = np.asarray(sample["image"][0].float())
    assert np.corrcoef(image[::2, ::2, 0].ravel(), grey.ravel())[0, 1] > 0.9
    blank = depth[1:20, 1:36].astype(int)
    assert np.ptp(blank) > 50  # hatched
    assert np.ptp(blank, axis=-1).max() < 10  # in grey
    near = sample["depth"] > 0
    light = depth[::2, ::2].mean(-1)[near]
    assert np.corrcoef(light, np.asarray(sample["depth"])[near])[0, 1] < -0.8  # what is far is dark


def test_of_many_classes_the_commonest_and_the_rarest_are_printed(call):
    names = [f"kind{index:02d}" for index in range(45)]
    write_image_folder(Path("pics"), counts=(1, 1, 0), classes=names, size=(8, 8))
    for number in range(3):
        Image.new("RGB", (8, 8)).save(f"pics/train/kind44/more{number}.png")
    printed = call("check", "--data", "ImageFolder", "--data.root", "pics").splitlines()
    rows = [line.split() for line in printed if line.startswith("  kind")]
    assert len(rows) == 40
    assert rows[0] == ["kind44", "4", "1"]


# What is wrong.


def test_everything_wrong_is_listed_with_its_file_and_object(call):
    write_voc(Path("set"), counts=(11, 3, 3))
    broken = sorted(Path("set/Annotations").glob("train*.xml"))[:9]
    for path in broken:
        path.write_text(re.sub(r"<xmax>\d+", "<xmax>1", path.read_text(), count=1))
    Path("set/JPEGImages/val000.jpg").write_bytes(b"no image")
    error = call("check", "--data", "VOCDetection", "--data.root", "set", code=2)
    assert error.startswith("error: 10 bad samples in the data:")
    for path in broken:
        assert re.search(rf"train: {path} .*object 1 .* is reversed", error)
    assert "val: set/JPEGImages/val000.jpg is no image" in error
    assert {path.name for path in Path().iterdir()} == {"set"}, "nothing is written"


def test_only_the_data_of_an_experiment_are_built(call):
    write_voc(Path("set"))
    Path("x.yaml").write_text(EXPERIMENT)
    assert "VOCDetection: 3 classes" in call("check", "--config", "x.yaml")
    assert "VOCDetection: 3 classes" in call("check", "x.yaml", "--model.freeze", "all", "--data.batch_size", "6")
    assert main(["data", "check", "--config", "x.yaml", "--data.batch_size=7"]) == 2


def test_a_batch_too_large_for_the_data_stops_only_an_experiment(call, capsys):
    write_voc(Path("set"))
    Path("x.yaml").write_text(EXPERIMENT.replace("batch_size: 4", "batch_size: 8"))
    assert main(["data", "check", "--config", "x.yaml"]) == 2
    printed = capsys.readouterr()
    assert "box sizes" in printed.out
    assert "fewer than one batch of 8" in printed.err
    call("check", "--data", "VOCDetection", "--data.root", "set")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chekc"], "did you mean 'check'?"),
        (["check"], "framework data check needs data: --config EXPERIMENT.yaml, or --data CLASS"),
        (["check", "--data", "VOCDetektion"], "did you mean 'VOCDetection'?"),
        (["check", "--data", "VOCDetection", "--data.rot", "set"], "unknown key data.rot"),
        (["check", "--data", "VOCDetection", "--data.root", "nowhere"], "nowhere"),
        (["check", "--data", "VOCDetection"], "data: missing: root"),
        (
            ["check", "--data", "VOCDetection", "--split", "val"],
            "has no option --split: it is one of framework data show",
        ),
        (["check", "--data", "VOCDetection", "--jsn"], "there is no option --jsn; did you mean '--json'?"),
        (["check", "missing.yaml"], "missing.yaml does not exist"),
        (["check", "empty.yaml"], "empty.yaml: the experiment has no data"),
        (["show", "--data", "VOCDetection", "--split", "vall"], "did you mean 'val'?"),
        (["show", "--data", "VOCDetection", "--count", "-1"], "--count: how many samples"),
        (["show", "--data", "VOCDetection", "--split", "val", "--augmented"], "only training samples are augmented"),
        (["show", "--data", "VOCDetection", "--out", "x.pgn"], "did you mean '.png'?"),
        (["show", "--data", "VOCDetection", "--out", "no/x.png"], "there is no folder no"),
    ],
)
def test_mistakes_are_a_line(call, arguments, message):
    Path("empty.yaml").write_text("trainer: {max_epochs: 1}\n")
    error = call(*arguments, code=2)
    assert message in error
    assert error.count("\n") == 1


def test_help_and_mistakes_need_no_torch():
    code = (
        "import sys; from framework.cli.main import main\n"
        "for line in ('data', 'data check --help', 'data show -h', 'data show --data VOCDetection --count x'):\n"
        "    main(line.split())\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    for option in ("--split", "--augmented", "--json", "--data.KEY"):
        assert option in done.stdout


# Choosing and drawing.


def test_rare_classes_are_among_the_chosen():
    classes = {index: [0] for index in range(100)} | {60: [0, 2], 61: [1], 62: [1], 63: [], 64: []}
    chosen = balanced(classes, 6)
    assert len(set(chosen)) == 6
    assert 60 in chosen
    assert {61, 62} <= set(chosen)
    assert sum(not classes[index] for index in chosen) == 1
    assert balanced(classes, 2) == [60, 61]
    assert sorted(balanced(classes, 1000)) == sorted(classes)


def test_the_choice_is_the_same_every_time_and_needs_no_more_than_there_is():
    write_voc(Path("set"), counts=(12, 3, 3))
    data = build_data([], ["--data", "VOCDetection", "--data.root", "set"], [], [])
    samples = data.splits()["train"]
    chosen = choose_samples(data, samples, 5)
    assert chosen == choose_samples(data, samples, 5) == sorted(set(chosen))
    assert {label for index in chosen for label in samples.read(index)["labels"].tolist()} == {0, 1, 2}
    assert choose_samples(data, samples, 99) == list(range(12))


@pytest.mark.parametrize("name", ["VOCDetection", "COCODetection"])
def test_boxes_are_drawn_where_the_objects_are(name):
    WRITERS[name](Path("set"), counts=(1, 1, 1))
    data = build_data([], ["--data", name, "--data.root", "set"], [], [])
    sample = data.splits()["train"].read(0)
    (box,), (label,) = sample["boxes"].tolist(), sample["labels"].tolist()
    sheet = draw_sheet(data, [sample], "x")[:-50]  # without the legend
    columns = np.flatnonzero((sheet == palette(1 + 3)[1 + label]).all(2).any(0))
    assert (columns.min(), columns.max() + 1) == pytest.approx((MARGIN + 8 * box[0], MARGIN + 8 * box[2]), abs=1)


def test_augmented_boxes_lie_on_the_objects_that_training_sees():
    write_voc(Path("set"), counts=(8, 1, 1))
    options = ["--data", "VOCDetection", "--data.root", "set", "--data.crop_size", "64", "--data.hflip", "1"]
    data = build_data([], [*options, "--data.photometric", "null"], [], [])
    found = 0
    for sample in augmented_samples(data, range(8)):
        for (x1, y1, x2, y2), label in zip(sample["boxes"].tolist(), sample["labels"].tolist(), strict=True):
            inside = (
                sample["image"][:, round(y1) + 2 : round(y2) - 2, round(x1) + 2 : round(x2) - 2].float().mean((1, 2))
            )
            assert int(inside.argmax()) == 2 - label  # blue, green, red
            found += 1
    assert found > 5


@pytest.mark.parametrize(
    ("writer", "arguments"),
    [
        (write_voc, ["--data", "VOCDetection", "--augmented", "--data.mosaic", "0.5", "--data.letterbox", "64"]),
        (write_mask_folder, ["--data", "MaskFolder", "--augmented", "--data.crop_size", "32"]),
        (write_image_folder, ["--data", "ImageFolder", "--augmented", "--data.image_size", "32"]),
        (write_depth_folder, ["--data", "DepthFolder", "--augmented", "--data.crop_size", "32"]),
        (write_coco, ["--data", "COCODetection", "--split", "val", "--count", "2"]),
        (write_mask_folder, ["--data", "MaskFolder", "--split", "test"]),
    ],
)
def test_a_sheet_is_drawn_of_every_kind_of_data(call, writer, arguments):
    writer(Path("set"))
    printed = call("show", *arguments, "--data.root", "set")
    split = arguments[arguments.index("--split") + 1] if "--split" in arguments else "train"
    count, total = re.match(rf"(\d+) of (\d+) {split} samples: data_{split}\.png\n", printed).groups()
    assert int(count) == min(int(total), 2 if "--count" in arguments else 12)
    sheet = np.asarray(Image.open(f"data_{split}.png"))
    assert sheet.std() > 20
    assert sheet.shape[1] > 500


def test_anchors_that_suit_the_boxes_are_suggested_for_yolo(call):
    write_voc(Path("set"), counts=(40, 1, 1))
    printed = call("show", "--data", "VOCDetection", "--data.root", "set", "--data.resize", "128", "--out", "x.jpg")
    anchors = yaml.safe_load(next(line for line in printed.splitlines() if line.startswith("  [[")))
    YOLO(Tiny().levels, 0, 3, anchors=anchors)  # what it takes
    sizes = [
        (2 * (x2 - x1), 2 * (y2 - y1)) for s in box_scenes(counts=(40, 1, 1))["train"] for x1, y1, x2, y2 in s.boxes
    ]
    best = []
    for width, height in sizes:
        overlaps = [min(width, w) * min(height, h) for part in anchors for w, h in part]
        areas = [w * h for part in anchors for w, h in part]
        best.append(max(o / (width * height + a - o) for o, a in zip(overlaps, areas, strict=True)))
    ours, usual = map(float, re.search(r"best of them (\S+), of YOLOv3's own (\S+)", printed).groups())
    assert ours == pytest.approx(np.mean(best), abs=0.006)
    assert ours > usual
