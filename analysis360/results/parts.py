"""Measured sums on disk: whole Parquet files, written aside and renamed."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis360.errors import StorageError, TableError
from analysis360.results.contents import Key

__all__ = ["Parts", "Spans", "write_json"]

_log = logging.getLogger(__name__)

KEYS = ("checkpoint", "reference", "name", "state", "measure", "given")
"""Columns that make a `Key`, in its order."""

SCHEMA = pa.schema(
    [pa.field(name, pa.string()) for name in KEYS]
    + [
        pa.field("start", pa.int64()),
        pa.field("stop", pa.int64()),
        pa.field("opt_step", pa.float64()),
        pa.field("values", pa.list_(pa.float64())),
    ]
)
"""One row is one accumulator over the rows `start:stop` of one tensor; `opt_step` is the optimizer
step stored with the parameter, where there is one."""


Spans = tuple[tuple[int, int], ...]
"""Rows ``(start, stop)`` of several blocks, in order."""


class Parts:
    """Finished sums of a results folder; with no folder they are kept in memory.

    Rows land in whole Parquet files, written aside and renamed, so that a kill leaves either a part
    or no part.

    Parameters
    ----------
    folder : Path or None
    """

    FLUSH_VALUES = 200_000
    FLUSH_SECONDS = 30.0
    """A kill costs what was measured since the last part was written."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._rows: list[Mapping[str, Any]] = []
        self._values = 0
        self._tables: list[pa.Table] = []
        self._flushed = time.monotonic()

    def clean(self) -> None:
        """Put away what an earlier writer left unfinished; only the writer may do this.

        A damaged part is set aside with a warning, and its sums count as not measured.
        """
        if self.folder is None:
            return
        folder = self.folder / "parts"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for aside in folder.glob("*.aside"):
                aside.unlink()
            for path in sorted(folder.glob("part-*.parquet")):
                if _read_part(path, list(SCHEMA.names)) is None:
                    os.replace(path, path.with_suffix(".parquet.damaged"))
        except OSError as error:
            raise StorageError(f"{folder}: cannot be written: {error}") from error

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take rows; they are written when there are many, or after a while."""
        self._rows.extend(rows)
        self._values += sum(len(row["values"]) for row in rows)
        late = time.monotonic() - self._flushed > self.FLUSH_SECONDS
        if self._values >= self.FLUSH_VALUES or late:
            self.flush()

    def flush(self) -> None:
        """Write what is held back."""
        self._flushed = time.monotonic()
        if not self._rows:
            return
        table = pa.Table.from_pylist(self._rows, schema=SCHEMA)
        if self.folder is None:
            self._tables.append(table)
        else:
            self._write(table, self.folder / "parts")
        self._rows, self._values = [], 0

    def _write(self, table: pa.Table, folder: Path) -> None:
        used = [int(p.name[5:11]) for p in folder.glob("part-*.parquet*")]
        path = folder / f"part-{max(used, default=0) + 1:06d}.parquet"
        with _aside(path) as file:
            pq.write_table(table, file, compression="zstd", write_page_checksum=True)

    def tables(self, columns: Sequence[str] = SCHEMA.names) -> Iterable[pa.Table]:
        """Some columns of all parts that can be read."""
        yield from (table.select(list(columns)) for table in self._tables)
        if self.folder is not None:
            paths = sorted((self.folder / "parts").glob("part-*.parquet"))
            yield from (t for p in paths if (t := _read_part(p, list(columns))) is not None)

    def done(self) -> dict[Key, Spans]:
        """Rows ``(start, stop)`` of the blocks that are there, of every key."""
        found: dict[Key, Spans] = {}
        same: dict[Spans, Spans] = {}  # most keys have the same blocks
        for table in self.tables([*KEYS, "start", "stop"]):
            groups = table.group_by(list(KEYS)).aggregate([("start", "list"), ("stop", "list")])
            spans = zip(groups["start_list"].to_pylist(), groups["stop_list"].to_pylist())
            for key, mine in zip(zip(*(groups[name].to_pylist() for name in KEYS)), spans):
                merged = tuple(sorted({*found.get(key, ()), *zip(*mine)}))
                found[key] = same.setdefault(merged, merged)
        return found

    def rows(self, measure: str, checkpoints: Collection[str]) -> pa.Table:
        """Rows of one measure of some checkpoints, with the columns of `SCHEMA`."""
        wanted = pa.array(sorted(checkpoints), pa.string())
        kept = []
        for table in self.tables():
            mask = pc.and_(
                pc.equal(table["measure"], measure), pc.is_in(table["checkpoint"], wanted)
            )
            kept.append(table.filter(mask))
        return pa.concat_tables(kept or [SCHEMA.empty_table()])

    def measures(self) -> list[str]:
        """Measures of which there is any row."""
        found: set[str] = set()
        for table in self.tables(["measure"]):
            found |= set(pc.unique(table["measure"]).to_pylist())
        return sorted(found)


def _read_part(path: Path, columns: list[str]) -> pa.Table | None:
    try:
        names = pq.read_schema(path).names
        if names == SCHEMA.names:
            return pq.read_table(path, columns=columns, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        _log.warning("%s is damaged (%s); what it held counts as not measured", path, error)
        return None
    raise TableError(f"{path}: written by another version; columns {names}")


@contextmanager
def _aside(path: Path) -> Iterator[IO[bytes]]:
    """Write a file aside and rename it, so that it is there whole or not at all."""
    aside = path.with_suffix(".aside")
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise StorageError(f"{path}: cannot be written: {error}; earlier parts are kept") from error


def write_json(path: Path, said: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    with _aside(path) as file:
        file.write(json.dumps(said, indent=None, separators=(",", ":")).encode())
