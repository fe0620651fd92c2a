"""The data check: every file of every split is looked at before training, and everything wrong is listed at once."""

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from framework import __version__
from framework.data.loader import Samples
from framework.errors import DataError

SHOWN = 6  # problems in a message
NAMED = 3  # pairs of duplicates in a warning


def check_splits(
    splits: dict[str, Samples], rules: str, cache: Path | None = None, shown: int | None = SHOWN
) -> list[str]:
    """Decode every sample of every split.

    Args:
        splits: Samples by split name.
        rules: Everything besides the files that the verdict depends on (classes, ignore index, ...).
        cache: Folder that remembers good verdicts by the files' names, sizes and times; None: none.
        shown: How many problems the message lists; None: all.

    Returns:
        Warnings: what is odd with a split, and images that stand in two splits.

    Raises:
        DataError: Samples are wrong; the first few are in the message, all are listed in a file it names.
    """
    verdict = cache / f"{_fingerprint(splits, rules)}.json" if cache is not None else None
    remembered = _recall(verdict)
    if remembered is not None:
        return remembered
    found = [(name, problem) for name, samples in splits.items() for problem in _problems(samples)]
    remarks = {name: samples.remarks() for name, samples in splits.items()}
    if not found:
        stops = [name for name in splits if name == "train" or _wrong_in_every_split(splits[name])]
        found = [(name, problem) for name in stops for problem in remarks[name][0]]
    if found:
        raise DataError(report([f"{name}: {problem}" for name, problem in found], "bad sample", shown))
    warnings = [f"{name}: {remark}" for name, (wrong, odd) in remarks.items() for remark in [*wrong, *odd]]
    warnings += _leaks(splits)
    _remember(verdict, warnings)
    return warnings


def _recall(verdict: Path | None) -> list[str] | None:
    """Return the warnings of an earlier good verdict; a cache that cannot be read is no cache."""
    try:
        return [str(line) for line in json.loads(verdict.read_text())] if verdict is not None else None
    except (OSError, ValueError, TypeError):
        return None


def _remember(verdict: Path | None, warnings: list[str]) -> None:
    """Keep a good verdict, if it can be kept."""
    if verdict is None:
        return
    with suppress(OSError):
        verdict.parent.mkdir(parents=True, exist_ok=True)
        partial = verdict.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(warnings))
        partial.replace(verdict)


def _wrong_in_every_split(samples: Samples) -> bool:
    """Return whether what is wrong with these samples as a whole is so outside training too, as they say."""
    return bool(getattr(samples, "wrong_in_every_split", False))


def _problems(samples: Samples) -> Iterable[str]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without the interpreter lock
        return [problem for problem in pool.map(samples.problem, range(len(samples))) if problem is not None]


def report(problems: list[str], what: str, shown: int | None = SHOWN) -> str:
    """List the first few problems, and all of them in a file if there are more.

    Args:
        problems: What is wrong, a line each.
        what: What is wrong, in a word or two, such as "bad sample".
        shown: How many are listed; None: all.
    """
    lines = [f"{len(problems)} {what}{'s' if len(problems) > 1 else ''} in the data:"]
    shown = len(problems) if shown is None else shown
    lines += [f"  {problem}" for problem in problems[:shown]]
    if len(problems) > shown:
        lines.append(f"  ... and {len(problems) - shown} more{_listing('data_problems.txt', problems)}")
    return "\n".join(lines)


def _listing(name: str, lines: list[str]) -> str:
    """Write all lines to a file, if it can be written, and say where."""
    path = Path(name).absolute()
    try:
        path.write_text("\n".join(lines) + "\n")
    except OSError:
        return ""
    return f", all listed in {path}"


def _leaks(splits: dict[str, Samples]) -> list[str]:
    """Find images whose very bytes stand in two splits. Only files of equal size are read."""
    alike: dict[int, list[tuple[str, str]]] = {}
    for name, samples in splits.items():
        for index in range(len(samples)):
            for source in samples.sources(index)[:1]:
                alike.setdefault(os.stat(source).st_size, []).append((source, name))
    suspects = [file for files in alike.values() if len({name for _, name in files}) > 1 for file in files]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = list(pool.map(_digest, [source for source, _ in suspects]))
    first: dict[bytes, tuple[str, str]] = {}
    leaks = []
    for digest, (source, name) in zip(digests, suspects, strict=True):
        other, split = first.setdefault(digest, (source, name))
        if split != name:
            leaks.append(f"{source} ({name}) = {other} ({split})")
    if not leaks:
        return []
    leaks.sort()
    count = f"{len(leaks)} image{'s stand' if len(leaks) > 1 else ' stands'} in another split too, to the byte"
    more = f", and {len(leaks) - NAMED} more" if len(leaks) > NAMED else ""
    where = _listing("data_duplicates.txt", leaks) if more else ""
    return [f"{count}: {', '.join(leaks[:NAMED])}{more}{where}"]


def _digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()


def _fingerprint(splits: dict[str, Samples], rules: str) -> str:
    digest = hashlib.blake2b(f"{__version__} {rules}".encode(), digest_size=16)
    for name, samples in splits.items():
        for index in range(len(samples)):
            for source in samples.sources(index):
                stat = os.stat(source) if os.path.exists(source) else None
                mark = f"{name}|{source}|{stat and stat.st_size}|{stat and stat.st_mtime_ns}\n"
                digest.update(mark.encode(errors="surrogateescape"))
    return digest.hexdigest()
