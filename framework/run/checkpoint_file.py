"""Writing a checkpoint file so that it is there as a whole or not at all."""

import errno
import os
import pickle
import secrets
import shutil
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

from framework.errors import UserError

PREVIOUS = "previous.ckpt"  # what may go when the disk is full
NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray)


class CheckpointFile(TorchCheckpointIO):
    """Reads checkpoints as Lightning does, and writes them so that they are whole, checked and durable.

    A temporary file in the same folder is written, flushed to the disk and read back (the zip format has a checksum of
    each tensor; all but the tensors is loaded too) before it takes the place of the old one in one step. Lightning's
    own builds the whole file in memory first.

    When the disk is full the folder's `previous.ckpt` is given up, never the best or the last.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: Tensors and plain types.
            path: Where; what stands there is replaced in one step. A URL is left to Lightning.
            storage_options: For Lightning, of a URL.

        Raises:
            UserError: There is no room, what was written does not read back, or it holds more than tensors and plain
                types. What stood there is intact.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        try:
            _write(checkpoint, path)
        except _Full as full:
            spare = path.parent / PREVIOUS
            if not spare.is_file():
                raise _no_room(path, full) from full
            spare.unlink()
            try:
                _write(checkpoint, path)
            except _Full as again:
                raise _no_room(path, again) from again

    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, location: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint: tensors and plain types, unless the caller says otherwise."""
        return super().load_checkpoint(path, map_location, weights_only is None or weights_only)


def broken_record(path: Path) -> str | None:
    """Say why a file is no whole checkpoint: it is no zip, was cut off, or a record does not match its checksum.

    Returns:
        The reason; None if it is whole.
    """
    try:
        with zipfile.ZipFile(path) as records:
            bad = records.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, ValueError) as error:
        return str(error) or type(error).__name__
    return None if bad is None else f"its record {bad} is damaged"


class _Full(Exception):
    """There is no room for a file.

    Args:
        needed: Its size in bytes.
        reason: What the system said.
    """

    def __init__(self, needed: int, reason: str) -> None:
        super().__init__(reason)
        self.needed, self.reason = needed, reason


class _Stream:
    """A file to write into that keeps the first error instead of raising it through torch's serialization.

    After an error it swallows the rest, and so learns how much room the whole takes.

    Args:
        descriptor: Of the open file.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.size = descriptor, 0
        self.error: BaseException | None = None  # a second Ctrl-C is one, too

    def write(self, data: Any) -> int:
        """Write all of a buffer; returns its size in bytes."""
        rest = memoryview(data).cast("B")
        length = len(rest)
        self.size += length
        while self.error is None and len(rest):
            rest = rest[self._attempt(partial(os.write, self.descriptor, rest)) :]
        return length

    def flush(self) -> None:
        """Bring what was written to the disk."""
        if self.error is None:
            self._attempt(partial(os.fsync, self.descriptor))

    def _attempt(self, call: Callable[[], int | None]) -> int:
        try:
            return call() or 0
        except BaseException as error:
            self.error = error
            return 0


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        _stream(checkpoint, temporary)
        reason = broken_record(temporary)
        if reason is not None:
            raise UserError(
                f"{path}: what was written does not read back ({reason}): check the disk; earlier checkpoints are whole"
            )
        _check_plain(checkpoint, temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _check_plain(checkpoint: dict[str, Any], path: Path) -> None:
    """Load what was written, its tensors left on disk, as everything that reads it later will.

    Raises:
        UserError: It holds an object that is not loaded without running code of its own.
    """
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        place, kind = next(_foreign(checkpoint), ("it", str(error).partition("\n")[0]))
        raise UserError(
            f"the checkpoint could not be loaded again: {place} holds a {kind}: a state may hold tensors and plain "
            "types alone; turn it into one, such as float(value), in the state_dict or on_save_checkpoint that adds it"
        ) from error


def _foreign(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield where in a checkpoint there is something that is neither a tensor nor plain, and its type."""
    if isinstance(value, dict):
        for key, inside in value.items():
            yield from _foreign(key, f"a key of {place or 'it'}")
            yield from _foreign(inside, f"{place}.{key}".lstrip("."))
    elif isinstance(value, list | tuple | set):
        for inside in value:
            yield from _foreign(inside, place)
    elif not isinstance(value, Tensor | torch.dtype | torch.device) and type(value) not in PLAIN:
        yield place, f"{type(value).__module__}.{type(value).__qualname__}"


def _stream(checkpoint: dict[str, Any], path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise _Full(0, str(error.strerror)) from error
        raise
    try:
        stream = _Stream(descriptor)
        torch.save(checkpoint, stream)  # type: ignore[arg-type]  # write and flush are all that it calls
        stream.flush()
    except RuntimeError as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # it came on the way into `write`
            raise error.__context__ from None
        raise
    finally:
        os.close(descriptor)
    kept = stream.error
    if isinstance(kept, OSError) and kept.errno in NO_ROOM:
        raise _Full(stream.size, str(kept.strerror)) from kept
    if isinstance(kept, OSError):
        raise OSError(kept.errno, kept.strerror, str(path)) from kept
    if kept is not None:
        raise kept


def _no_room(path: Path, full: _Full) -> UserError:
    free = shutil.disk_usage(path.parent).free
    path = path.with_name(path.name.removeprefix(".").removesuffix(".tmp"))  # whose place it is to take
    return UserError(
        f"{path} cannot be written: {full.reason}: it takes {full.needed} bytes and {free} are free; make room, then "
        "the same command with --run.id goes on from the last checkpoint, which is whole"
    )


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last, where the system can."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems sync no folders
        pass
    finally:
        os.close(descriptor)
