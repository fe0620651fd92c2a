"""What a class says of itself in its source, read without importing it or anything else."""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, metadata, requires
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from framework.errors import suggest


class SourceError(Exception):
    """The source cannot be read, or does not hold what was looked for; the message is the reason."""


@dataclass(frozen=True)
class SourceClass:
    """A class as its source has it.

    Args:
        name: Its name.
        module: Dotted name of the module that defines it.
        file: The file of that module.
        line: Where in the file it begins, from 1.
        bases: Dotted names of its bases, import aliases resolved.
        doc: Its docstring, unindented; empty if it has none.
        constants: Its class attributes that are plain literals.
    """

    name: str
    module: str
    file: Path
    line: int
    bases: tuple[str, ...]
    doc: str
    constants: dict[str, Any]

    @property
    def summary(self) -> str:
        """The first paragraph of the docstring on one line."""
        return " ".join(self.doc.partition("\n\n")[0].split())


def find_module(name: str) -> Path:
    """Return the file of a module, of a package its `__init__.py`.

    Raises:
        SourceError: There is no such module, or it is not Python source.
    """
    top, *rest = name.split(".")
    try:
        spec = find_spec(top)  # of a name without a dot, which imports nothing
    except ValueError:
        spec = None
    for depth in range(len(rest) + 1):
        if spec is None:
            raise SourceError(f"there is no module {'.'.join([top, *rest[:depth]])}")
        if depth < len(rest):
            inside = list(spec.submodule_search_locations or ())
            spec = PathFinder.find_spec(".".join([top, *rest[: depth + 1]]), inside)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise SourceError(f"the module {name} is not Python source")
    return Path(spec.origin)


def read_class(module: str, name: str) -> SourceClass:
    """Return what the source of `module` says of the class `name`, followed to where it is defined.

    Raises:
        SourceError: There is no such module or class, or the source has a syntax error.
    """
    file = find_module(module)
    for found in classes_of(file, module):
        if found.name == name:
            return found
    imported = _imports(file, module).get(name)
    if imported is None or "." not in imported:
        known = [found.name for found in classes_of(file, module)]
        raise SourceError(f"{file} defines no class {name}; {suggest(name, known)}".rstrip("; "))
    source, _, original = imported.rpartition(".")
    return read_class(source, original)


def classes_of(file: Path, module: str) -> tuple[SourceClass, ...]:
    """Return every class that a file defines at its top level.

    Raises:
        SourceError: The file cannot be read, or has a syntax error.
    """
    imports = _imports(file, module)
    return tuple(
        SourceClass(
            node.name,
            module,
            file,
            node.lineno,
            tuple(_dotted(base, imports, module) for base in node.bases),
            ast.get_docstring(node) or "",
            dict(_constants(node)),
        )
        for node in _statements(_parse(file).body)
        if isinstance(node, ast.ClassDef)
    )


def ancestors(of: SourceClass, within: Sequence[str]) -> Iterator[str | SourceClass]:
    """Yield the bases of a class and theirs, nearest first.

    Args:
        of: The class.
        within: Top-level packages that are looked into, besides the class's own; what comes from elsewhere is a
            dotted name.
    """
    for base in of.bases:
        module, _, name = base.rpartition(".")
        if module.partition(".")[0] not in (*within, of.module.partition(".")[0]):
            yield base
            continue
        try:
            found = read_class(module, name)
        except SourceError:
            yield base
            continue
        yield found
        yield from ancestors(found, within)


def import_problem(module: str, distribution: str = "") -> str | None:
    """Say why importing a module must fail, as far as the source of it and of its packages tells.

    Args:
        module: Its dotted name.
        distribution: What ships it, if that may have an extra for what it lacks.
    """
    parts = module.split(".")
    try:
        for depth in range(1, len(parts) + 1):
            name = ".".join(parts[:depth])
            file = find_module(name)
            for node in _parse(file).body:
                if isinstance(node, ast.Raise):
                    return f"{file}:{node.lineno} raises an error on import"
                for wanted in _needs(node):
                    if wanted != parts[0] and not _is_installed(wanted):
                        reason = f"it needs {wanted}, which is not installed ({file.name}, line {node.lineno})"
                        return reason + install_words(distribution, wanted)
    except SourceError as error:
        return str(error)
    return None


def install_words(distribution: str, package: str) -> str:
    """Say which extra of a distribution brings a package, as its metadata states; empty if none does."""
    extra = extras_of(distribution).get(canonicalize_name(package))
    return f': pip install "{distribution}[{extra}]"' if extra is not None else ""


def extras_of(distribution: str) -> dict[str, str]:
    """Return the extra that brings each optional package of a distribution, by the package's normalised name."""
    try:
        extras = metadata(distribution).get_all("Provides-Extra") or []
        optional = [each for line in requires(distribution) or () if (each := Requirement(line)).marker is not None]
    except (PackageNotFoundError, ValueError):  # ValueError: no name at all
        return {}
    found: dict[str, str] = {}
    for requirement in optional:
        for extra in extras:
            if requirement.marker is not None and requirement.marker.evaluate({"extra": extra}):
                found.setdefault(canonicalize_name(requirement.name), extra)
    return found


def _parse(file: Path) -> ast.Module:
    try:
        return _parse_version(file, file.stat().st_mtime_ns)
    except SyntaxError as error:
        raise SourceError(f"{file}:{error.lineno or 1}: {error.msg}") from None
    except (OSError, ValueError) as error:
        raise SourceError(f"{file} cannot be read: {error}") from None


@cache
def _parse_version(file: Path, modified: int) -> ast.Module:
    return ast.parse(file.read_bytes(), str(file))


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module, those under `if` and `try` too."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _statements([*node.body, *node.orelse])


def _imports(file: Path, module: str) -> dict[str, str]:
    """Return what the names that a module imports stand for, dotted."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    names: dict[str, str] = {}
    for node in _statements(_parse(file).body):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            origin = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, (origin, node.module)))
            names |= {alias.asname or alias.name: f"{source}.{alias.name}" for alias in node.names}
    return names


def _dotted(node: ast.expr, imports: dict[str, str], module: str) -> str:
    if isinstance(node, ast.Subscript):  # Generic[T]
        node = node.value
    name = ast.unparse(node)
    first, dot, rest = name.partition(".")
    if first in imports:
        return f"{imports[first]}{dot}{rest}"
    return name if dot else f"{module}.{name}"


def _constants(node: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    for statement in node.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        targets = [statement.target] if isinstance(statement, ast.AnnAssign) else targets
        value = getattr(statement, "value", None)
        if len(targets) == 1 and isinstance(targets[0], ast.Name) and value is not None:
            try:
                yield targets[0].id, ast.literal_eval(value)
            except ValueError:
                continue


def _needs(node: ast.stmt) -> list[str]:
    """Return the top-level packages that a statement imports, those inside its own package left out."""
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level and node.module:
        return [node.module.partition(".")[0]]
    return []


@cache
def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # a module of the running program without a spec
        return True
