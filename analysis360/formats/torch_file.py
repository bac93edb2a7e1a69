"""One file of ``torch.save``: what its pickle says, and where the bytes of its storages are.

Since torch 1.6 it is a zip file with one pickle and one uncompressed record per storage; before, it
was five pickles and then the storages, each with its count of elements. Read are the directory and
the pickles, by ranges and without running anything.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from analysis360.core import DTYPE_BYTES, Part
from analysis360.errors import FormatError
from analysis360.formats.base import HeaderReader
from analysis360.formats.inert import Storage, StoredTensor, short
from analysis360.formats.layout import Stretch
from analysis360.formats.unpickle import CutShort, storages_in, unpickle, unpickle_many
from analysis360.formats.zip import ZIP_TAIL, ZipFile

__all__ = ["NotTorch", "TorchFile", "open_torch"]

PICKLE_LIMIT = 256_000_000  # bytes; 100,000 tensors take about 20 MB
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch before 1.6 starts with this number
_FIRST = 1 << 16  # bytes that are tried first for the pickles of an old file
_VERSION = 1001  # of the old format; there was no other


class NotTorch(FormatError):
    """The file is none of torch's."""


@dataclass
class TorchFile:
    """What one file holds.

    Attributes
    ----------
    path : str
    where : str
        Store and file, for error messages.
    root : object
        What was saved: plain containers, `StoredTensor` and inert stand-ins.
    """

    path: str
    where: str
    root: Any
    _zip: ZipFile | None = None
    _legacy: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def why_unread(self, value: StoredTensor) -> str:
        """Why a tensor's bytes cannot be read; empty if they can."""
        if value.dtype not in DTYPE_BYTES:
            return f"dtype {value.dtype} is not read"
        if any(n > 1 and s == 0 for n, s in zip(value.shape, value.stride, strict=True)):
            return f"an expanded view, strides {list(value.stride)}"
        return ""

    def part(self, value: StoredTensor, key: str) -> Part | None:
        """Give the one part that a tensor is; None if it has no elements.

        Raises
        ------
        FormatError
            If its storage is missing or shorter than the tensor.
        """
        numel = math.prod(value.shape)
        if numel == 0:
            return None
        if value.contiguous:
            run = self.stretch(value, key)
            size = DTYPE_BYTES[value.dtype]
            return Part(self.path, run.offset, numel * size, value.dtype, flat=(0, numel))
        span = 1 + sum((n - 1) * s for n, s in zip(value.shape, value.stride, strict=True))
        offset, nbytes = self._bytes(value, key, span)
        box = tuple((0, n) for n in value.shape)
        return Part(self.path, offset, nbytes, value.dtype, box=box, stride=value.stride)

    def stretch(self, value: StoredTensor, key: str) -> Stretch:
        """Give where the elements of a contiguous tensor lie.

        Raises
        ------
        FormatError
            If it is not contiguous, or its storage is missing or shorter than the tensor.
        """
        numel = math.prod(value.shape)
        if not value.contiguous:
            raise FormatError(f"{self.where}: {key!r}: a view with strides {list(value.stride)}")
        offset, _ = self._bytes(value, key, numel)
        return Stretch(self.path, offset, value.dtype, 0, numel)

    def _bytes(self, value: StoredTensor, key: str, span: int) -> tuple[int, int]:
        """Byte range of `span` elements from the first one of a tensor."""
        size = DTYPE_BYTES.get(value.dtype)
        if size is None:
            raise FormatError(f"{self.where}: {key!r}: dtype {value.dtype} is not read")
        start, nbytes = value.offset * size, span * size
        at, held = self._storage(value.storage.key, key)
        if start + nbytes > held:
            raise FormatError(
                f"{self.where}: {key!r}: bytes {start}…{start + nbytes} of a record of {held} bytes"
            )
        return at + start, nbytes

    def _storage(self, name: str, key: str) -> tuple[int, int]:
        """First byte and number of bytes of a storage."""
        if self._zip is None:
            if name not in self._legacy:
                raise FormatError(f"{self.where}: {key!r}: its storage {name!r} is missing")
            return self._legacy[name]
        record = self._zip.records.get(f"data/{name}")
        if record is None:
            raise FormatError(f"{self.where}: {key!r}: its record data/{name} is missing")
        return self._zip.data_offset(record), record.size


def open_torch(
    reader: HeaderReader,
    path: str,
    start: int = 0,
    size: int | None = None,
    tail: int = ZIP_TAIL,
) -> TorchFile:
    """Read the directory and the pickle of one file of ``torch.save``.

    Parameters
    ----------
    reader : HeaderReader
    path : str
    start, size : int, optional
        Where in the file it lies, if it is a part of one (as in distributed checkpoints).
    tail : int
        Bytes at its end that are read first; fewer do for a file that is known to hold little.

    Raises
    ------
    NotTorch
        If it is something else.
    FormatError
        If it is damaged.
    """
    where = f"{reader.store.uri}: {path}"
    try:
        file = ZipFile(reader, path, start, size, tail)
    except FormatError as error:
        held = (reader.files[path] - start) if size is None else size
        first = reader.read(path, start, min(len(_LEGACY), max(held, 0)))
        if first[:2] == b"PK":  # a zip file that is damaged
            raise
        if first == _LEGACY and start == 0 and size is None:
            return _open_legacy(reader, path, where)
        raise NotTorch(f"{where}: not a file of torch.save") from error
    file.prefetch(("data.pkl", "byteorder"), PICKLE_LIMIT)
    root = unpickle(file.content("data.pkl", PICKLE_LIMIT), f"{where}: data.pkl")
    if "byteorder" in file.records and file.content("byteorder", 16) != b"little":
        raise FormatError(f"{where}: written on a big-endian machine, which isn't read")
    return TorchFile(path, where, root, file)


def _open_legacy(reader: HeaderReader, path: str, where: str) -> TorchFile:
    """Magic number, protocol version, machine, object, names of storages; then the storages."""
    size = reader.files[path]
    window = min(_FIRST, size)
    head = reader.read(path, 0, window)
    while True:
        try:
            (_, version, machine, root, names), end = unpickle_many(head, 5, where)
            break
        except CutShort:
            if window == size or window >= PICKLE_LIMIT:
                raise
            more = min(3 * window, size - window, PICKLE_LIMIT - window)
            head += reader.read(path, window, more)
            window += more
    if version != _VERSION or not isinstance(machine, dict):
        raise FormatError(
            f"{where}: version {short(version)} of torch's old format; {_VERSION} is read"
        )
    if machine.get("little_endian") is not True:
        raise FormatError(f"{where}: written on a big-endian machine, which isn't read")
    return TorchFile(path, where, root, None, _storages(reader, path, where, root, names, end))


def _storages(
    reader: HeaderReader, path: str, where: str, root: Any, names: Any, at: int
) -> dict[str, tuple[int, int]]:
    """Offsets of the storages of an old file: they follow each other in the order of `names`."""
    known: dict[str, Storage] = {}
    for storage in storages_in(root):
        other = known.setdefault(storage.key, storage)
        if (other.dtype, other.numel) != (storage.dtype, storage.numel):
            raise FormatError(f"{where}: storage {storage.key!r} is said to be of two sizes")
    are_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not are_names or sorted(names) != sorted(known):
        raise FormatError(f"{where}: its list of storages is not that of its tensors")
    found: dict[str, tuple[int, int]] = {}
    for name in names:
        nbytes = known[name].numel * DTYPE_BYTES[known[name].dtype]
        found[name] = (at + 8, nbytes)
        at += 8 + nbytes
    size = reader.files[path]
    if at != size:
        raise FormatError(f"{where}: its storages end at {at}, the file at {size}: cut short?")
    if names:  # one of the counts, to see that they are where they should be
        first, nbytes = found[names[0]]
        count = struct.unpack("<q", reader.read(path, first - 8, 8))[0]
        if count != known[names[0]].numel:
            raise FormatError(f"{where}: storage {names[0]!r} has {count} elements, not as said")
    return found
