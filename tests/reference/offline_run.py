"""Read back what W&B wrote to an offline `.wandb` file.

The file is a header of seven bytes and then LevelDB's log format
(https://github.com/google/leveldb/blob/main/doc/log_format.md): blocks of 32 KiB that hold fragments, each with a
checksum (4 bytes), a length (2) and a kind (1: whole, 2: first, 3: middle, 4: last). A record is a protobuf message.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAGIC = b":W&B"
FILE_HEADER, FRAGMENT_HEADER, BLOCK = 7, 7, 32 * 1024
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """What one offline run recorded.

    Args:
        id: Identity of the run.
        name: Display name.
        project: Project of the run.
        history: One dict per logged row, values parsed from JSON.
        config: The configuration.
        exit_code: Of the training process; None if the run did not end.
    """

    id: str = ""
    name: str = ""
    project: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None

    def column(self, key: str) -> list[Any]:
        """Return the values logged under `key`, in order."""
        return [row[key] for row in self.history if key in row]


def read_offline_run(path: Path) -> OfflineRun:
    """Read the `.wandb` file at or below `path`; a torn end, as a killed process leaves it, is ignored.

    Raises:
        ValueError: There is not exactly one such file, or it is no W&B file.
    """
    from wandb.proto import wandb_internal_pb2

    files = [path] if path.is_file() else sorted(path.rglob("*.wandb"))
    if len(files) != 1:
        raise ValueError(f"{path} holds {len(files)} .wandb files, not one")
    run = OfflineRun()
    for record in _records(files[0].read_bytes()):
        message = wandb_internal_pb2.Record()
        message.ParseFromString(record)
        kind = message.WhichOneof("record_type")
        if kind == "run":
            run.id, run.name, run.project = message.run.run_id, message.run.display_name, message.run.project
            run.config |= _items(message.run.config.update)
        elif kind == "config":
            run.config |= _items(message.config.update)
        elif kind == "history":
            run.history.append(_items(message.history.item))
        elif kind == "exit":
            run.exit_code = message.exit.exit_code
    return run


def _records(data: bytes) -> Iterator[bytes]:
    """Join the fragments of each record."""
    if not data.startswith(MAGIC):
        raise ValueError(f"a .wandb file starts with {MAGIC!r}, not {data[:4]!r}")
    offset, record = FILE_HEADER, b""
    while offset + FRAGMENT_HEADER <= len(data):
        rest = BLOCK - offset % BLOCK
        if rest < FRAGMENT_HEADER:  # too short for a header: the writer pads
            offset += rest
            continue
        _, length, kind = struct.unpack_from("<IHB", data, offset)
        offset += FRAGMENT_HEADER
        fragment = data[offset : offset + length]
        offset += length
        if len(fragment) < length or kind not in (WHOLE, FIRST, MIDDLE, LAST):
            return
        record = fragment if kind in (WHOLE, FIRST) else record + fragment
        if kind in (WHOLE, LAST):
            yield record


def _items(items: Any) -> dict[str, Any]:
    """Return key and parsed value of each; nested keys are joined by a slash."""
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
