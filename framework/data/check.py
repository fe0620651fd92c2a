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

SHOWN = 6


def check_splits(splits: dict[str, Samples], rules: str, cache: Path | None = None) -> list[str]:
    """Decode every sample of every split.

    Args:
        splits: Samples by split name.
        rules: Everything besides the files that the verdict depends on (classes, ignore index, ...).
        cache: Folder that remembers good verdicts by the files' names, sizes and times; None: none.

    Returns:
        Warnings: files that lie in two splits.

    Raises:
        DataError: Samples are wrong; the first few are in the message, all are listed in a file it names.
    """
    verdict = cache / f"{_fingerprint(splits, rules)}.json" if cache is not None else None
    remembered = _recall(verdict)
    if remembered is not None:
        return remembered
    found = [(name, problem) for name, samples in splits.items() for problem in _problems(samples)]
    remarks = {name: samples.remarks() for name, samples in splits.items()}
    if not found and "train" in remarks:
        found = [("train", problem) for problem in remarks["train"][0]]
    if found:
        raise DataError(_report(found))
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


def _problems(samples: Samples) -> Iterable[str]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without the interpreter lock
        return [problem for problem in pool.map(samples.problem, range(len(samples))) if problem is not None]


def _report(found: list[tuple[str, str]]) -> str:
    lines = [f"{len(found)} bad sample{'s' if len(found) > 1 else ''} in the data:"]
    lines += [f"  {name}: {problem}" for name, problem in found[:SHOWN]]
    if len(found) > SHOWN:
        listing = Path("data_problems.txt").absolute()
        try:
            listing.write_text("\n".join(f"{name}: {problem}" for name, problem in found) + "\n")
            lines.append(f"  ... and {len(found) - SHOWN} more, all listed in {listing}")
        except OSError:
            lines.append(f"  ... and {len(found) - SHOWN} more")
    return "\n".join(lines)


def _leaks(splits: dict[str, Samples]) -> list[str]:
    """Find images whose very bytes stand in two splits."""
    seen: dict[str, tuple[str, str]] = {}
    leaks = []
    for name, samples in splits.items():
        for index in range(len(samples)):
            for source in samples.sources(index)[:1]:
                digest = hashlib.blake2b(Path(source).read_bytes(), digest_size=16).hexdigest()
                other, path = seen.setdefault(digest, (name, source))
                if other != name:
                    leaks.append(f"{source} ({name}) is the same image as {path} ({other})")
    return leaks


def _fingerprint(splits: dict[str, Samples], rules: str) -> str:
    digest = hashlib.blake2b(f"{__version__} {rules}".encode(), digest_size=16)
    for name, samples in splits.items():
        for index in range(len(samples)):
            for source in samples.sources(index):
                stat = os.stat(source) if os.path.exists(source) else None
                mark = f"{name}|{source}|{stat and stat.st_size}|{stat and stat.st_mtime_ns}\n"
                digest.update(mark.encode(errors="surrogateescape"))
    return digest.hexdigest()
