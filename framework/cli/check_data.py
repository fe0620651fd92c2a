"""`framework data check`: every file is looked at as before training, and what there is is counted."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from framework.cli.build_data import build_data
from framework.cli.group_table import table
from framework.data.check import check_splits
from framework.data.counts import ObjectTable, depth_spread, image_classes, kind_of, object_table, pixel_counts
from framework.data.datamodule import VisionData
from framework.data.loader import Samples

SMALL, LARGE = 32**2, 96**2  # square pixels, as COCO divides
TOO_SMALL = 8  # pixels: the finest stride of most detectors, below which neighbouring objects share a cell
PERCENTILES = (1, 50, 99)  # of depth
MOST_CLASSES = 40  # in print; of more, the commonest and the rarest
Facts = dict[str, Any]


def check_data(
    files: Sequence[Path], options: Sequence[str], trust: Sequence[str], plugins: Sequence[Path], as_json: bool
) -> None:
    """Check the data of an experiment, and print what there is.

    Args:
        files: The experiment, and more laid over it; perhaps none.
        options: Options of `fit`, laid over those.
        trust: Modules that it may import beside the usual ones.
        plugins: Local files whose plugins it may use.
        as_json: Print JSON.

    Raises:
        ConfigError: Something in the experiment is wrong.
        DataError: Something in the data is wrong; all of it is listed. Or the batch of the experiment is too large.
    """
    data = build_data(files, options, trust, plugins)
    warnings = check_splits(dict(data.splits()), data.rules(), data.check_cache, shown=None)
    facts = {**data_facts(data), "warnings": warnings}
    print(json.dumps(facts, indent=2, ensure_ascii=False) if as_json else "\n".join(lines_of(facts)))
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if files:  # else nobody has chosen a batch size yet
        data.check = False  # done
        data.check_files()


# What there is, as plain values.


def data_facts(data: VisionData) -> Facts:
    """Count what is in each split of a data set that is in order."""
    kind = kind_of(data)
    said = {"depth_range": list(data.depth_range)} if data.depth_range is not None else {}
    splits = {
        name: {"images": len(samples)} | _split_facts(data, kind, samples) for name, samples in data.splits().items()
    }
    return {
        "data": type(data).__name__,
        "task": kind,
        "classes": list(data.classes),
        **said,
        "shown_at": _fit_words(data),
        "splits": splits,
        "hints": list(_hints(splits)),
    }


def _split_facts(data: VisionData, kind: str | None, samples: Samples) -> Facts:
    if kind == "Detection":
        return _object_facts(data, object_table(samples))
    if kind == "Segmentation":
        pixels = pixel_counts(samples, data.num_classes)
        shares = pixels.sum(0) / max(1, pixels.sum())
        counts = zip(data.classes, (pixels > 0).sum(0).tolist(), shares.tolist(), strict=True)
        return {"classes": {name: {"images": images, "pixel_share": share} for name, images, share in counts}}
    if kind == "Classification":
        found = image_classes(samples, data.num_classes, kind, range(len(samples)))
        labels = np.array([label for labels in found for label in labels], np.int64)
        images = np.bincount(labels, minlength=data.num_classes).tolist()
        return {"classes": {name: {"images": count} for name, count in zip(data.classes, images, strict=True)}}
    if kind == "Depth" and data.depth_range is not None:
        return _depth_facts(samples, data.depth_range)
    return {}


def _depth_facts(samples: Samples, depth_range: tuple[float, float]) -> Facts:
    spread, sizes = depth_spread(samples, depth_range)
    return {
        "pixels_with_depth": spread.readings / max(1, spread.pixels),
        "depths_in_range": spread.inside / max(1, spread.readings),
        "depth": {f"{percent} %": spread.quantile(percent / 100) for percent in PERCENTILES} if spread.readings else {},
        "height": _spread(sizes[:, 0]),
        "width": _spread(sizes[:, 1]),
    }


def _object_facts(data: VisionData, objects: ObjectTable) -> Facts:
    counted, count = objects.counted, len(objects.sizes)
    labels, images = objects.labels[counted], objects.images[counted]
    pairs = np.unique(np.stack([images, labels], axis=1), axis=0)
    in_images = np.bincount(pairs[:, 1], minlength=data.num_classes).tolist()
    in_all = np.bincount(labels, minlength=data.num_classes).tolist()
    facts: Facts = {
        "without_objects": count - len(np.unique(objects.images)),
        "objects": int(counted.sum()),
        "ignored": int((~counted).sum()),
        "objects_per_image": _spread(np.bincount(images, minlength=count)),
        "classes": {
            name: {"images": some, "objects": all_}
            for name, some, all_ in zip(data.classes, in_images, in_all, strict=True)
        },
    }
    if counted.any():
        facts["sizes"] = _size_facts(objects.sides[counted])
        areas = objects.areas[counted]
        shares = (areas < SMALL, (areas >= SMALL) & (areas < LARGE), areas >= LARGE)
        facts["sizes"] |= {
            name: float(share.mean()) for name, share in zip(("small", "medium", "large"), shares, strict=True)
        }
        fit = getattr(data, "fit", None)
        if fit is not None and _fit_words(data):
            facts["sizes_shown"] = _size_facts(objects.sides_at(fit.size))
    return facts


def _size_facts(sides: NDArray[np.float64]) -> Facts:
    width, height = sides.T
    measured = {"width": width, "height": height, "side": np.sqrt(width * height), "aspect": width / height}
    return {name: _spread(values) for name, values in measured.items()}


def _spread(values: NDArray[Any]) -> dict[str, float]:
    return {"least": float(values.min()), "median": float(np.median(values)), "most": float(values.max())}


def _fit_words(data: VisionData) -> str | None:
    """Say how detection data are resized; None: they are shown as stored."""
    fit = getattr(data, "fit", None)
    if fit is None or (fit.resize is None and fit.letterbox is None):
        return None
    if fit.letterbox is not None:
        return f"data.letterbox {fit.letterbox[0]}x{fit.letterbox[1]}"
    return f"data.resize {fit.resize}" + (f", data.longest {fit.longest}" if fit.longest is not None else "")


def _hints(splits: dict[str, Facts]) -> Iterator[str]:
    train = splits["train"]
    seen = train.get("sizes_shown", train.get("sizes"))
    if seen is not None and seen["side"]["median"] < TOO_SMALL:
        yield (
            f"half of the training objects are smaller than {TOO_SMALL} px a side at the size the network sees (median "
            f"{seen['side']['median']:.1f} px), finer than most heads can tell apart: train at a larger size "
            "(data.resize, with data.crop_size for the memory), and predict by tiles (model.inference: "
            "DetectionInference)"
        )


# In print.


def lines_of(facts: Facts) -> list[str]:
    """Write the facts as lines for people."""
    splits: dict[str, Facts] = facts["splits"]
    count = len(facts["classes"])
    what = f"{count} class{'es' if count > 1 else ''}" if count else "depth"
    rows = _depth_rows(facts) if all("depth" in split for split in splits.values()) else _split_rows(splits)
    lines = [f"{facts['data']}: {what}", "", *table(list(rows))]
    if all("classes" in split for split in splits.values()):
        lines += ["", "by class", *table(list(_class_rows(facts)))]
    if any("sizes" in split for split in splits.values()):
        lines += ["", "box sizes: least, median and most", *table(list(_size_rows(facts)))]
    return lines + [line for hint in facts["hints"] for line in ("", f"hint: {hint}")]


def _split_rows(splits: dict[str, Facts]) -> Iterator[list[str]]:
    detection = all("objects" in split for split in splits.values())
    yield ["split", "images", *(["without objects", "objects", "ignored", "objects an image"] if detection else [])]
    for name, split in splits.items():
        counts = [split[key] for key in ("images", "without_objects", "objects", "ignored") if key in split]
        spread = [_numbers(split["objects_per_image"])] if detection else []
        yield [name, *(f"{count:,}" for count in counts), *spread]


def _depth_rows(facts: Facts) -> Iterator[list[str]]:
    least, most = facts["depth_range"]
    percents = ", ".join(f"{percent} %" for percent in PERCENTILES)
    within = f"of these in {least:g} to {most:g} m"
    yield ["split", "images", "height, px", "width, px", "pixels with depth", within, f"depth in m: {percents}"]
    for name, split in facts["splits"].items():
        sizes = [_sole(split["height"]), _sole(split["width"])]
        shares = [f"{100 * split[key]:.3g} %" for key in ("pixels_with_depth", "depths_in_range")]
        depths = ", ".join(f"{metres:.3g}" for metres in split["depth"].values())
        yield [name, f"{split['images']:,}", *sizes, *shares, depths or "none"]


def _sole(spread: dict[str, float]) -> str:
    """Write a spread, or the one value there is."""
    return f"{spread['least']:,.0f}" if spread["least"] == spread["most"] else _numbers(spread)


def _class_rows(facts: Facts) -> Iterator[list[str]]:
    splits: dict[str, Facts] = facts["splits"]
    keys = list(next(iter(splits["train"]["classes"].values())))
    yield ["class", *(f"{split} {key.replace('_share', 's')}" for split in splits for key in keys)]
    for name in _shown_classes(facts["classes"], splits["train"]["classes"], keys[-1]):
        cells = [
            splits[split]["classes"][name][key] if name in facts["classes"] else "" for split in splits for key in keys
        ]
        yield [
            name,
            *(
                f"{100 * cell:.3g} %" if isinstance(cell, float) else f"{cell:,}" if cell != "" else ""
                for cell in cells
            ),
        ]


def _shown_classes(names: Sequence[str], train: dict[str, Facts], key: str) -> Iterable[str]:
    """Return all classes, or, of many, the commonest and the rarest in training, with dots between."""
    if len(names) <= MOST_CLASSES:
        return names
    ordered = sorted(names, key=lambda name: -train[name][key])
    return [*ordered[: MOST_CLASSES // 2], "...", *ordered[-MOST_CLASSES // 2 :]]


def _size_rows(facts: Facts) -> Iterator[list[str]]:
    yield ["", "width, px", "height, px", "width / height", "small, medium, large"]
    for name, split in facts["splits"].items():
        if "sizes" in split:
            shares = ", ".join(f"{100 * split['sizes'][key]:.0f} %" for key in ("small", "medium", "large"))
            yield [name, *_size_cells(split["sizes"]), shares]
    for name, split in facts["splits"].items():
        if "sizes_shown" in split:
            yield [f"{name} by {facts['shown_at']}", *_size_cells(split["sizes_shown"]), ""]


def _size_cells(sizes: Facts) -> list[str]:
    return [_numbers(sizes["width"]), _numbers(sizes["height"]), _numbers(sizes["aspect"], ".2f")]


def _numbers(spread: dict[str, float], form: str = "") -> str:
    values = [spread[key] for key in ("least", "median", "most")]
    return ", ".join(
        f"{value:{form}}" if form else f"{value:.3g}" if value < 100 else f"{value:,.0f}" for value in values
    )
