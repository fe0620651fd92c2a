"""One XML file of Pascal VOC's: what it says of an image, or everything that is wrong with it."""

from math import isfinite
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse

from framework.errors import DataError

CORNERS = ("xmin", "ymin", "xmax", "ymax")


class VOCObject(NamedTuple):
    """One object.

    Args:
        name: Its class.
        box: xmin, ymin, xmax, ymax as written.
        difficult: Whether it is marked so.
    """

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


class VOCFile(NamedTuple):
    """What one file says.

    Args:
        path: The file.
        image: The name of the image file; empty if it does not say.
        size: Height and width of the image; None if it does not say.
        objects: What is in the image.
        problems: What is wrong, with the place.
    """

    path: Path
    image: str
    size: tuple[int, int] | None
    objects: list[VOCObject]
    problems: list[str]


def read_voc(path: Path) -> VOCFile:
    """Read one file.

    Raises:
        DataError: It is missing, is no XML, or has a document type or entities, which could open files of this machine
            or grow without end.
    """
    root = _parse(path)
    if root.tag != "annotation":
        raise DataError(f"{path}: its outermost element is <{root.tag}>, not <annotation>: is it Pascal VOC's?")
    objects: list[VOCObject] = []
    problems: list[str] = []
    for number, element in enumerate(root.findall("object"), 1):
        try:
            objects.append(_object(element))
        except ValueError as error:
            problems.append(f"{path} object {number}: {error}")
    image = Path(root.findtext("filename", "").strip().replace("\\", "/")).name
    try:
        size = _size(root)
    except ValueError as error:
        size = None
        problems.append(f"{path}: the size of the image: {error}")
    return VOCFile(path, image, size, objects, problems)


def _parse(path: Path) -> Element:
    """Parse a file, and return its outermost element."""
    try:
        root: Element = parse(path, forbid_dtd=True).getroot()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except DefusedXmlException as error:
        raise DataError(
            f"{path} has a document type (<!DOCTYPE>) or entities ({type(error).__name__}), which is refused, as they "
            "can open files or fill the memory; annotations need none: remove it if you trust the file"
        ) from None
    except ParseError as error:
        line, column = error.position
        what = "is empty" if path.stat().st_size == 0 else str(error).partition(":")[0]
        hint = _encoding_hint(path.read_bytes()) or "is it cut off?"
        raise DataError(f"{path}:{line}:{column + 1}: this is no XML ({what}): {hint}") from None
    except (OSError, ValueError, LookupError) as error:
        raise DataError(f"{path} cannot be read as XML ({error})") from None
    return root


def _encoding_hint(content: bytes) -> str:
    """Say that a file is not UTF-8, which it must be if it states nothing else; empty if that is not so."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"encoding=" in content[:200]:
        return ""
    try:
        content.decode()
    except UnicodeDecodeError as error:
        byte = content[error.start]
        return (
            f"the byte {byte:#x} is not UTF-8, and no other encoding is stated: save it as UTF-8, or begin it with "
            '<?xml version="1.0" encoding="ISO-8859-1"?> if it is Latin-1'
        )
    return ""


def _object(element: Element) -> VOCObject:
    name, box = element.findtext("name", "").strip(), element.find("bndbox")
    if not name:
        raise ValueError("it has no <name>")
    if box is None:
        raise ValueError(f"'{name}' has no <bndbox>")
    x1, y1, x2, y2 = (_number(box, tag) for tag in CORNERS)
    difficult = element.findtext("difficult", "0").strip() or "0"
    return VOCObject(name, (x1, y1, x2, y2), difficult.lower() not in ("0", "false"))


def _size(root: Element) -> tuple[int, int] | None:
    """Return height and width; None where they are missing, or 0, as some tools write."""
    size = root.find("size")
    if size is None or size.find("height") is None or size.find("width") is None:
        return None
    height, width = _pixels(size, "height"), _pixels(size, "width")
    return (height, width) if height and width else None


def _pixels(element: Element, tag: str) -> int:
    number = _number(element, tag)
    if not (isfinite(number) and 0 <= number < 2**31):
        raise ValueError(f"<{tag}> is '{element.findtext(tag, '').strip()}', no number of pixels")
    return int(number)


def _number(element: Element, tag: str) -> float:
    text = element.findtext(tag)
    if text is None:
        raise ValueError(f"<{element.tag}> has no <{tag}>")
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"<{tag}> is '{text.strip()}', no number") from None
