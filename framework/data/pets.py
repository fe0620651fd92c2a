"""The Oxford-IIIT Pet data set."""

from pathlib import Path
from typing import Any, Literal

from torchvision.datasets import OxfordIIITPet

from framework.clock import permutation
from framework.data.datamodule import SplitName
from framework.data.images import MaskTable
from framework.data.masks import MaskFiles, Pair, SegmentationData
from framework.errors import ConfigError

PET, BACKGROUND, BORDER = 1, 2, 3  # the trimap's values


class OxfordPets(SegmentationData):
    """Oxford-IIIT Pet (Parkhi et al., CVPR 2012): 7,349 photographs of cats and dogs with trimaps; CC BY-SA 4.0.

    Training uses the published `trainval` split less a fixed random tenth, which is the validation split.

    Args:
        root: Folder that holds, or will hold, `oxford-iiit-pet/`.
        border: What the trimap's border is: pixels to ignore, or a third class.
        download: Fetch the data set (about 800 MB) if it is not there. Without this nothing touches the network.
    """

    channels = 3

    def __init__(
        self, root: str = "data", border: Literal["ignore", "class"] = "ignore", download: bool = False, **options: Any
    ) -> None:
        super().__init__(**options)
        self.root, self.border, self.download = Path(root), border, download
        if not download and not (self.root / "oxford-iiit-pet" / "annotations").is_dir():
            raise ConfigError(
                f"data.root: {self.root / 'oxford-iiit-pet'} is not there: add --data.download true to fetch it (800 "
                "MB), or unpack images.tar.gz and annotations.tar.gz of the data set into it"
            )
        self.state_classes(["background", "pet", *(["border"] if border == "class" else [])])

    def split(self, name: SplitName) -> MaskFiles:
        """Return a split."""
        published = "test" if name == "test" else "trainval"
        pets = OxfordIIITPet(self.root, published, target_types="segmentation", download=self.download)
        files = [
            Pair(Path(image), Path(mask), Path(image).stem)
            for image, mask in zip(pets._images, pets._segs, strict=True)
        ]
        if name != "test":
            order = permutation(len(files), "oxford-pets")  # the same for every seed: scores stay comparable
            held_out = set(order[: len(files) // 10])
            files = [pair for index, pair in enumerate(files) if (index in held_out) == (name == "val")]
        values: list[int | tuple[int, int, int]] = [BACKGROUND, PET]
        if self.border == "class":
            table = MaskTable(self.num_classes, self.ignore_index, [*values, BORDER])
        else:
            table = MaskTable(self.num_classes, self.ignore_index, values, ignore=[BORDER])
        return MaskFiles(files, self.channels, table, self.resize)
