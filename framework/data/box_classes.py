"""Class indices of annotated objects by the names of their classes, and the names that are of no class."""

from collections.abc import Sequence

from framework.errors import suggest


class BoxClasses:
    """Looks up class names, and keeps those that are none.

    Args:
        classes: Names of all classes.
        numbers: Whether a number stands for the class of this index, unless there are classes with numbers for names.
    """

    def __init__(self, classes: Sequence[str], numbers: bool = False) -> None:
        self.classes = list(classes)
        self._indices = {name: index for index, name in enumerate(classes)}
        if numbers and not any(name.isdecimal() for name in classes):
            self._indices |= {str(index): index for index in range(len(classes))}
        self._unknown: dict[str, list[str]] = {}  # the first place of each, and how many there are

    def index(self, name: str, place: str) -> int:
        """Return the index of a class; 0 for a name that is of none, which is kept."""
        index = self._indices.get(name)
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
