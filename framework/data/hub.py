"""Loading data sets of Hugging Face's `datasets`, and finding out what their columns hold."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from framework.errors import ConfigError, suggest

SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves


def load_splits(name: str, config: str | None, revision: str | None) -> dict[str, Any]:
    """Load every split of a data set by name.

    Raises:
        ConfigError: `datasets` is not installed; or there is no such data set, here or on the hub.
    """
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f'HuggingFaceDataset needs datasets ({error}): pip install "vision-plugin-framework[datasets]"'
        ) from error
    folder = Path(name)
    if not folder.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ConfigError(f"data.name: {name} is no folder")
    try:
        if any((folder / file).is_file() for file in SAVED):
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(name, config, revision=revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        where = (
            "" if folder.is_dir() else "; it is no folder here, and on the hub it needs the network and the right name"
        )
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"data.name: {name} cannot be loaded: {reason}{where}") from error
    return dict(found) if isinstance(found, dict) else {"train": found}


def class_names(feature: Any) -> tuple[list[str] | None, bool]:
    """Return the names of the classes of a column, None if they are its values, and whether rows have several.

    Raises:
        ConfigError: It is no column of classes.
    """
    from datasets import ClassLabel, Value

    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    if isinstance(feature, ClassLabel):
        return list(feature.names), False
    if isinstance(inner, ClassLabel):
        return list(inner.names), True
    if isinstance(feature, Value) and ("int" in feature.dtype or feature.dtype in ("string", "large_string", "bool")):
        return None, False
    raise ConfigError(f"data.label_column: it holds {feature}, neither a class, a list of classes, a name nor a number")


def require_split(argument: str, split: str, found: dict[str, Any]) -> str:
    """Return the name of a split.

    Raises:
        ConfigError: There is no such split.
    """
    if split not in found:
        raise ConfigError(f"data.{argument}: there is no split '{split}'; {suggest(split, found)}")
    return split


def image_column_of(features: Any, name: str | None) -> str:
    """Return the column that is named, or the only one that holds images.

    Raises:
        ConfigError: It holds none, or it is not clear which is meant.
    """
    from datasets import Image

    columns = [column for column, feature in features.items() if isinstance(feature, Image)]
    return _only("image_column", "images", columns, name)


def label_column_of(features: Any, name: str | None) -> str:
    """Return the column that is named, the only one of classes, or `label`.

    Raises:
        ConfigError: It is not there, or it is not clear which is meant.
    """
    from datasets import ClassLabel

    columns = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
    if name is None and len(columns) != 1 and "label" in features:
        return "label"
    return _only("label_column", "classes", columns if name is None else list(features), name)


def _only(argument: str, what: str, columns: Sequence[str], name: str | None) -> str:
    """Return the column that is named, or the only one.

    Raises:
        ConfigError: There is none, or several and none is named.
    """
    if name is not None and name not in columns:
        raise ConfigError(
            f"data.{argument}: there is no column '{name}' of {what}; {suggest(name, columns)}".rstrip("; ")
        )
    if name is None and len(columns) != 1:
        raise ConfigError(f"data.{argument}: name the column of {what}; found {', '.join(columns) or 'none'}")
    return name or columns[0]


def column_values(source: Any, name: str) -> list[Any]:
    """Return one column of a split as plain values."""
    return list(source.select_columns([name])[:][name])


def is_bare(label: Any) -> bool:
    """Tell whether a label says that there is none, as hidden test splits have it."""
    return label is None or (isinstance(label, int) and not isinstance(label, bool) and label < 0)


def has_labels(source: Any, column: str) -> bool:
    """Tell whether any row of a split has a label."""
    return column in source.features and not all(map(is_bare, column_values(source, column)))
