"""`framework plugins new NAME`: a working plugin to start from, as one file or as a whole package."""

import keyword
import re
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from framework import __version__
from framework.cli.arguments import CommandParser
from framework.errors import ConfigError
from framework.source import SourceError, find_module

GROUPS = {
    "backbone": "backbones",
    "head": "heads",
    "detection_head": "heads",
    "loss": "losses",
    "depth_loss": "losses",
    "data": "data",
}
USES = {  # how an experiment takes each, on top of one that runs without any download
    "backbone": "--model.backbone {name}",
    "head": "--model.head {name}",
    "detection_head": "--model.head {name}",
    "loss": "--model.loss {name}",
    "depth_loss": "--model.loss {name}",
    "data": "--data {name}",
}
EPILOG = """examples:
  framework plugins new MyNet
  framework plugins new my_loss --kind loss
  framework plugins new mynet --package"""


def run(arguments: Sequence[str]) -> int:
    """Write a plugin; returns the exit code."""
    parser = CommandParser(
        prog="framework plugins new", description="Write a plugin that works as it stands.", epilog=EPILOG
    )
    parser.add_argument("name", help="MyNet or my_net: the class becomes MyNet, the file my_net.py")
    parser.add_argument("--kind", choices=GROUPS, default="backbone", help="what it is (default backbone)")
    parser.add_argument("--package", action="store_true", help="an installable package with tests and CI")
    parser.add_argument("--into", metavar="FOLDER", type=Path, default=Path(), help="where to write it (default here)")
    options = parser.parse_known(arguments)
    module, name = _module_name(options.name), _class_name(options.name)
    written = _package(module, name, options.kind) if options.package else {f"{module}.py": _source(name, options.kind)}
    _write(options.into, written)
    print(f"written: {', '.join(str(options.into / file) for file in written)}\n")
    if options.package:
        folder = options.into / module
        _say_next(f"pip install -e {folder}", f"framework plugins check {name}", name, options.kind, "")
    else:
        file = options.into / f"{module}.py"
        _say_next("", f"framework plugins check {file}", name, options.kind, f" --plugins {file}")
    return 0


def _say_next(install: str, check: str, name: str, kind: str, plugins: str) -> None:
    use = USES[kind].format(name=name)
    experiment = {"detection_head": "fcos_cells", "depth_loss": "depth_sample"}.get(kind, "unet_seg")
    train = f"fit --config experiments/{experiment}.yaml {use}{plugins}"
    print("next:\n" + "\n".join(f"  {line}" for line in (install, check, train) if line))


def _words(name: str) -> list[str]:
    """Split `MyNet`, `my_net`, `my-net` and `CNN2d` into lower-case words.

    Raises:
        ConfigError: The name cannot be that of a class and a file.
    """
    words = re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z0-9]+", name)
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name) or not words:
        raise ConfigError(f"{name} cannot be the name of a plugin: use letters, digits and _, such as MyNet")
    return [word.lower() for word in words]


def _class_name(name: str) -> str:
    return (
        name
        if name[0].isupper() and name.isidentifier() and "_" not in name
        else "".join(word.capitalize() for word in _words(name))
    )


def _module_name(name: str) -> str:
    """Return the name of the file.

    Raises:
        ConfigError: It is a word of Python, or the name of an installed module, which would be imported instead.
    """
    module = "_".join(_words(name))
    if keyword.iskeyword(module) or module in sys.stdlib_module_names:
        raise ConfigError(f"{module} is a name of Python's own: choose another")
    try:
        there = find_module(module)
    except SourceError:
        return module
    raise ConfigError(f"there is a module {module} already ({there}): choose another name")


def _source(name: str, kind: str) -> str:
    template = files("framework.templates").joinpath(f"{kind}.py").read_text(encoding="utf-8")
    return template.replace("NewPlugin", name)


def _write(folder: Path, written: dict[str, str]) -> None:
    """Write files, all or none.

    Raises:
        ConfigError: One of them is there already.
    """
    there = [file for file in written if (folder / file).exists()]
    if there:
        raise ConfigError(f"{folder / there[0]} is there already: remove it, or choose another name or --into FOLDER")
    for file, text in written.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _package(module: str, name: str, kind: str) -> dict[str, str]:
    """Return the files of a package by path."""
    words = kind.replace("_", " ")
    values = {"MODULE": module, "CLASS": name, "KIND": kind, "GROUP": GROUPS[kind], "VERSION": __version__}
    values |= {"WORDS": words, "USE": USES[kind].format(name=name)}

    def fill(text: str) -> str:
        for key, value in values.items():
            text = text.replace(f"@{key}@", value)
        return text

    return {
        f"{module}/pyproject.toml": fill(PYPROJECT),
        f"{module}/README.md": fill(README),
        f"{module}/.gitignore": "__pycache__/\n*.egg-info/\nbuild/\ndist/\n/runs/\n",
        f"{module}/.github/workflows/test.yml": fill(WORKFLOW),
        f"{module}/src/{module}/__init__.py": f'"""{name}, a {words} for the Vision Plugin Framework."""\n',
        f"{module}/src/{module}/py.typed": "",
        f"{module}/src/{module}/{kind}.py": _source(name, kind),
        f"{module}/tests/test_{module}.py": fill(TESTS),
    }


PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "@MODULE@"
version = "0.1.0"
description = "@CLASS@, a @WORDS@ for the Vision Plugin Framework"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["vision-plugin-framework>=@VERSION@"]

[project.optional-dependencies]
test = ["pytest>=8"]

[project.entry-points."framework.@GROUP@"]
@CLASS@ = "@MODULE@.@KIND@:@CLASS@"

[tool.setuptools.packages.find]
where = ["src"]

[tool.setuptools.package-data]
@MODULE@ = ["py.typed"]

[tool.pytest.ini_options]
testpaths = ["tests"]
"""

README = """\
# @CLASS@

A @WORDS@ for the Vision Plugin Framework. Say here what it is, where it comes from, and under which licence its weights
are.

```console
$ pip install -e ".[test]" && pytest
$ framework plugins check @CLASS@
$ fit --config EXPERIMENT.yaml @USE@
```
"""

TESTS = '''\
"""@CLASS@ keeps its contract."""

from framework.conformance import parametrize_with_checks
from @MODULE@.@KIND@ import @CLASS@


@parametrize_with_checks({"@CLASS@": @CLASS@}, kind="@GROUP@")
def test_it_conforms(make, check):
    check(make)
'''

WORKFLOW = """\
name: test
on: [push, pull_request]
jobs:
  test:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with: {python-version: "3.11"}
      - run: pip install -e ".[test]"
      - run: pytest
"""
