"""Where the records of a torch zip file lie, from its last bytes and its directory alone.

Sources: the zip specification (APPNOTE 6.3, sections 4.3 and 4.5.3), and torch's writer
(``caffe2/serialize/inline_container.cc``: records are stored uncompressed, their bytes aligned).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from analysis360.errors import FormatError
from analysis360.formats.base import HeaderReader

__all__ = ["ZIP_TAIL", "ZipFile", "ZipRecord"]

ZIP_TAIL = 65_536 + 98
"""Bytes: the longest comment, and the three records at the end."""

_GAP = 65_536  # bytes that may be read for nothing, to save a request
_DIRECTORY_LIMIT = 256_000_000  # bytes
_LOCAL = 30  # bytes of a local header before the name
_ALIGNMENT = 64
_NO32, _NO16 = 0xFFFFFFFF, 0xFFFF


@dataclass(frozen=True)
class ZipRecord:
    """One record: `header` is the offset of its local header, `size` the bytes stored."""

    name: str
    header: int
    size: int
    flags: int
    name_bytes: int
    wide: int  # bytes of 64-bit fields that the directory entry needed


class ZipFile:
    """The directory of one zip file, read by ranges.

    Parameters
    ----------
    reader : HeaderReader
    path : str
    start, size : int, optional
        Where in the file it lies, if it is a part of one; offsets are then counted from `start`.
    tail : int
        Bytes at its end that are read first: enough for the end record, best for the directory too.

    Attributes
    ----------
    records : dict of str to ZipRecord
        By name without the leading folder, for example ``"data.pkl"`` and ``"data/0"``.

    Raises
    ------
    FormatError
        If the file is no zip file, is cut short, compressed, encrypted, or contradicts itself.
    """

    def __init__(
        self,
        reader: HeaderReader,
        path: str,
        start: int = 0,
        size: int | None = None,
        tail: int = ZIP_TAIL,
    ) -> None:
        self._reader, self.path, self._at = reader, path, start
        self.where = f"{reader.store.uri}: {path}"
        self.size = reader.files[path] - start if size is None else size
        if start < 0 or self.size < 0 or start + self.size > reader.files[path]:
            raise self.bad(f"bytes {start}…{start + self.size} are not in the file")
        self._tail_at = max(0, self.size - tail)
        self._tail = reader.read(path, start + self._tail_at, self.size - self._tail_at)
        self._pieces = [(self._tail_at, self._tail)]
        count, size, offset = self._end()
        if size > _DIRECTORY_LIMIT or offset + size > self.size:
            raise self.bad(f"its directory, {size} bytes at {offset}, is not in the file")
        self._directory_at = offset
        listed = self._entries(self.read(offset, size), count)
        root = next((r.name[: -len("data.pkl")] for r in listed if _is_pickle(r.name)), "")
        self.records = {r.name.removeprefix(root): r for r in listed}
        if len(self.records) != len(listed):
            raise self.bad("two records have the same name")
        self._order = sorted(r.header for r in listed)
        self._following = dict(zip(self._order, [*self._order, offset][1:], strict=True))

    def bad(self, what: str) -> FormatError:
        """Make an error that names the file."""
        return FormatError(f"{self.where}: {what}")

    def read(self, offset: int, nbytes: int) -> bytes:
        """Bytes of the file: from a piece that was read already, else a probe."""
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise self.bad(f"bytes {offset}…{offset + nbytes} are not in a file of {self.size}")
        for at, piece in self._pieces:
            if at <= offset and offset + nbytes <= at + len(piece):
                return piece[offset - at : offset - at + nbytes]
        return self._reader.read(self.path, self._at + offset, nbytes)

    def prefetch(self, names: Iterable[str], limit: int) -> None:
        """Read some records at once if they lie close together: a request costs more than bytes."""
        found = [self.records[name] for name in names if name in self.records]
        low = min((r.header for r in found), default=0)
        high = max((self._following[r.header] for r in found), default=0)
        if low < high <= low + limit and high - low <= sum(r.size for r in found) + _GAP:
            self._pieces.append((low, self.read(low, high - low)))

    def content(self, name: str, limit: int) -> bytes:
        """Read a whole record, its local header with it.

        Raises
        ------
        FormatError
            If there is no such record, or it is larger than `limit` bytes.
        """
        record = self.records.get(name)
        if record is None:
            raise self.bad(f"no record {name!r} in it, so it is not a torch file")
        if record.size > limit:
            raise self.bad(f"record {name!r} has {record.size} bytes; {limit} are allowed")
        raw = self.read(record.header, self._following[record.header] - record.header)
        start = self._start(record, raw)
        return raw[start : start + record.size]

    def data_offset(self, record: ZipRecord) -> int:
        """First byte of a record's content, counted from the start of the file.

        Computed as torch's writer places it, and taken if the end then meets the next record;
        otherwise the local header is read.
        """
        start = record.header + _LOCAL + record.name_bytes + 4
        start += record.wide + 4 if record.wide else 0
        start += -start % _ALIGNMENT
        gap = self._following[record.header] - (start + record.size)
        if gap in ((16, 24) if record.flags & 8 else (0,)):  # 8: sizes are repeated behind
            return self._at + start
        raw = self.read(record.header, min(_LOCAL, self.size - record.header))
        start = record.header + self._start(record, raw)
        if start + record.size > self._following[record.header]:
            raise self.bad(f"record {record.name!r} runs into the next one")
        return self._at + start

    def _start(self, record: ZipRecord, raw: bytes) -> int:
        if raw[:4] != b"PK\x03\x04" or len(raw) < _LOCAL:
            raise self.bad(f"no record at {record.header}, where {record.name!r} should be")
        name, extra = struct.unpack("<HH", raw[26:30])
        return _LOCAL + int(name) + int(extra)

    def _end(self) -> tuple[int, int, int]:
        """Entries, bytes and offset of the directory."""
        at = len(self._tail)
        while (at := self._tail.rfind(b"PK\x05\x06", 0, at)) >= 0:
            if at + 22 <= len(self._tail):
                count, size, offset, comment = struct.unpack("<HIIH", self._tail[at + 10 : at + 22])
                if at + 22 + comment == len(self._tail):
                    break
        if at < 0:
            raise self.bad("no zip directory at its end: cut short, or not a zip file")
        locator = self._tail[at - 20 : at] if at >= 20 else b""
        if locator[:4] == b"PK\x06\x07":
            wide = self.read(struct.unpack("<Q", locator[8:16])[0], 56)
            if wide[:4] != b"PK\x06\x06":
                raise self.bad("its zip64 end record is missing")
            count, size, offset = struct.unpack("<QQQ", wide[32:56])
        return int(count), int(size), int(offset)

    def _entries(self, raw: bytes, count: int) -> list[ZipRecord]:
        found: list[ZipRecord] = []
        at = 0
        while at < len(raw):
            if raw[at : at + 4] != b"PK\x01\x02" or at + 46 > len(raw):
                raise self.bad(f"entry {len(found)} of its directory is damaged")
            record, at = self._entry(raw, at)
            if not record.name.endswith("/"):
                found.append(record)
        if len(found) > count:
            raise self.bad(f"its directory has {len(found)} entries instead of {count}")
        return found

    def _entry(self, raw: bytes, at: int) -> tuple[ZipRecord, int]:
        flags, method = struct.unpack("<HH", raw[at + 8 : at + 12])
        stored, size, name_n, extra_n, comment_n = struct.unpack("<IIHHH", raw[at + 20 : at + 34])
        header = struct.unpack("<I", raw[at + 42 : at + 46])[0]
        end = at + 46 + name_n + extra_n + comment_n
        if end > len(raw):
            raise self.bad("its directory is cut short")
        name = raw[at + 46 : at + 46 + name_n].decode("utf-8", "replace")
        extra = raw[at + 46 + name_n : at + 46 + name_n + extra_n]
        wide = [v for v in (size, stored, header) if v == _NO32]
        if wide:
            fields = iter(self._wide(name, extra, len(wide)))
            size, stored, header = (
                next(fields) if v == _NO32 else v for v in (size, stored, header)
            )
        if flags & 1:
            raise self.bad(f"record {name!r} is encrypted")
        if method != 0 or stored != size:
            raise self.bad(f"record {name!r} is compressed; torch stores records as they are")
        if header + _LOCAL + size > self._directory_at:
            raise self.bad(f"record {name!r}, {size} bytes, is not in the file: cut short?")
        return ZipRecord(name, header, size, flags, name_n, 8 * len(wide)), end

    def _wide(self, name: str, extra: bytes, count: int) -> tuple[int, ...]:
        at = 0
        while at + 4 <= len(extra):
            kind, size = struct.unpack("<HH", extra[at : at + 4])
            if kind == 1 and size >= 8 * count and at + 4 + size <= len(extra):
                return struct.unpack(f"<{count}Q", extra[at + 4 : at + 4 + 8 * count])
            at += 4 + size
        raise self.bad(f"record {name!r} lacks its 64-bit sizes")


def _is_pickle(name: str) -> bool:
    return name.count("/") <= 1 and name.rsplit("/", 1)[-1] == "data.pkl"
