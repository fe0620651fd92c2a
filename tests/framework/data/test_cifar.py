"""CIFAR and ImageNet on a few images in the published layouts."""

import pickle
import re
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from framework.conformance import check_plugin
from framework.data.cifar import CIFAR10, CIFAR100
from framework.data.imagenet import ImageNet
from framework.errors import ConfigError, DataError

ROWS = 5  # images a file


def python2_pickle(values, pixels):
    """Pickle a dict as Python 2 and NumPy 1 did, protocol 2: byte strings, and the array under its old names."""

    def text(word):
        return b"U" + bytes([len(word)]) + word.encode()

    def item(value):
        if isinstance(value, list):
            return b"](" + b"".join(map(item, value)) + b"e"
        return b"J" + struct.pack("<i", value) if isinstance(value, int) else text(value)

    shape = b"".join(b"J" + struct.pack("<i", side) for side in pixels.shape)
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01"
    array += shape + b"\x86cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array += b"\x89T" + struct.pack("<i", pixels.size) + pixels.tobytes() + b"tb"
    items = b"".join(text(key) + item(value) for key, value in values.items())
    return b"\x80\x02}(" + text("data") + array + items + b"u."


def write_cifar10(root, corrupt=None):
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    written = {}
    for file in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        pixels = rng.integers(0, 256, (ROWS, 3072), dtype=np.uint8)
        labels = [int(label) for label in rng.integers(0, 10, ROWS)] if file != "data_batch_1" else list(range(5))
        labels = list(range(5, 10)) if file == "data_batch_2" else labels
        (folder / file).write_bytes(python2_pickle({"labels": labels, "batch_label": file}, pixels))
        written[file] = pixels, labels
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names, "num_vis": 3072}, protocol=2))
    return written


def data(root, kind=CIFAR10, **options):
    return kind(root=str(root), **{"val_count": 7, "batch_size": 2, "num_workers": 0, **options})


def test_the_last_training_images_validate_and_every_pixel_is_where_it_was(tmp_path):
    written = write_cifar10(tmp_path)
    module = data(tmp_path)
    assert module.counts == {"train": 18, "val": 7, "test": 5}
    assert module.classes[3] == "cat"
    train = [(file, row) for file in list(written)[:5] for row in range(ROWS)]
    for split, expected in (
        ("train", train[:18]),
        ("val", train[18:]),
        ("test", [("test_batch", i) for i in range(5)]),
    ):
        samples = module.splits()[split]
        for index, (file, row) in enumerate(expected):
            sample = samples.read(index)
            planes = written[file][0][row].reshape(3, 32, 32)  # red, green, blue, row by row
            assert np.array_equal(sample["image"].numpy(), planes)
            assert sample["label"] == written[file][1][row]
            assert sample["id"] == f"{module.classes[sample['label']]}/{file}-{row}"
    assert module.check_files() == [f"val: no image of class {name}" for name in missing(module, "val")] + [
        f"test: no image of class {name}" for name in missing(module, "test")
    ]


def missing(module, split):
    present = set(module.splits()[split].labels)
    return [name for index, name in enumerate(module.classes) if index not in present]


def test_it_reads_what_torchvision_reads(tmp_path, monkeypatch):
    write_cifar10(tmp_path)
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    theirs = datasets.CIFAR10(tmp_path, train=False)
    ours = data(tmp_path).splits()["test"]
    assert [int(ours.read(i)["label"]) for i in range(ROWS)] == theirs.targets
    for index in range(ROWS):
        assert np.array_equal(ours.read(index)["image"].permute(1, 2, 0).numpy(), np.asarray(theirs[index][0]))


def test_what_a_transform_writes_into_a_sample_stays_there(tmp_path):
    write_cifar10(tmp_path)
    samples = data(tmp_path).splits()["train"]
    before = samples.read(0)["image"].clone()
    samples.read(0)["image"].zero_()
    assert torch.equal(samples.read(0)["image"], before)


def test_cifar100_has_its_fine_classes(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for file, count in (("train", 120), ("test", 4)):
        fine = [row % 100 for row in range(count)]
        pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        stored = python2_pickle({"coarse_labels": [0] * count, "fine_labels": fine}, pixels)
        (folder / file).write_bytes(stored)
    meta = {"fine_label_names": [f"fine {i}" for i in range(100)], "coarse_label_names": ["a"]}
    (folder / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    module = data(tmp_path, CIFAR100, val_count=20)
    assert module.counts == {"train": 100, "val": 20, "test": 4}
    assert [int(module.splits()["test"].read(index)["label"]) for index in range(4)] == [0, 1, 2, 3]
    assert module.num_classes == 100


class Evil:
    def __reduce__(self):
        return (open, ("broken_in", "w"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (pickle.dumps({"data": Evil()}), r"it wants _?io\.open, and only arrays are read"),
        (b"\x80\x02}", "is damaged"),
        (pickle.dumps([1]), "holds no dict"),
        (pickle.dumps({"data": 3, "labels": [1]}), "`data` are no images"),
        (python2_pickle({"labels": [1, 2]}, np.zeros((3, 3072), np.uint8)), "are no classes of 3 images"),
        (python2_pickle({"labels": [1, 10]}, np.zeros((2, 3072), np.uint8)), "classes outside 0 to 9"),
        (None, "does not exist"),
    ],
)
def test_bad_files_are_named_and_nothing_in_them_runs(tmp_path, content, said):
    write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py/data_batch_3"
    path.write_bytes(content) if content is not None else path.unlink()
    with pytest.raises(DataError, match=said) as error:
        data(tmp_path).splits()
    assert "data_batch_3" in str(error.value)
    assert not (tmp_path / "broken_in").exists()


def test_without_the_data_the_remedy_is_named_and_nothing_is_fetched(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"add --data\.download true to fetch it .*unpack cifar-10-python\.tar\.gz"):
        data(tmp_path)
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    with pytest.raises(DataError, match=r"could not be fetched from https:.*no route.*unpack it into"):
        data(tmp_path, download=True)
    write_cifar10(tmp_path)
    with pytest.raises(ConfigError, match=r"data\.val_count: 25 of 25 images leave none to train"):
        data(tmp_path, val_count=25).splits()


def refuse(*_, **__):
    raise OSError("no route")


# ImageNet.

WNIDS = ["n02012849", "n03126707", "n01440764"]


def write_imagenet(root, meta=True):
    for split, count in (("train", 3), ("val", 2)):
        for wnid in WNIDS:
            folder = root / split / wnid
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.random.default_rng(number + len(split)).integers(0, 255, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{split}_{wnid}_{number}.JPEG")
    if meta:
        names = {"n02012849": ("crane",), "n03126707": ("crane",), "n01440764": ("tench", "Tinca tinca"), "n9": ("x",)}
        torch.save((names, ["n01440764"]), root / "meta.bin")
    return root


def imagenet(root):
    return ImageNet(root=str(root), batch_size=2, num_workers=0, image_size=32)


def test_imagenet_is_read_as_torchvision_lays_it_out(tmp_path):
    module = imagenet(write_imagenet(tmp_path))
    assert module.classes == ("tench", "crane (n02012849)", "crane (n03126707)")
    assert module.counts == {"train": 9, "val": 6}
    theirs = datasets.ImageNet(tmp_path, "val")
    ours = module.splits()["val"]
    assert [int(ours.read(index)["label"]) for index in range(6)] == theirs.targets
    assert [str(path) for path in ours.paths] == [path for path, _ in theirs.samples]
    assert imagenet(write_imagenet(tmp_path / "bare", meta=False)).classes == tuple(sorted(WNIDS))


def test_imagenet_that_is_not_unpacked_right_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=re.escape("train and no ")) as error:
        imagenet(tmp_path)
    assert "ILSVRC2012_img_val.tar" in str(error.value)
    root = write_imagenet(tmp_path / "set")
    (root / "val").rename(root / "sorted")
    (root / "val").mkdir()
    Image.new("RGB", (8, 8)).save(root / "val/ILSVRC2012_val_00000001.JPEG")
    (root / "sorted").rename(tmp_path / "sorted")
    with pytest.raises(DataError, match="has no folder for each class"):
        imagenet(root)
    (root / "val/n01440764").mkdir()
    (root / "meta.bin").write_bytes(b"no meta")
    with pytest.raises(DataError, match=r"meta\.bin is not what torchvision writes"):
        imagenet(root)


# All of them.


def test_they_pass_every_check_of_data_modules(tmp_path):
    write_cifar10(tmp_path)
    write_imagenet(tmp_path / "imagenet")
    for make in (lambda: data(tmp_path), lambda: imagenet(tmp_path / "imagenet")):
        assert {v.name: v.found for v in check_plugin(make, "data") if v.outcome != "passed"} == {}
