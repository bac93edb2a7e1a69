"""TensorBoard event files: every scalar, as written, with the package ``tensorboard``.

Read by the loader under TensorBoard's own event accumulator, not by the accumulator, which keeps a
sample of each tag (10,000 points) and, where a restart is marked, throws away what it overwrote.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from analysis360.errors import LogError
from analysis360.logs.source import LogFormat, Source, as_frame, cell

__all__ = ["FORMAT"]

_NAME = "*tfevents*"
_OTHER_CLOCK = (" vs samples", " vs tokens", " vs steps")


def sniff(source: Source) -> bool:
    """A file that begins as an event file, or a folder that holds some, at any depth."""
    if source.is_folder:
        return next(source.path.rglob(_NAME), None) is not None
    # the first record says "brain.Event:2"; its length fits a byte
    return len(source.head) == 16 and source.head[1:8] == bytes(7) and source.head[12] == 0x09


def read(source: Source) -> pd.DataFrame:
    """Read the scalars of one run; a folder's event files in the order in which they began.

    A row is a step. Where the steps of a tag go back, a restart began, and rows begin anew. Tags
    that Megatron writes against samples or tokens instead of steps are left out.
    """
    rows: list[dict[str, Any]] = []
    now: dict[int, dict[str, Any]] = {}
    last: dict[str, int] = {}
    skipped = truncated = 0
    for path in _files(source):
        counts = {"truncated": 0}
        for step, tag, value in _scalars(path, counts):
            if tag.endswith(_OTHER_CLOCK):
                skipped += 1
                continue
            if step <= last.get(tag, step - 1) or tag in now.get(step, ()):
                rows += (now[at] for at in sorted(now))
                now, last = {}, {}
            last[tag] = step
            now.setdefault(step, {"step": step})[tag] = cell(value)
        truncated += counts["truncated"]
    rows += (now[at] for at in sorted(now))
    if not rows:
        raise LogError(f"{source.path}: the log is empty: its event files hold no scalar")
    return as_frame(dict(enumerate(rows)), "row", skipped=skipped, truncated=truncated, sparse=True)


def _files(source: Source) -> list[Path]:
    if not source.is_folder:
        return [source.path]
    folders: dict[Path, list[Path]] = {}
    for path in sorted(source.path.rglob(_NAME)):
        folders.setdefault(path.parent, []).append(path)
    if source.path in folders:  # those below it are other runs, or add_scalars of this one
        return folders[source.path]
    if len(folders) > 1:
        names = [str(folder.relative_to(source.path)) for folder in folders]
        raise LogError(f"{source.path}: event files of several runs, in {names}; pass one of these")
    return next(iter(folders.values()))


def _scalars(path: Path, counts: dict[str, int]) -> Iterator[tuple[int, str, float]]:
    """Step, tag and value in the order of writing."""
    try:
        from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
        from tensorboard.compat.proto import event_pb2
        from tensorboard.util import tensor_util
    except ImportError as missing:
        raise LogError(
            f"{path}: TensorBoard's event files are read with an extra: "
            "pip install analysis360[tensorboard]"
        ) from missing
    whole, counts["truncated"] = _records(path)
    done = 0
    scalar: set[str] = set()  # a tag says only once what it is
    for record in RawEventFileLoader(str(path)).Load():
        done += 1
        event = event_pb2.Event.FromString(record)
        for value in event.summary.value:
            if value.HasField("simple_value"):
                yield event.step, value.tag, value.simple_value
                continue
            if value.metadata.plugin_data.plugin_name == "scalars":
                scalar.add(value.tag)
            if value.tag in scalar and value.HasField("tensor"):
                yield event.step, value.tag, float(tensor_util.make_ndarray(value.tensor))
    if done < whole:  # the loader stops without a word
        raise LogError(f"{path}: record {done} of {whole} is damaged: its checksum is wrong")


def _records(path: Path) -> tuple[int, int]:
    """How many records the file holds, and whether the last one is cut short."""
    count = at = 0
    size = path.stat().st_size
    with path.open("rb") as file:
        while at + 12 <= size:
            file.seek(at)
            (length,) = struct.unpack("<Q", file.read(8))
            if at + 16 + length > size:
                break
            at += 16 + length
            count += 1
    return count, int(at < size)


FORMAT = LogFormat("tensorboard", "TensorBoard event files, or a folder of them", sniff, read)
