"""ImageNet-1k in torchvision's layout."""

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from framework.data.classification import LabelledFiles
from framework.data.datamodule import SplitName
from framework.data.image_folder import ImageFolder
from framework.errors import ConfigError, DataError

META = "meta.bin"  # torchvision writes it when it unpacks the development kit


class ImageNet(ImageFolder):
    """ImageNet-1k (Russakovsky et al., arXiv 1409.0575): 1,281,167 photographs to train, 50,000 to validate.

    The layout is torchvision's: `root/train/n01440764/*.JPEG`, `root/val/n01440764/*.JPEG` and, for the names of the
    classes, `root/meta.bin`; without it classes are called by their WordNet id. Their order is that of the ids, as
    everywhere. There is no test split: its classes are not published. A part of the classes is as good.

    Args:
        root: Folder with `train/` and `val/`.
    """

    def __init__(self, root: str = "data/imagenet", **options: Any) -> None:
        folders = [Path(root) / name for name in ("train", "val")]
        if missing := [str(folder) for folder in folders if not folder.is_dir()]:
            raise ConfigError(
                f"data.root: there is no {' and no '.join(missing)}: put ILSVRC2012_devkit_t12.tar.gz, "
                f"ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar of image-net.org into {root}, and unpack them by "
                f"torchvision.datasets.ImageNet('{root}', 'train') and ('{root}', 'val')"
            )
        super().__init__(root, **options)
        if "val" not in self.folders:
            raise DataError(
                f"{folders[1]} has no folder for each class: sort its images into such, as unpacking "
                f"ILSVRC2012_img_val.tar by torchvision.datasets.ImageNet('{root}', 'val') does"
            )

    def split(self, name: SplitName) -> LabelledFiles | None:
        """Return a split; None for `test`."""
        return super().split(name) if name != "test" else None

    def name_classes(self, folders: list[str]) -> list[str]:
        """Return the first name of each WordNet id; those that share it with another have their id beside it.

        Raises:
            DataError: `meta.bin` is none.
        """
        path = self.root / META
        if not path.is_file():
            return folders
        try:
            published: dict[str, tuple[str, ...]] = torch.load(path, weights_only=True)[0]
            names = [published[folder][0] for folder in folders]
        except KeyError as error:
            raise DataError(f"{self.root}: the folder {error} is no class of {META}: move it out") from None
        except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, LookupError, TypeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DataError(f"{path} is not what torchvision writes ({reason}): remove it") from error
        shared = {name for name, count in Counter(names).items() if count > 1}
        return [f"{name} ({folder})" if name in shared else name for name, folder in zip(names, folders, strict=True)]
