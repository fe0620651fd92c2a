"""Rendered scenes whose class, boxes, masks and metric depth are exact, at any size and count."""

from typing import Any, ClassVar

import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from torchvision import tv_tensors

from framework.clock import key
from framework.data.datamodule import SplitName
from framework.data.depth import DepthData
from framework.data.detection import DetectionData
from framework.data.loader import Sample
from framework.data.masks import SegmentationData
from framework.data.scenes import SCENE_CLASSES, render_scene
from framework.data.transforms import DepthMap


class SceneSamples:
    """Scenes rendered when they are asked for.

    Args:
        count: Number of scenes.
        size: Height and width in pixels.
        seed: Which scenes.
    """

    def __init__(self, count: int, size: tuple[int, int], seed: int) -> None:
        self.count, self.size, self.seed = count, size, seed

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Sample:
        """Return `image`, `mask`, `boxes`, `labels`, `depth` in metres, `label`, `id` and `original_size`."""
        scene = render_scene(self.seed, index, self.size)
        return {
            "image": tv_tensors.Image(torch.from_numpy(scene.image).permute(2, 0, 1).contiguous()),
            "mask": tv_tensors.Mask(torch.from_numpy(scene.mask)),
            "depth": DepthMap(torch.from_numpy(scene.depth)),
            "boxes": tv_tensors.BoundingBoxes(torch.from_numpy(scene.boxes), format="XYXY", canvas_size=self.size),
            "labels": torch.from_numpy(scene.labels),
            "label": torch.tensor(scene.label),
            "id": f"scene-{self.seed}-{index}",
            "original_size": self.size,
        }

    def problem(self, index: int) -> str | None:
        """Rendered scenes are never wrong."""
        return None

    def remarks(self) -> tuple[list[str], list[str]]:
        """Return nothing."""
        return [], []

    def sources(self, index: int) -> list[str]:
        """Return no files: there are none."""
        return []


class SyntheticScenes(SegmentationData):
    """Textured solids in a room, rendered by a keyed ray caster: every label is exact. No files are needed.

    Under Classification, the class of an image is that of the object that covers most of it, `background` if none is
    there. A training crop smaller than the image may cut that object away: `crop_size` as large as `size`, and
    `crop_scale: [1, 1]`, show every scene whole.

    Args:
        train: Training scenes.
        val: Validation scenes.
        test: Test scenes; 0 for no test split.
        size: Height and width in pixels.
        scenes_seed: Which scenes there are; independent of the run's seed.
    """

    tasks: ClassVar[tuple[str, ...]] = ("Segmentation", "Classification", "LinearProbes", "NearestNeighbours")

    channels = 3

    def __init__(
        self,
        train: PositiveInt = 256,
        val: PositiveInt = 64,
        test: NonNegativeInt = 64,
        size: tuple[int, int] = (128, 128),
        scenes_seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.sizes: dict[SplitName, int] = {"train": train, "val": val, "test": test}
        self.size, self.scenes_seed = (size[0], size[1]), scenes_seed
        self.state_classes(list(SCENE_CLASSES))

    def split(self, name: SplitName) -> SceneSamples | None:
        """Return a split; splits share no scene."""
        if not self.sizes[name]:
            return None
        return SceneSamples(self.sizes[name], self.size, key(self.scenes_seed, name) % 2**31)


class SceneObjects(SceneSamples):
    """Scenes rendered when they are asked for, with a box around what is visible of each solid."""

    wrong_in_every_split: ClassVar[bool] = True  # what `remarks` calls wrong

    def read(self, index: int) -> Sample:
        """Return `image`, `boxes`, `labels` from 0, `ignored`, `area` in visible pixels, `id` and `original_size`."""
        scene = render_scene(self.seed, index, self.size)
        area = np.bincount(scene.instances.ravel(), minlength=len(scene.labels) + 1)[1:]
        return {
            "image": tv_tensors.Image(torch.from_numpy(scene.image).permute(2, 0, 1).contiguous()),
            "boxes": tv_tensors.BoundingBoxes(torch.from_numpy(scene.boxes), format="XYXY", canvas_size=self.size),
            "labels": torch.from_numpy(scene.labels) - 1,  # no background
            "ignored": torch.zeros(len(scene.labels), dtype=torch.bool),
            "area": torch.from_numpy(area).float(),
            "id": f"scene-{self.seed}-{index}",
            "original_size": self.size,
        }

    def remarks(self) -> tuple[list[str], list[str]]:
        """Say that no scene has an object, which is wrong: too little of each is visible in a small picture."""
        if any(len(render_scene(self.seed, index, self.size).labels) for index in range(len(self))):
            return [], []
        height, width = self.size
        return [f"no scene of {len(self)} has an object of 12 pixels or more at {height}x{width}: raise data.size"], []


class SyntheticScenesDetection(DetectionData):
    """Textured solids in a room, rendered by a keyed ray caster: every box is exact. No files are needed.

    Args:
        train: Training scenes.
        val: Validation scenes.
        test: Test scenes; 0 for no test split.
        size: Height and width in pixels.
        scenes_seed: Which scenes there are; independent of the run's seed.
    """

    channels = 3

    def __init__(
        self,
        train: PositiveInt = 256,
        val: PositiveInt = 64,
        test: NonNegativeInt = 64,
        size: tuple[int, int] = (128, 128),
        scenes_seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.sizes: dict[SplitName, int] = {"train": train, "val": val, "test": test}
        self.size, self.scenes_seed = (size[0], size[1]), scenes_seed
        self.state_classes(SCENE_CLASSES[1:])

    def rules(self) -> str:
        """Return everything that the data check's verdict depends on: there are no files."""
        return f"{super().rules()} {self.sizes} {self.size} {self.scenes_seed}"

    def split(self, name: SplitName) -> SceneObjects | None:
        """Return a split: the scenes that SyntheticScenes has under the same name."""
        if not self.sizes[name]:
            return None
        return SceneObjects(self.sizes[name], self.size, key(self.scenes_seed, name) % 2**31)


class SceneDepths(SceneSamples):
    """Scenes rendered when they are asked for, with what their camera measures."""

    def read(self, index: int) -> Sample:
        """Return `image`, `depth` in metres, known everywhere, `intrinsics`, `id` and `original_size`."""
        scene = render_scene(self.seed, index, self.size)
        intrinsics = scene.intrinsics.astype(np.float32)
        intrinsics[:2, 2] -= 0.5  # a scene's first pixel has its centre at (0.5, 0.5), a sample's at (0, 0)
        return {
            "image": tv_tensors.Image(torch.from_numpy(scene.image).permute(2, 0, 1).contiguous()),
            "depth": DepthMap(torch.from_numpy(scene.depth)),
            "intrinsics": torch.from_numpy(intrinsics),
            "id": f"scene-{self.seed}-{index}",
            "original_size": self.size,
        }


class SyntheticScenesDepth(DepthData):
    """Textured solids in a room, rendered by a keyed ray caster: every depth is exact. No files are needed.

    Depths are 1.4 to 9 m; every pixel has one. The camera is the same in all scenes, up to 0.36 radians down and 1.2 to
    1.9 m above the ground; its focal length is the shorter side of the image.

    Args:
        train: Training scenes.
        val: Validation scenes.
        test: Test scenes; 0 for no test split.
        size: Height and width in pixels.
        scenes_seed: Which scenes there are; independent of the run's seed.
        depth_range: Smallest and largest depth in metres, both included.
    """

    channels = 3

    def __init__(
        self,
        train: PositiveInt = 256,
        val: PositiveInt = 64,
        test: NonNegativeInt = 64,
        size: tuple[int, int] = (128, 128),
        scenes_seed: int = 0,
        depth_range: tuple[float, float] = (0.5, 10.0),
        **options: Any,
    ) -> None:
        super().__init__(depth_range=depth_range, **options)
        self.sizes: dict[SplitName, int] = {"train": train, "val": val, "test": test}
        self.size, self.scenes_seed = (size[0], size[1]), scenes_seed

    def rules(self) -> str:
        """Return everything that the data check's verdict depends on: there are no files."""
        return f"{super().rules()} {self.sizes} {self.size} {self.scenes_seed}"

    def split(self, name: SplitName) -> SceneDepths | None:
        """Return a split: the scenes that SyntheticScenes has under the same name."""
        if not self.sizes[name]:
            return None
        return SceneDepths(self.sizes[name], self.size, key(self.scenes_seed, name) % 2**31)
