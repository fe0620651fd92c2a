"""A crop whose place is fixed."""

from typing import Any

from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv


class FixedCrop(v2.Transform):
    """Cut the same window out of every image, such as the part inside the white border of NYU Depth v2.

    Args:
        rows: First row, and one past the last.
        columns: First column, and one past the last.
        size: Height and width of the images that these are counted in; those of others are scaled.

    Raises:
        ValueError: The window is empty, or not inside the image.
    """

    def __init__(self, rows: tuple[int, int], columns: tuple[int, int], size: tuple[int, int]) -> None:
        super().__init__()
        for (first, end), side in zip((rows, columns), size, strict=True):
            if not 0 <= first < end <= side:
                raise ValueError(f"a window is inside its image: got {first} to {end} of {side} pixels")
        self.rows, self.columns, self.size = tuple(rows), tuple(columns), tuple(size)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Crop one image, mask or set of boxes."""
        height, width = tv.get_size(inpt)
        top, bottom = (round(row * height / self.size[0]) for row in self.rows)
        left, right = (round(column * width / self.size[1]) for column in self.columns)
        return self._call_kernel(tv.crop, inpt, top, left, max(1, bottom - top), max(1, right - left))
