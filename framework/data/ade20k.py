"""ADE20K's scene parsing benchmark in its published layout."""

from pathlib import Path
from typing import Any

from framework.data.datamodule import SplitName
from framework.data.images import MaskTable
from framework.data.masks import MaskFiles, SegmentationData, match_masks
from framework.errors import ConfigError, DataError

NAMES = "objectInfo150.txt"  # comes with the data: columns Idx, Ratio, Train, Val, (Stuff,) Name
FOLDERS: dict[SplitName, str] = {"train": "training", "val": "validation"}

ADE20K_CLASSES = (  # the first name of each line of that file
    "wall building sky floor tree ceiling road bed windowpane grass cabinet sidewalk person earth door table mountain "
    "plant curtain chair car water painting sofa shelf house sea mirror rug field armchair seat fence desk rock "
    "wardrobe lamp bathtub railing cushion base box column signboard chest_of_drawers counter sand sink skyscraper "
    "fireplace refrigerator grandstand path stairs runway case pool_table pillow screen_door stairway river bridge "
    "bookcase blind coffee_table toilet flower book hill bench countertop stove palm kitchen_island computer "
    "swivel_chair boat bar arcade_machine hovel bus towel light truck tower chandelier awning streetlight booth "
    "television airplane dirt_track apparel pole land bannister escalator ottoman bottle buffet poster stage van ship "
    "fountain conveyer_belt canopy washer plaything swimming_pool stool barrel basket waterfall tent bag minibike "
    "cradle oven ball food step tank trade_name microwave pot animal bicycle lake dishwasher screen blanket sculpture "
    "hood sconce vase traffic_light tray ashcan fan pier crt_screen plate monitor bulletin_board shower radiator glass "
    "clock flag"
)


class ADE20K(SegmentationData):
    """ADE20K's 150 classes (Zhou et al., CVPR 2017, arXiv 1608.05442): 20,210 photographs to train, 2,000 to validate.

    The layout is that of `ADEChallengeData2016.zip` of sceneparsing.csail.mit.edu: `images/{training,validation}/*.jpg`
    and `annotations/{training,validation}/*.png`. A mask holds 1 to 150 for the classes, which become 0 to 149, and 0
    for everything else, which does not count. The masks of the test split are not published, so there is none.

    Classes are called by the first name that `objectInfo150.txt`, which lies beside the folders, gives them; without
    that file by the same names, which are built in.

    Args:
        root: The folder that holds these, usually `ADEChallengeData2016`.
    """

    channels = 3

    def __init__(self, root: str = "data/ADEChallengeData2016", **options: Any) -> None:
        super().__init__(**options)
        self.root = Path(root)
        if not (self.root / "annotations").is_dir():
            inside = sorted(self.root.glob("**/annotations")) if self.root.is_dir() else []
            hint = (
                f"did you mean {inside[0].parent}?"
                if inside
                else "unpack ADEChallengeData2016.zip, and give its folder"
            )
            raise ConfigError(f"data.root: {self.root} has no folder annotations: {hint}")
        self.state_classes(self._names())

    def _names(self) -> list[str]:
        """Return the names of the classes, in the order of their numbers."""
        path = self.root / NAMES
        return read_names(path) if path.is_file() else [name.replace("_", " ") for name in ADE20K_CLASSES.split()]

    def split(self, name: SplitName) -> MaskFiles | None:
        """Return a split; None for `test`.

        Raises:
            DataError: A folder is missing or empty, or images have no mask.
        """
        if name not in FOLDERS:
            return None
        pairs = match_masks(self.root / "images" / FOLDERS[name], self.root / "annotations" / FOLDERS[name])
        values: list[int | tuple[int, int, int]] = list(range(1, self.num_classes + 1))
        table = MaskTable(self.num_classes, self.ignore_index, values, ignore=[0])
        return MaskFiles(pairs, self.channels, table, self.resize)


def read_names(path: Path) -> list[str]:
    """Read the names of the classes: of each line after the first the last column, up to a comma.

    Raises:
        DataError: The file is no such table, or does not number its lines from 1 on.
    """
    try:
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8-sig").splitlines()[1:] if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}): take the one of the data set") from None
    for number, row in enumerate(rows, 1):
        if len(row) < 2 or row[0].strip() != str(number):
            raise DataError(
                f"{path}, line {number + 1}: a line is Idx, Ratio, Train, Val, Stuff, Name with tabs between, and this "
                f"one would be number {number}: got {' '.join(row)[:60]!r}; take the one of the data set, or remove it"
            )
    return [row[-1].partition(",")[0].strip() for row in rows]
