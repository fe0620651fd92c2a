"""`images/{train,val,test}` and `masks/{train,val,test}` with a `classes.txt`: the plainest layout on disk."""

from pathlib import Path
from typing import Any, Literal

from framework.data.datamodule import SplitName
from framework.data.images import MaskTable
from framework.data.masks import MaskFiles, SegmentationData, match_masks, read_classes
from framework.errors import ConfigError


class MaskFolder(SegmentationData):
    """A folder of images and masks of the same names.

    Index masks (grey or palette PNGs) hold the class index; grey-value and colour masks are read through the values in
    `classes.txt`. The test split may be missing.

    Args:
        root: Folder with `images/`, `masks/` and `classes.txt`.
        channels: 1 for grey images, 3 for colour, 4 for colour with alpha.
    """

    def __init__(self, root: str, channels: Literal[1, 3, 4] = 3, **options: Any) -> None:
        super().__init__(**options)
        self.root, self.channels = Path(root), channels
        if not self.root.is_dir():
            raise ConfigError(f"data.root: {self.root} is no folder")
        self.table = read_classes(self.root / "classes.txt")
        self.state_classes(self.table.classes)

    def split(self, name: SplitName) -> MaskFiles | None:
        """Return a split; None for `test` if there is no `images/test`."""
        images, masks = self.root / "images" / name, self.root / "masks" / name
        if name == "test" and not images.is_dir():
            return None
        table = MaskTable(self.num_classes, self.ignore_index, self.table.values, self.table.ignore)
        return MaskFiles(match_masks(images, masks), self.channels, table, self.resize)

    def rules(self) -> str:
        """Return what the data check's verdict depends on."""
        return super().rules() + repr(self.table)
