"""Class indices of annotated objects by the names of their classes, and the names that are of no class."""

import re
from collections.abc import Iterable, Sequence

from framework.errors import suggest

_WHOLE = re.compile(r"(\d+)(\.0+)?")  # as programs write whole numbers of a column that has empty cells


class BoxClasses:
    """Looks up class names, and keeps those that are none.

    Args:
        classes: Names of all classes.
        numbers: Whether a number stands for the class of this index, unless there are classes with numbers for names;
            in both cases 1.0 for 1.
    """

    def __init__(self, classes: Sequence[str], numbers: bool = False) -> None:
        self.classes, self.numbers = list(classes), numbers
        self._indices = {name: index for index, name in enumerate(classes)}
        if numbers and not any(name.isdecimal() for name in classes):
            self._indices |= {str(index): index for index in range(len(classes))}
        self._unknown: dict[str, list[str]] = {}  # the first place of each, and how many there are

    def index(self, name: str, place: str) -> int:
        """Return the index of a class; 0 for a name that is of none, which is kept."""
        index = self._indices.get(name)
        if index is None and self.numbers and (whole := _WHOLE.fullmatch(name)):
            index = self._indices.get(whole[1])
        if index is None:
            self._unknown.setdefault(name, []).append(place)
        return index or 0

    def problems(self) -> list[str]:
        """Return the names that are of no class, each with its first place and the nearest class."""
        said = []
        for name, places in self._unknown.items():
            more = f" (and {len(places) - 1} more)" if len(places) > 1 else ""
            said.append(f"{places[0]}{more}: '{name}' is no class; {suggest(name, self.classes)}".rstrip("; "))
        return said


def whole_names(names: Iterable[str]) -> set[str]:
    """Return class names, 1 for 1.0 if all are whole numbers."""
    found = set(names)
    wholes = [whole[1] for name in found if (whole := _WHOLE.fullmatch(name))]
    return set(wholes) if len(wholes) == len(found) else found
