"""The safetensors format: 8 bytes of length, a JSON header, then the tensors' bytes.

Source: the format's specification, https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from analysis360.core import DTYPE_BYTES, Adam, Part, TensorInfo
from analysis360.errors import FormatError
from analysis360.formats.base import Format, HeaderReader, Index, formats
from analysis360.formats.olmo import read_olmo
from analysis360.formats.sharded import (
    HEADER_LIMIT,
    base_name,
    check_shard,
    is_optimizers,
    own_files,
    parse_json,
    shards_of,
)
from analysis360.storage.base import Store

__all__ = ["SafetensorsFormat"]

_PROBE = 100_000  # bytes; holds the header of nearly every shard, so one request is enough
_MOST_DIMENSIONS = 64  # as in torch
_DTYPES = {
    "F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "C64": "complex64",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
    "U16": "uint16", "U32": "uint32", "U64": "uint64",
}  # fmt: skip
_UNREAD = {"F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F4", "F6_E2M3", "F6_E3M2"}
_ENDS = (".safetensors", ".safetensors.index.json")
_STATES = ("exp_avg", "exp_avg_sq", "master", "step")


@dataclass(frozen=True)
class _Header:
    """What one file says: its tensors, its free text, and the first bytes after the header."""

    path: str
    entries: dict[str, TensorInfo]
    skipped: tuple[tuple[str, str], ...]
    metadata: Mapping[str, str]
    start: int
    head: bytes


class SafetensorsFormat(Format):
    """Weights and named optimizer states in safetensors files.

    Read are ``*.safetensors`` at the top, or in a folder called model, weights, optimizer or
    optim: single files, and shards listed in a ``*.safetensors.index.json``, several groups of
    them too. In files whose name or folder starts with ``optim`` the keys are ``<param>.exp_avg``,
    ``<param>.exp_avg_sq``, ``<param>.master`` and ``<param>.step``. The encoded keys of OLMo's
    ``model.safetensors`` and ``optim.safetensors`` are read too, and its parameter groups.
    """

    name = "safetensors"

    def matches(self, files: Mapping[str, int]) -> bool:
        """Whether there is a safetensors file, or the index of missing ones."""
        return bool(own_files(files, _ENDS))

    def index(self, store: Store) -> Index:
        """List the tensors of all groups of files.

        Raises
        ------
        FormatError
            If a header lies, a file is cut short, a shard of an index is missing, index and shard
            disagree, or two files hold the same tensor.
        """
        reader = HeaderReader(store)
        own = own_files(reader.files, _ENDS)
        shards = shards_of(reader, (p for p in own if p.endswith(".json")))
        single = [p for p in own if not p.endswith(".json") and p not in shards]
        others = [p for p in single if not base_name(p).startswith("consolidated")]
        model = bool(shards) or not all(map(is_optimizers, others))
        copies = [p for p in single if model and p not in others]
        skipped = [(path, "a second copy of the weights, in Mistral's layout") for path in copies]
        paths = sorted({*shards, *single} - {*copies})
        headers = _headers(reader, paths)
        for header in headers:
            held = {*header.entries, *(key for key, _ in header.skipped)}
            for path, keys in shards.get(header.path, {}).items():
                check_shard(store.uri, path, header.path, held, keys)
        return _index(reader, headers, skipped)


formats.add("safetensors", SafetensorsFormat())


def _headers(reader: HeaderReader, paths: list[str]) -> list[_Header]:
    if len(paths) < 2:
        return [_header(reader, path) for path in paths]
    with ThreadPoolExecutor(min(8, len(paths))) as pool:  # against latency: one probe a shard
        return list(pool.map(lambda path: _header(reader, path), paths))


def _header(reader: HeaderReader, path: str) -> _Header:
    """Read and check the header of one file."""
    where, size = f"{reader.store.uri}: {path}", reader.files[path]
    if size < 8:
        raise FormatError(f"{where}: {size} bytes, too short for a safetensors header")
    head = reader.read(path, 0, min(_PROBE, size))
    length = int.from_bytes(head[:8], "little")
    start = 8 + length
    if length > HEADER_LIMIT:
        raise FormatError(f"{where}: header of {length} bytes; the limit is {HEADER_LIMIT}")
    if start > size:
        raise FormatError(f"{where}: cut short: header ends at {start}, the file at {size}")
    if start > len(head):
        head += reader.read(path, len(head), start - len(head))
    if head[8:9] != b"{":
        raise FormatError(f"{where}: not a safetensors file: its header isn't a JSON object")
    fields = parse_json(where, head[8:start])
    metadata = _metadata(where, fields.pop("__metadata__", {}))
    entries: dict[str, TensorInfo] = {}
    skipped: list[tuple[str, str]] = []
    spans: list[tuple[int, int, str]] = []
    for key, value in fields.items():
        dtype, shape, low, high = _entry(f"{where}: {key!r}", value, size - start)
        spans.append((low, high, key))
        if dtype in _UNREAD:
            skipped.append((key, f"dtype {dtype} is not read"))
            continue
        entries[key] = _tensor(
            f"{where}: {key!r}", path, key, dtype, shape, start + low, high - low
        )
    _no_overlap(where, spans)
    return _Header(path, entries, tuple(skipped), metadata, start, head)


def _metadata(where: str, value: object) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise FormatError(f"{where}: '__metadata__' must be an object of strings")
    return value


def _entry(where: str, value: object, room: int) -> tuple[str, tuple[int, ...], int, int]:
    """Check one tensor's entry against the bytes that there are for data."""
    if not isinstance(value, dict):
        raise FormatError(f"{where}: expected an object, found {type(value).__name__}")
    dtype, shape, span = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or (dtype not in _DTYPES and dtype not in _UNREAD):
        raise FormatError(f"{where}: unknown dtype {dtype!r}; known: {', '.join(_DTYPES)}")
    if not _counts(shape) or len(shape) > _MOST_DIMENSIONS:  # type: ignore[arg-type]
        raise FormatError(f"{where}: shape must be a list of integers from 0, not {_short(shape)}")
    if not _counts(span) or len(span) != 2 or span[0] > span[1]:  # type: ignore[arg-type,index]
        raise FormatError(f"{where}: data_offsets must be two rising integers, not {_short(span)}")
    low, high = span  # type: ignore[misc]
    if high > room:
        raise FormatError(
            f"{where}: ends at byte {high} of the data, but the file has {room}: cut short?"
        )
    return dtype, tuple(shape), low, high  # type: ignore[arg-type]


def _counts(value: object) -> bool:
    """Whether this is a list of integers that a 64-bit offset can hold."""
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _tensor(
    where: str, path: str, key: str, dtype: str, shape: tuple[int, ...], offset: int, nbytes: int
) -> TensorInfo:
    ours, numel = _DTYPES[dtype], math.prod(shape)
    if numel * DTYPE_BYTES[ours] != nbytes:
        raise FormatError(
            f"{where}: shape {list(shape)} of {dtype} takes {numel * DTYPE_BYTES[ours]} bytes, "
            f"data_offsets give {nbytes}"
        )
    part = Part(path, offset, nbytes, ours, flat=(0, numel))
    return TensorInfo(key, key, "weight", shape, ours, (part,) if numel else ())


def _no_overlap(where: str, spans: Iterable[tuple[int, int, str]]) -> None:
    end, last = 0, ""
    for low, high, key in sorted(spans):
        if low < high:
            if low < end:
                raise FormatError(f"{where}: {key!r} and {last!r} overlap")
            end, last = high, key


def _index(reader: HeaderReader, headers: list[_Header], skipped: list[tuple[str, str]]) -> Index:
    """Name states, refuse duplicates, and gather what the files tell of the optimizer."""
    tensors: dict[tuple[str, str], TensorInfo] = {}
    steps: list[tuple[TensorInfo, _Header]] = []
    adam: Adam | None = None
    told: dict[str, str] = {}
    for header in headers:
        skipped += header.skipped
        where = f"{reader.store.uri}: {header.path}"
        olmo = read_olmo(where, header.entries, partial(_content, reader, header))
        if olmo is not None:
            named, adam = olmo.tensors, olmo.adam if adam is None else adam.filled(olmo.adam)
            skipped += olmo.skipped
        elif is_optimizers(header.path):
            told |= header.metadata
            named = _states(header, skipped)
        else:
            named = list(header.entries.values())
        for tensor in named:
            place = tensor.name, tensor.state
            if place in tensors:
                other = _where(tensors[place])
                raise FormatError(
                    f"{reader.store.uri}: {tensor.key!r} is both in {other} and {header.path}"
                )
            tensors[place] = tensor
            if tensor.state == "step" and tensor.numel == 1:
                steps.append((tensor, header))
    step = _whole(told.get("step"))
    if step is None and steps:
        step = _step(reader, *steps[0])
    adam = _adam(told) if adam is None else adam
    return Index(tuple(tensors.values()), adam, step, tuple(skipped), reader.probes)


def _where(tensor: TensorInfo) -> str:
    return tensor.parts[0].file if tensor.parts else "another file"


def _states(header: _Header, skipped: list[tuple[str, str]]) -> list[TensorInfo]:
    """States of an optimizer's file, by the endings of their keys."""
    found = []
    for key, tensor in header.entries.items():
        name, _, state = key.rpartition(".")
        if name and state in _STATES:
            found.append(replace(tensor, name=name, state=state))
        else:
            skipped.append((key, f"its ending is none of {', '.join(_STATES)}"))
    return found


def _content(reader: HeaderReader, header: _Header, tensor: TensorInfo) -> bytes:
    """Bytes of a small tensor: those that the header's probe brought, else a read."""
    if not tensor.parts:
        return b""
    part = tensor.parts[0]
    raw = header.head[part.offset : part.offset + part.nbytes]
    return raw if len(raw) == part.nbytes else reader.read(part.file, part.offset, part.nbytes)


def _step(reader: HeaderReader, tensor: TensorInfo, header: _Header) -> int | None:
    """Value of a stored step."""
    import numpy as np

    if tensor.dtype not in ("float64", "float32", "int64", "int32"):
        return None
    value = float(np.frombuffer(_content(reader, header, tensor), dtype=tensor.dtype)[0])
    return int(value) if math.isfinite(value) and value >= 0 else None


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() and len(text) < 20 else None


def _adam(told: Mapping[str, str]) -> Adam | None:
    """Hyper-parameters from the free text of optimizer files; None if there are none."""
    values: dict[str, Any] = {}
    for name in Adam.__dataclass_fields__:
        try:
            values[name] = int(told[name]) if name == "decay_from" else float(told[name])
        except (KeyError, ValueError):
            continue
    return Adam(**values) if values else None
