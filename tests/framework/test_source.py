"""What the source of a class says, read without importing it."""

import re
import sys

import pytest

from framework.source import SourceClass, SourceError, ancestors, extras_of, find_module, import_problem, read_class


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write modules of a package that fails as soon as anything of it is imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "bomb").mkdir()

    def write(**modules):
        for name, text in {"__init__": "", **modules}.items():
            (tmp_path / "bomb" / f"{name}.py").write_text(text)

    write()
    yield write
    assert not [name for name in sys.modules if name.partition(".")[0] == "bomb"], "something was imported"


def test_summary_bases_and_constants_are_read_and_nothing_is_imported(package):
    package(
        __init__="from .net import Net as Renamed\n1 / 0\n",
        base="from framework.backbone import Backbone as B\nclass Base(B):\n    licence: str = 'MIT'\n",
        net='from . import base\nclass Net(base.Base):\n    """One\n    sentence.\n\n    More."""\n    size = (1, 2)\n',
    )
    found = read_class("bomb", "Renamed")
    assert (found.name, found.module, found.line, found.summary) == ("Net", "bomb.net", 2, "One sentence.")
    assert found.constants == {"size": (1, 2)}
    names = [base.name if isinstance(base, SourceClass) else base for base in ancestors(found, ("framework",))]
    assert names[:2] == ["Base", "Backbone"]
    assert next(iter(ancestors(found, ()))).constants == {"licence": "MIT"}


def test_what_is_missing_is_named(package):
    package(net="class Net: pass\n", torn="class Net(:\n")
    with pytest.raises(SourceError, match=r"defines no class Nett; did you mean 'Net'\?"):
        read_class("bomb.net", "Nett")
    with pytest.raises(SourceError, match=r"torn\.py:1: "):
        read_class("bomb.torn", "Net")
    with pytest.raises(SourceError, match=r"there is no module bomb\.nowhere"):
        find_module("bomb.nowhere.else")
    with pytest.raises(SourceError, match="there is no module no_such_package"):
        find_module("no_such_package.x")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("import no_such_library.part\n", "it needs no_such_library, which is not installed"),
        ("x = 1\nfrom no_such_library import y\n", r"it needs no_such_library.*line 2"),
        ("raise RuntimeError('not on this machine')\n", r"net\.py:1 raises an error on import"),
        ("def f(:\n", r"net\.py:1: "),
    ],
)
def test_an_import_that_must_fail_is_foreseen(package, source, problem):
    package(net=source)
    assert re.search(problem, import_problem("bomb.net"))


def test_the_extra_that_brings_what_is_lacking_is_named(package, tmp_path, monkeypatch):
    package(net="import no_such_library.part\n")
    info = tmp_path / "their_net-1.0.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", "Name: their-net", "Version: 1.0", "Provides-Extra: all", "Provides-Extra: big"]
    lines += ['Requires-Dist: other; extra == "all"', 'Requires-Dist: No_Such.Library>=2; extra == "big"']
    (info / "METADATA").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert import_problem("bomb.net", "their-net").endswith('(net.py, line 1): pip install "their-net[big]"')
    assert import_problem("bomb.net", "no-such-distribution").endswith("(net.py, line 1)")
    assert import_problem("bomb.net").endswith("(net.py, line 1)")


def test_our_own_extras_bring_what_our_plugins_need():
    found = extras_of("vision-plugin-framework")
    wanted = {"transformers": "huggingface", "peft": "lora", "datasets": "datasets", "pyarrow": "parquet"}
    assert wanted.items() <= found.items()
    assert found["scikit-learn"] == "samples"
    assert "torch" not in found


def test_an_import_that_may_work_is_no_problem(package):
    package(net="try:\n    import no_such_library\nexcept ImportError:\n    no_such_library = None\nimport json\n")
    assert import_problem("bomb.net") is None
    package(__init__="import no_such_library\n")
    assert "no_such_library" in import_problem("bomb.net"), "the package is imported before its module"
