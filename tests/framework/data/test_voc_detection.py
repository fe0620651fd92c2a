"""Pascal VOC's XML: its layouts, and what is said of files that are wrong or harmful."""

import shutil
import time
from pathlib import Path

import pytest
from PIL import Image

from framework.cli.main import main
from framework.conformance import check_plugin
from framework.data.voc_detection import VOCDetection
from framework.data.voc_xml import read_voc
from framework.errors import ConfigError, DataError
from tests.folders import box_scenes, write_voc

CLASSES = ("blue", "green", "red")


@pytest.fixture
def root(tmp_path):
    return write_voc(tmp_path / "set")


def data(root="set", **options):
    return VOCDetection(str(root), **{"batch_size": 2, "num_workers": 0, "photometric": None, **options})


def edit(name, old, new, count=1):
    path = Path(f"set/Annotations/{name}.xml")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def truth(module, split):
    """Return the boxes and class names of each image by its id."""
    samples = module.splits()[split]
    found = {}
    for index in range(len(samples)):
        sample = samples.read(index)
        found[sample["id"]] = (sample["boxes"].tolist(), [module.classes[label] for label in sample["labels"].tolist()])
    return found


def expected(split):
    return {
        scene.name: ([list(map(float, box)) for box in scene.boxes], [CLASSES[label] for label in scene.labels])
        for scene in box_scenes()[split]
    }


def test_boxes_and_classes_are_those_of_the_files(root):
    module = data()
    assert module.classes == CLASSES
    for split in ("train", "val", "test"):
        assert truth(module, split) == expected(split)
    negatives = "images have no object: they are kept as negatives"
    assert module.check_files() == [
        f"train: 1 of 6 {negatives}",
        f"val: 1 of 3 {negatives}",
        f"test: 1 of 3 {negatives}",
    ]


@pytest.mark.parametrize("how", ["stated", "found"])
def test_boxes_may_count_from_0(root, how):
    one_based = data().splits()["train"].read(1)["boxes"]
    if how == "found":
        edit("val000", "<xmin>8<", "<xmin>0.5<")
    module = data(one_based=False if how == "stated" else None)
    boxes = module.splits()["train"].read(1)["boxes"]
    assert (boxes - one_based).tolist() == [[1, 1, 0, 0]] * 2
    noted = [line for line in module.check_files() if "data.one_based" in line]
    assert bool(noted) == (how == "found")
    if noted:
        assert "as set/Annotations/val000.xml object 1 begins at 0.5" in noted[0]
        assert data(one_based=True).splits()["train"].read(1)["boxes"].tolist() == one_based.tolist()


def test_difficult_objects_are_neither_trained_on_nor_counted_unless_asked_for(root):
    edit("train001", "<difficult>0", "<difficult>1")
    assert data().splits()["train"].read(1)["ignored"].tolist() == [True, False]
    assert data().splits()["train"].class_indices[1] == [2]
    assert data(difficult=True).splits()["train"].read(1)["ignored"].tolist() == [False, False]


# Layouts.


def beside(split, name):
    """Move a split into a folder with images and XML files beside each other."""
    folder = Path("set") / name
    folder.mkdir(exist_ok=True)
    for scene in box_scenes()[split]:
        shutil.move(f"set/JPEGImages/{scene.name}.jpg", folder / f"{scene.name}.JPG")
        shutil.move(f"set/Annotations/{scene.name}.xml", folder / f"{scene.name}.xml")


def test_xml_files_beside_their_images_in_a_folder_for_each_split(root):
    for split, name in (("train", "train"), ("val", "valid"), ("test", "test")):
        beside(split, name)
    for folder in ("JPEGImages", "Annotations", "ImageSets"):
        shutil.rmtree(root / folder)
    for split in ("train", "val", "test"):
        assert truth(data(), split) == expected(split)


@pytest.mark.parametrize("layout", ["VOC", "small letters", "beside"])
def test_without_lists_a_share_is_held_out(root, layout):
    shutil.rmtree(root / "ImageSets")
    if layout == "small letters":
        (root / "Annotations").rename(root / "annotations")
        (root / "JPEGImages").rename(root / "images")
    elif layout == "beside":
        for split in ("train", "val", "test"):
            beside(split, ".")
        for folder in ("JPEGImages", "Annotations"):
            shutil.rmtree(root / folder)
    first, again = data(), data(seed=3)
    assert first.counts == {"train": 10, "val": 2}
    assert truth(first, "val") == truth(again, "val")
    everything = {**expected("train"), **expected("val"), **expected("test")}
    assert {**truth(first, "train"), **truth(first, "val")} == everything


def test_an_image_without_an_xml_file_is_left_out_and_counted(root):
    shutil.rmtree(root / "ImageSets")
    Path("set/Annotations/train001.xml").unlink()
    module = data()
    assert sum(module.counts.values()) == 11
    assert any("left out: 1, such as set/JPEGImages/train001.jpg" in line for line in module.check_files())


def test_a_list_trainval_alone_is_divided(root):
    lists = root / "ImageSets/Main"
    (lists / "trainval.txt").write_text((lists / "train.txt").read_text() + (lists / "val.txt").read_text())
    assert data(train="trainval", val="test").counts == {"train": 9, "val": 3, "test": 3}
    (lists / "train.txt").unlink()
    (lists / "val.txt").unlink()
    module = data()
    assert module.counts == {"train": 7, "val": 2, "test": 3}
    assert {**truth(module, "train"), **truth(module, "val")} == {**expected("train"), **expected("val")}


def test_lists_of_one_class_have_a_mark_behind_each_name(root):
    names = [scene.name for scene in box_scenes()["train"]]
    marks = ("1", "-1", " 0")
    lines = [f"{name}  {marks[number % 3]}\n" for number, name in enumerate(names)]
    Path("set/ImageSets/Main/blue_train.txt").write_text("".join(lines) + "\n")
    assert truth(data(train="blue_train"), "train") == expected("train")


def rename(old, new):
    """Rename an image and its annotation."""
    for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "xml")):
        target = Path(f"set/{folder}/{new}.{suffix}")
        target.parent.mkdir(exist_ok=True)
        Path(f"set/{folder}/{old}.{suffix}").rename(target)


def test_names_that_end_like_a_mark(root):
    for number, name in enumerate(("img", "img 1", "img -1", "other 0")):
        rename(f"train00{number}", name)
    names = ["img", "img 1", "img -1", "other 0", "train004", "train005"]
    Path("set/ImageSets/Main/train.txt").write_text("\n".join(names))
    boxes = [value for value, _ in truth(data(), "train").values()]
    assert list(truth(data(), "train")) == names
    assert boxes == [value for value, _ in expected("train").values()]


def test_names_with_folders_suffixes_or_backslashes(root):
    rename("train000", "deep/train000")
    Image.open("set/JPEGImages/deep/train000.jpg").save("set/JPEGImages/deep/train000.png")
    Path("set/JPEGImages/deep/train000.jpg").unlink()
    rename("train001", "deep/train001")
    names = ["deep/train000", "deep\\train001", "train002.jpg", "./train003", "train004 -1", "train005.jpg 1"]
    Path("set/ImageSets/Main/train.txt").write_text("\n".join(names))
    module = data()
    assert list(truth(module, "train")) == ["deep/train000", "deep/train001", *(f"train00{n}" for n in range(2, 6))]
    assert [value for value, _ in truth(module, "train").values()] == [v for v, _ in expected("train").values()]
    assert not [line for line in module.check_files() if "no object:" not in line]


def test_an_image_twice_in_a_list(root):
    Path("set/ImageSets/Main/val.txt").write_text("val000\nval001\n./val000\nval002\nval001.jpg\n")
    with pytest.raises(DataError) as error:
        data()
    assert "set/ImageSets/Main/val.txt:3: val000 is in line 1 already" in str(error.value)
    assert "set/ImageSets/Main/val.txt:5: val001 is in line 2 already" in str(error.value)


def test_annotations_that_no_list_names_are_counted(root):
    for name in ("more", "most"):
        shutil.copy("set/Annotations/train000.xml", f"set/Annotations/{name}.xml")
    said = "train: 2 annotations are in none of the lists that are used, such as set/Annotations/more.xml"
    assert said in data().check_files()


def test_annotations_in_folders_of_their_own_need_lists(root):
    shutil.rmtree(root / "ImageSets")
    for path in Path("set/Annotations").iterdir():
        rename(path.stem, f"deep/{path.stem}")
    with pytest.raises(ConfigError, match=r"set/Annotations has no XML file of its own; .* deep/\w+ for this one"):
        data()
    shutil.rmtree(root / "Annotations/deep")
    with pytest.raises(ConfigError, match=r"set/Annotations has no XML file of its own$"):
        data()


@pytest.mark.parametrize("missing", ["train", "val"])
def test_a_list_that_is_missing(root, missing):
    Path(f"set/ImageSets/Main/{missing}.txt").unlink()
    with pytest.raises(ConfigError, match=rf"Main/{missing}.txt is missing.*there is .*test.txt.* trainval.txt alone"):
        data()
    with pytest.raises(ConfigError, match=r"data.val: set/ImageSets/Main/v.txt is missing, which lists the val split"):
        data(train="test", val="v")


def test_a_folder_to_predict_that_has_no_image_of_its_own(root):
    with pytest.raises(DataError, match=r"data.predict_dir: set has no image .*; folders inside it are not searched"):
        data(predict_dir="set").predict_dataloader()


def test_a_test_list_without_annotations_is_no_test_split(root):
    for scene in box_scenes()["test"]:
        Path(f"set/Annotations/{scene.name}.xml").unlink()
    assert data().counts == {"train": 6, "val": 3}


@pytest.mark.parametrize(
    ("folder", "said"),
    [("nowhere", "is no folder"), (".", "did you mean set\\?"), ("set/JPEGImages", "has no folder Annotations")],
)
def test_another_folder(root, folder, said):
    with pytest.raises(ConfigError, match=f"data.root: .*{said}"):
        data(folder)


# Classes.


@pytest.mark.parametrize("how", ["argument", "file"])
def test_classes_may_be_listed(root, how):
    listed = ["red", "pink", "green", "blue"]
    if how == "file":
        (root / "classes.txt").write_text("\n".join(listed) + "\n")
    module = data(classes=listed if how == "argument" else None)
    assert module.classes == tuple(listed)
    assert truth(module, "val") == expected("val")
    assert "train: no object of class pink" in module.check_files()


def test_a_class_that_is_not_in_the_list(root):
    edit("train001", "<name>green", "<name>gren")
    edit("train002", "<name>green", "<name>gren")
    edit("val001", "<name>red", "<name>zebra")
    with pytest.raises(DataError) as error:
        data(classes=["red", "green", "blue"])
    assert "2 unknown class names in the data" in str(error.value)
    assert "train001.xml object 1 (and 1 more): 'gren' is no class; did you mean 'green'?" in str(error.value)
    assert "val001.xml object 2: 'zebra' is no class; valid: blue, green, red" in str(error.value)


def test_classes_that_differ_in_capital_letters_are_remarked_upon(root):
    edit("train001", "<name>green", "<name>Green")
    said = "train: the classes 'Green' and 'green' differ in capital letters alone: if they are one, write both alike"
    assert said in data().check_files()
    assert said not in data(classes=["Green", "green", "red", "blue"]).check_files()


def test_a_class_that_training_lacks(root):
    edit("val000", "<name>blue", "<name>bleu")
    with pytest.raises(DataError, match=r"val000.xml object 1: 'bleu' is no class; did you mean 'blue'\?"):
        data()


# Files that are wrong.


BOMB = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "ha">' + "".join(
    f'<!ENTITY x{n} "{f"&x{n - 1};" * 10}">' for n in range(1, 12)
).replace("&x0;", "&x;")


@pytest.mark.parametrize(
    "head",
    [
        BOMB + "]>",
        '<!DOCTYPE a [<!ENTITY name SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE a SYSTEM "http://localhost:1/a.dtd">',
        '<!DOCTYPE annotation [<!ENTITY % more SYSTEM "file:///etc/passwd"> %more;]>',
    ],
    ids=["entity expansion", "external entity", "external DTD", "parameter entity"],
)
def test_harmful_xml_is_refused(root, head):
    entity = "&x11;" if "x11" in head else "&name;" if "name" in head else "blue"
    edit("train001", "<annotation>", f"{head}<annotation>")
    edit("train001", "<name>green", f"<name>{entity}")
    began = time.perf_counter()
    with pytest.raises(
        DataError, match=r"train001.xml has a document type \(<!DOCTYPE>\) or entities .* refused"
    ) as error:
        data()
    assert time.perf_counter() - began < 5
    assert "root:" not in str(error.value)


def test_harmful_xml_stops_a_run_with_a_few_lines(root, capsys):
    edit("train001", "<annotation>", '<!DOCTYPE a [<!ENTITY name SYSTEM "file:///etc/passwd">]><annotation>')
    edit("train001", "<name>green", "<name>&name;")
    Path("x.yaml").write_text(
        "model: {class_path: Detection, init_args: {backbone: {class_path: Timm, init_args: {name: test_resnet}}}}\n"
        "data: {class_path: VOCDetection, init_args: {root: set, resize: 64, batch_size: 2, num_workers: 0}}\n"
    )
    assert main(["fit", "--config", "x.yaml"]) == 2
    message = capsys.readouterr().err
    assert "train001.xml has a document type" in message
    assert len(message.splitlines()) <= 10


def test_broken_xml_is_named_with_line_and_column(root):
    path = Path("set/Annotations/train001.xml")
    path.write_text(path.read_text().replace("</size>", "</siz>"))
    with pytest.raises(DataError, match=r"train001.xml:2:\d+: this is no XML \(mismatched tag\)"):
        data()
    path.write_text("")
    with pytest.raises(DataError, match=r"train001.xml:1:1: this is no XML \(is empty\)"):
        data()
    path.write_bytes(b'<?xml version="1.0" encoding="none"?><annotation/>')
    with pytest.raises(DataError, match=r"train001.xml.* XML"):
        data()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("<name>green</name>", "", "object 1: it has no <name>"),
        ("bndbox>", "polygon>", "object 1: 'green' has no <bndbox>"),
        ("<xmin>2</xmin>", "", "object 1: <bndbox> has no <xmin>"),
        ("<xmin>2<", "<xmin>two<", "object 1: <xmin> is 'two', no number"),
        ("<width>80<", "<width>?<", "the size of the image: <width> is '\\?', no number"),
        ("<width>80<", "<width>inf<", "the size of the image: <width> is 'inf', no number of pixels"),
        ("<width>80<", "<width>1e30<", "the size of the image: <width> is '1e30', no number of pixels"),
        ("annotation>", "html>", ": its outermost element is <html>, not <annotation>"),
    ],
)
def test_entries_that_are_wrong(root, old, new, said):
    edit("train001", old, new, count=2)
    with pytest.raises(DataError, match=f"train001.xml:? ?{said}"):
        data()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("<xmin>2<", "<xmin>NaN<", r"object 1 \(green\): the box x1, y1, x2, y2 = nan, 4, 17, 18 is not finite"),
        ("<xmin>2<", "<xmin>30<", r"= 30, 4, 17, 18 is reversed \(x2 < x1"),
        ("<xmin>2<", "<xmin>18<", "= 18, 4, 17, 18 is reversed"),
        ("<xmax>17<", "<xmax>170<", "= 1, 4, 170, 18 sticks out"),
        ("<ymin>5</ymin><xmax>17</xmax><ymax>18<", "<ymin>65</ymin><xmax>17</xmax><ymax>70<", "lies outside"),
        ("<height>64<", "<height>640<", "the size stated is 80x640, but .* is 80x64: was it resized"),
        ("<width>80</width><height>64<", "<width>64</width><height>80<", "it was turned by 90°"),
    ],
)
def test_boxes_that_are_wrong_stop_before_training(root, old, new, said):
    path = Path("set/Annotations/train001.xml")
    path.write_text(path.read_text().replace("\n<height>", "<height>"))
    edit("train001", old, new)
    with pytest.raises(DataError, match=f"train: set/Annotations/train001.xml.*{said}"):
        data().check_files()


def test_a_box_that_ends_where_it_begins_is_one_pixel_wide_if_counted_from_1(root):
    edit("train001", "<xmin>2<", "<xmin>17<")
    assert data().splits()["train"].read(1)["boxes"][0].tolist() == [16, 4, 17, 18]
    with pytest.raises(DataError, match=r"train001.xml .*= 17, 5, 17, 18 has no area"):
        data(one_based=False).check_files()


def test_a_file_in_another_encoding_than_it_states(root):
    path = Path("set/Annotations/train001.xml")
    text = path.read_text().replace("<name>green", "<name>gr\u00fcn")
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"train001.xml:3:\d+: .* the byte 0xfc is not UTF-8, .* if it is Latin-1"):
        data()
    path.write_bytes(('<?xml version="1.0" encoding="ISO-8859-1"?>' + text).encode("latin-1"))
    assert "gr\u00fcn" in data().classes


def test_a_size_of_zero_as_some_tools_write_is_none(root):
    edit("train001", "<width>80<", "<width>0<")
    assert read_voc(Path("set/Annotations/train001.xml")).size is None
    data().check_files()


def test_images_and_annotations_that_are_missing(root):
    Path("set/JPEGImages/train001.jpg").unlink()
    with pytest.raises(
        DataError, match=r"train001.jpg does not exist, but it is listed by set/Annotations/train001.xml"
    ):
        data().check_files()
    Path("set/Annotations/train000.xml").unlink()
    Path("set/Annotations/train002.xml").unlink()
    with pytest.raises(DataError) as error:
        data()
    assert "ImageSets/Main/train.txt:1: there is no set/Annotations/train000.xml" in str(error.value)
    assert "ImageSets/Main/train.txt:3: there is no set/Annotations/train002.xml" in str(error.value)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_objects(root, split):
    for scene in box_scenes()[split]:
        path = Path(f"set/Annotations/{scene.name}.xml")
        path.write_text(path.read_text().replace("object>", "thing>"))
    with pytest.raises(DataError, match=f"{split}: no image has an object"):
        data(classes=list(CLASSES)).check_files()


def test_an_image_of_another_kind_by_the_name_that_its_annotation_gives(root):
    shutil.copy("set/JPEGImages/val000.jpg", "set/JPEGImages/train001.jpeg")
    assert Path(data().splits()["train"].sources(1)[0]).name == "train001.jpg"
    edit("train001", "train001.jpg", "train001.jpeg")
    assert Path(data().splits()["train"].sources(1)[0]).name == "train001.jpeg"


def test_it_passes_every_check_of_data_modules(root):
    assert {v.name: v.found for v in check_plugin(data, "data") if v.outcome != "passed"} == {}
