"""What the ``.metadata`` of a torch distributed checkpoint says: tensors, their chunks, and blobs.

It is a pickle of dataclasses of ``torch.distributed.checkpoint.metadata``. The same names and
fields are used by every torch since 2.0 and by OLMo-core's own writer; fields that came later
(``storage_meta``, ``version``, ``transform_descriptors``) may be missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from analysis360.core import DTYPE_BYTES
from analysis360.errors import FormatError
from analysis360.formats.base import HeaderReader
from analysis360.formats.inert import Global, Record, is_size
from analysis360.formats.layout import Box
from analysis360.formats.sharded import is_inside
from analysis360.formats.torch_file import PICKLE_LIMIT
from analysis360.formats.unpickle import unpickle

__all__ = ["Blob", "Chunk", "Metadata", "Saved", "SavedTensor", "read_metadata"]

_MOST_DIMENSIONS = 64  # as in torch
Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Blob:
    """A byte range of one file in which one chunk, or one object, lies as ``torch.save`` wrote it.

    `file` is the path in the store.
    """

    file: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """One box of a tensor, and its blob."""

    box: Box
    blob: Blob

    @property
    def sides(self) -> tuple[int, ...]:
        """Number of elements in each dimension."""
        return tuple(b - a for a, b in self.box)


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """One tensor: `key` in the flattened state dict, and `path` in the one that was saved.

    `path` is the key alone where the writer did not flatten.
    """

    key: str
    path: Path
    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Saved:
    """One object that is no tensor."""

    key: str
    path: Path
    blob: Blob


@dataclass(frozen=True)
class Metadata:
    """What one ``.metadata`` says, in the order of the state dict.

    Attributes
    ----------
    where : str
        Store and file, for error messages.
    flattened : bool
        Whether paths are told, so that a dot in a name is not taken for a level.
    tensors : tuple of SavedTensor
    objects : tuple of Saved
    skipped : tuple of (str, str)
        Key, and why it is left out.
    """

    where: str
    flattened: bool
    tensors: tuple[SavedTensor, ...]
    objects: tuple[Saved, ...]
    skipped: tuple[tuple[str, str], ...]


def read_metadata(reader: HeaderReader, path: str) -> Metadata:
    """Read and check one ``.metadata``; nothing that its pickle names is imported or called.

    Raises
    ------
    FormatError
        If it is cut short or no such pickle, if anything in it has a wrong type, or if a blob is
        not in its file or its file is not in the folder.
    """
    where, size = f"{reader.store.uri}: {path}", reader.files[path]
    if size > PICKLE_LIMIT:
        raise FormatError(f"{where}: {size} bytes; {PICKLE_LIMIT} are read at most")
    root = unpickle(reader.read(path, 0, size), where)
    fields = _fields(root, "Metadata", where)
    entries = _mapping(fields.get("state_dict_metadata"), f"{where}: state_dict_metadata")
    folder = path[: path.rfind("/") + 1]
    blobs = _blobs(reader.files, folder, where, fields.get("storage_data"))
    planned = fields.get("planner_data")
    paths = planned if isinstance(planned, dict) else {}
    tensors: list[SavedTensor] = []
    objects: list[Saved] = []
    skipped: list[tuple[str, str]] = []
    for key, entry in entries.items():
        if not isinstance(key, str):
            raise FormatError(f"{where}: a key of the state dict is {_short(key)}, not text")
        what = _class_of(entry)
        if what == "TensorStorageMetadata":
            found = _tensor(f"{where}: {key!r}", key, _path(key, paths), entry, blobs)
            if isinstance(found, str):
                skipped.append((key, found))
            else:
                tensors.append(found)
        elif what == "BytesStorageMetadata":
            if (key, None) not in blobs:
                raise FormatError(f"{where}: {key!r}: storage_data doesn't say where it is")
            objects.append(Saved(key, _path(key, paths), blobs[key, None]))
        else:
            skipped.append((key, f"neither a tensor nor an object but {what or _short(entry)}"))
    return Metadata(where, bool(paths), tuple(tensors), tuple(objects), tuple(skipped))


def _path(key: str, paths: Mapping[Any, Any]) -> Path:
    """Path in the nested state dict; the key itself where it isn't told."""
    path = paths.get(key)
    if isinstance(path, (tuple, list)) and path:
        if all(isinstance(level, str) or is_size(level) for level in path):
            return tuple(path)
    return (key,)


def _tensor(
    where: str, key: str, path: Path, entry: Record, blobs: Mapping[tuple[str, Any], Blob]
) -> SavedTensor | str:
    """Check one tensor's entry; the reason, if its dtype isn't read."""
    fields = _fields(entry, "TensorStorageMetadata", where)
    dtype = _dtype(where, fields.get("properties"))
    if dtype not in DTYPE_BYTES:
        return f"dtype {dtype} is not read"
    shape = _sizes(f"{where}: size", fields.get("size"))
    listed = fields.get("chunks")
    if not isinstance(listed, list):
        raise FormatError(f"{where}: its chunks are {_short(listed)}, not a list")
    boxes = (_box(where, chunk, shape) for chunk in listed)
    # Replicas repeat a chunk, and ranks without rows of an uneven split have an empty one.
    kept = dict.fromkeys(box for box in boxes if all(a < b for a, b in box))
    chunks = tuple(_chunk(where, key, box, DTYPE_BYTES[dtype], blobs) for box in kept)
    return SavedTensor(key, path, shape, dtype, chunks)


def _chunk(
    where: str, key: str, box: Box, size: int, blobs: Mapping[tuple[str, Any], Blob]
) -> Chunk:
    start = tuple(a for a, _ in box)
    blob = blobs.get((key, start))
    if blob is None:
        raise FormatError(f"{where}: storage_data doesn't say where the chunk at {start} is")
    nbytes = math.prod(b - a for a, b in box) * size
    if nbytes > blob.nbytes:
        raise FormatError(
            f"{where}: the chunk at {start} takes {nbytes} bytes, its blob in {blob.file} has "
            f"{blob.nbytes}"
        )
    return Chunk(box, blob)


def _box(where: str, chunk: Any, shape: tuple[int, ...]) -> Box:
    fields = _fields(chunk, "ChunkStorageMetadata", where)
    starts = _sizes(f"{where}: offsets of a chunk", fields.get("offsets"))
    sides = _sizes(f"{where}: sizes of a chunk", fields.get("sizes"))
    if not len(starts) == len(sides) == len(shape) or any(
        a + n > most for a, n, most in zip(starts, sides, shape, strict=True)
    ):
        raise FormatError(
            f"{where}: a chunk of {list(sides)} at {list(starts)} is not in {list(shape)}"
        )
    return tuple((a, a + n) for a, n in zip(starts, sides, strict=True))


def _dtype(where: str, properties: Any) -> str:
    """Name of a dtype: the first of the properties' values, or by name."""
    state = properties.state if isinstance(properties, Record) else None
    found = state.get("dtype") if isinstance(state, dict) else None
    if isinstance(state, tuple) and state:
        found = state[0]
    if not isinstance(found, Global) or found.module != "torch":
        raise FormatError(f"{where}: its dtype is {_short(found)}")
    return found.name


def _blobs(
    files: Mapping[str, int], folder: str, where: str, storage: Any
) -> dict[tuple[str, tuple[int, ...] | None], Blob]:
    """Blob of every key, and of every chunk by its place."""
    found: dict[tuple[str, tuple[int, ...] | None], Blob] = {}
    for index, info in _mapping(storage, f"{where}: storage_data").items():
        fields = _fields(index, "MetadataIndex", where)
        key, start = fields.get("fqn"), fields.get("offset")
        if not isinstance(key, str):
            raise FormatError(f"{where}: storage_data: a key is {_short(key)}, not text")
        if start is not None:
            start = _sizes(f"{where}: {key!r}: offset", start)
        blob = _blob(files, folder, f"{where}: {key!r}", info)
        if found.setdefault((key, start), blob) != blob:
            raise FormatError(f"{where}: {key!r}: storage_data gives two places for one chunk")
    _no_overlap(where, found.items())
    return found


def _blob(files: Mapping[str, int], folder: str, where: str, info: Any) -> Blob:
    fields = _fields(info, "_StorageInfo", where)
    name, offset, nbytes = (fields.get(f) for f in ("relative_path", "offset", "length"))
    if not isinstance(name, str) or not is_inside(name):
        raise FormatError(f"{where}: is said to be in {_short(name)}, outside the folder")
    if fields.get("transform_descriptors"):
        raise FormatError(
            f"{where}: was written through {_short(fields['transform_descriptors'])}; compressed "
            "checkpoints can't be read by range"
        )
    if folder + name not in files:
        raise FormatError(f"{where}: is said to be in {folder + name}, which is missing")
    if not is_size(offset) or not is_size(nbytes):
        raise FormatError(f"{where}: offset {_short(offset)} and length {_short(nbytes)}")
    if offset + nbytes > files[folder + name]:
        raise FormatError(
            f"{where}: bytes {offset}…{offset + nbytes} of {folder + name}, which has "
            f"{files[folder + name]}: cut short?"
        )
    return Blob(folder + name, offset, nbytes)


def _no_overlap(where: str, placed: Iterable[tuple[tuple[str, Any], Blob]]) -> None:
    spans = sorted((b.file, b.offset, b.offset + b.nbytes, key) for (key, _), b in placed)
    for (file, first, end, last), (next_file, start, _, key) in zip(spans, spans[1:]):
        if file == next_file and start < end:
            # torch's writer of safetensors inside these files says that all tensors begin at once
            why = ": safetensors in it? They aren't read" if first == start else ""
            raise FormatError(f"{where}: {key!r} and {last!r} overlap in {file}{why}")


def _class_of(value: Any) -> str:
    made_by = value.made_by if isinstance(value, Record) else None
    return made_by.name if isinstance(made_by, Global) else ""


def _fields(value: Any, name: str, where: str) -> dict[Any, Any]:
    """Fields of a dataclass, whichever module its class is in: writers have copies of them."""
    if _class_of(value) != name or not isinstance(value.state, dict):
        raise FormatError(f"{where}: expected a {name}, found {_short(value)}")
    return value.state


def _mapping(value: Any, where: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise FormatError(f"{where}: expected a dictionary, found {_short(value)}")
    return value


def _sizes(where: str, value: Any) -> tuple[int, ...]:
    """Sizes, as a `torch.Size` or a plain sequence."""
    if not isinstance(value, (tuple, list)) or not all(map(is_size, value)):
        raise FormatError(f"{where}: expected integers from 0, found {_short(value)}")
    if len(value) > _MOST_DIMENSIONS:
        raise FormatError(f"{where}: {len(value)} dimensions; {_MOST_DIMENSIONS} are read at most")
    return tuple(value)


def _short(value: Any) -> str:
    """Show a value in an error: never its depth, for `repr` of nested containers is recursive."""
    if isinstance(value, Record):
        text = f"a {_class_of(value) or 'made object'}"
    elif isinstance(value, (list, tuple)) and len(value) < 100 and all(map(_is_plain, value)):
        text = repr(value)
    else:
        text = repr(value) if _is_plain(value) else f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def _is_plain(value: Any) -> bool:
    if isinstance(value, int):  # Python refuses to write out those of thousands of digits
        return value.bit_length() < 1000
    return value is None or isinstance(value, (str, float, bytes))
