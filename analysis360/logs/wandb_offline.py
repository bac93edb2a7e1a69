"""An offline run of Weights & Biases: ``offline-run-<time>-<id>/run-<id>.wandb``.

The file is a log of LevelDB's form, blocks of 32 KiB, whose records are protocol buffers. The
messages are those of the package ``wandb``; the blocks are taken apart here, since wandb has had no
reader of them in Python since it moved that into its own service.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from analysis360.errors import LogError
from analysis360.logs.source import LogFormat, Source, as_frame, cell

__all__ = ["FORMAT", "scalars"]

_MAGIC = b":W&B"
_BLOCK, _HEADER = 32768, 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def sniff(source: Source) -> bool:
    """A ``.wandb`` file, its folder, or a ``wandb`` folder of such folders."""
    if source.is_folder:
        return bool(_found(source.path))
    return source.head.startswith(_MAGIC)


def read(source: Source) -> pd.DataFrame:
    """Read the whole history; of a run that was resumed, its folders in order of time."""
    rows: list[dict[str, Any]] = []
    truncated = 0
    for path in _files(source):
        counts = {"truncated": 0}
        rows += _history(path, counts)
        truncated += counts["truncated"]
    if not rows:
        raise LogError(f"{source.path}: the log is empty: the run logged no history")
    return as_frame(dict(enumerate(rows)), "row", truncated=truncated, sparse=True)


def _found(folder: Path) -> list[Path]:
    # "latest-run", a link to one of the others, is named like none
    return sorted([*folder.glob("run-*.wandb"), *folder.glob("*run-*/run-*.wandb")])


def _files(source: Source) -> list[Path]:
    if not source.is_folder:
        return [source.path]
    found = _found(source.path)
    if len({path.name for path in found}) > 1:
        names = [str(path.relative_to(source.path)) for path in found]
        raise LogError(f"{source.path}: several runs, {names}; pass one of these")
    return found


def scalars(row: dict[str, Any]) -> dict[str, Any]:
    """Numbers and texts of a row of history; histograms, images and tables are left out."""
    return {name: cell(v) for name, v in row.items() if not isinstance(v, (dict, list))}


def _history(path: Path, counts: dict[str, int]) -> Iterator[dict[str, Any]]:
    try:
        from wandb.proto import wandb_internal_pb2
    except ImportError as missing:
        raise LogError(
            f"{path}: offline runs of Weights & Biases are read with an extra: "
            "pip install analysis360[wandb]"
        ) from missing
    for number, data in enumerate(_records(path, counts)):
        try:
            record = wandb_internal_pb2.Record.FromString(data)
        except Exception as problem:
            raise LogError(f"{path}: record {number} is damaged: {problem}") from problem
        if record.WhichOneof("record_type") != "history":
            continue
        row: dict[str, Any] = {}
        if record.history.HasField("step"):
            row["_step"] = record.history.step.num
        for item in record.history.item:
            name = "/".join(item.nested_key) or item.key
            row[name] = json.loads(item.value_json)
        yield scalars(row)


def _records(path: Path, counts: dict[str, int]) -> Iterator[bytes]:
    """Records of the blocks; what is cut off at the end is counted."""
    data = path.read_bytes()
    at, parts = _HEADER, list[bytes]()
    while at < len(data):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER:  # too little for a header: zeros
            at += left
            continue
        if at + _HEADER > len(data):
            break
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if kind not in (_FULL, _FIRST, _MIDDLE, _LAST) or length > left - _HEADER:
            if not any(data[at:]):  # a file that was made longer before it was written to
                break
            raise LogError(f"{path}: damaged at byte {at}: no record begins there")
        end = at + _HEADER + length
        if end > len(data):
            break
        parts.append(data[at + _HEADER : end])
        at = end
        if kind in (_FULL, _LAST):
            yield b"".join(parts)
            parts = []
    counts["truncated"] = int(at < len(data) or bool(parts))


FORMAT = LogFormat("wandb_offline", "an offline run of Weights & Biases (run-*.wandb)", sniff, read)
