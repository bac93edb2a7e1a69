"""Divide fused matrices into what they hold, and attention matrices by head where that is asked.

Many models keep queries, keys and values in one matrix, or gate and up: a spectrum of that is of
nothing. What a fused matrix holds is in the family tables; how many heads there are is in the
checkpoint's ``config.json``, or in what a trainer saved of its arguments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from analysis360.core import DTYPE_BYTES, Part, TensorInfo
from analysis360.errors import FormatError
from analysis360.formats.base import HeaderReader, Heads, Index
from analysis360.formats.layout import Strip, split
from analysis360.formats.sharded import parse_json
from analysis360.names import Fused, find_family, fused, is_transposed, label, of_head
from analysis360.storage.base import Store

__all__ = ["divide"]

_CONFIG = "config.json"
_CONFIG_LIMIT = 10_000_000  # bytes
_QUERY = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_KEY_VALUE = ("num_key_value_heads", "n_kv_heads", "num_kv_heads")
_ATTENTION = {"attn.q": "query", "attn.k": "key_value", "attn.v": "key_value"}

Range = tuple[int, int]


def divide(index: Index, store: Store, family: str | None, per_head: bool) -> Index:
    """Divide what is fused.

    Parameters
    ----------
    index : Index
        Of what is stored.
    store : Store
        Where ``config.json`` is read, if the number of heads matters and the index lacks it.
    family : str or None
        Table of names; None takes the one that fits best.
    per_head : bool
        Divide queries, keys and values by head too; those of grouped queries by their own heads.

    Returns
    -------
    Index
        With `skipped` saying which matrices were not divided, and why; they stay in it.

    Raises
    ------
    FormatError
        If ``config.json`` cannot be read.
    """
    names = dict.fromkeys(t.name for t in index.tensors)
    family = family or find_family(names)
    held = {name: known for name in names if (known := fused(name, family)) is not None}
    if family is None or not (held or per_head):
        return index
    heads, probes = index.heads, index.probes
    if heads is None and (per_head or any(one.by != "chunks" for one, _ in held.values())):
        heads, more = _read_heads(store)
        probes += more
    made: list[TensorInfo] = []
    refused: dict[str, str] = {}
    for tensor in index.tensors:
        parts = [tensor]
        if tensor.name in held:
            parts = _apart(tensor, *held[tensor.name], heads, refused)
        for part in parts:
            made += _by_head(part, family, heads, refused) if per_head else [part]
    skipped = (*index.skipped, *refused.items())
    return replace(index, tensors=tuple(made), skipped=skipped, probes=probes, heads=heads)


def _apart(
    tensor: TensorInfo,
    one: Fused,
    names: tuple[str, ...],
    heads: Heads | None,
    refused: dict[str, str],
) -> list[TensorInfo]:
    """Tensors that a fused one holds; itself, with a reason noted, if it can't be divided."""
    if tensor.state == "step":
        return [replace(tensor, name=name) for name in names]
    axis = 1 if one.columns and len(tensor.shape) == 2 else 0
    length = tensor.shape[axis] if tensor.shape else 0
    ranges = _ranges(one, length, heads)
    if isinstance(ranges, str):
        refused[tensor.name] = f"not divided into {', '.join(one.modules)}: {ranges}"
        return [tensor]
    return _cut(tensor, dict(zip(names, ranges, strict=True)), axis)


def _ranges(one: Fused, length: int, heads: Heads | None) -> list[list[Range]] | str:
    """Rows (or columns) of each part; or why they are not known."""
    count = len(one.into)
    if one.by == "chunks":
        if length % count:
            return f"{length} is no multiple of {count}"
        size = length // count
        return [[(i * size, i * size + size)] for i in range(count)]
    if heads is None:
        return f"the number of heads is unknown ({_CONFIG} would tell)"
    if one.by == "each head":
        whole, size = heads.query * count, length // (heads.query * count)
        if length % whole or heads.key_value != heads.query:
            return f"{length} rows are not {count} of each of {heads.query} heads"
        starts = range(0, length, size * count)
        return [[(at + i * size, at + i * size + size) for at in starts] for i in range(count)]
    total = heads.query + 2 * heads.key_value
    if length % total:
        return f"{length} rows are not those of {heads.query} and twice {heads.key_value} heads"
    size, found, at = length // total, [], 0
    for number in (heads.query, heads.key_value, heads.key_value):
        found.append([(at, at + number * size)])
        at += number * size
    return found


def _by_head(
    tensor: TensorInfo, family: str, heads: Heads | None, refused: dict[str, str]
) -> list[TensorInfo]:
    """The heads of a matrix of queries, keys or values."""
    kind = _ATTENTION.get(label(tensor.name, family).module)
    if kind is None:
        return [tensor]
    if heads is None:
        refused[tensor.name] = (
            f"not divided by head: their number is unknown ({_CONFIG} would tell)"
        )
        return [tensor]
    count = getattr(heads, kind)
    names = [of_head(tensor.name, i) for i in range(count)]
    if tensor.state == "step":
        return [replace(tensor, name=name) for name in names]
    axis = 1 if is_transposed(family) and len(tensor.shape) == 2 else 0
    length = tensor.shape[axis] if tensor.shape else 0
    if length % count or length == 0:
        refused[tensor.name] = f"not divided by head: {length} rows of {count} heads"
        return [tensor]
    size = length // count
    return _cut(tensor, {n: [(i * size, i * size + size)] for i, n in enumerate(names)}, axis)


def _cut(tensor: TensorInfo, ranges: Mapping[str, list[Range]], axis: int) -> list[TensorInfo]:
    if axis == 0:
        return split(tensor, _strips(tensor.shape, ranges))
    return [_columns(tensor, name, cut) for name, (cut,) in ranges.items()]


def _strips(shape: tuple[int, ...], ranges: Mapping[str, list[Range]]) -> Iterator[Strip]:
    rest = tuple((0, n) for n in shape[1:])
    for name, cuts in ranges.items():
        rows = sum(stop - start for start, stop in cuts)
        at = 0
        for start, stop in cuts:
            box = ((at, at + stop - start), *rest)
            yield Strip(start, stop, name, (rows, *shape[1:]), box)
            at += stop - start


def _columns(tensor: TensorInfo, name: str, cut: Range) -> TensorInfo:
    """Some columns of a matrix, as a view with strides."""
    rows, width = tensor.shape
    if len(tensor.parts) != 1:
        raise FormatError(f"{tensor.key}: columns of a matrix in {len(tensor.parts)} parts")
    (part,) = tensor.parts
    down, across = part.stride or (width, 1)
    shape = (rows, cut[1] - cut[0])
    size = DTYPE_BYTES[part.dtype]
    span = 1 + (rows - 1) * down + (shape[1] - 1) * across
    box = ((0, rows), (0, shape[1]))
    offset = part.offset + cut[0] * across * size
    view = Part(part.file, offset, span * size, part.dtype, box=box, stride=(down, across))
    return TensorInfo(name, tensor.key, tensor.state, shape, tensor.dtype, (view,))


def _read_heads(store: Store) -> tuple[Heads | None, tuple[tuple[str, int, int], ...]]:
    """Number of heads as ``config.json`` tells it, and what was read for that."""
    size = store.files().get(_CONFIG)
    if size is None:
        return None, ()
    where = f"{store.uri}: {_CONFIG}"
    if size > _CONFIG_LIMIT:
        raise FormatError(f"{where}: {size} bytes; {_CONFIG_LIMIT} are allowed")
    reader = HeaderReader(store)
    said = parse_json(where, reader.read(_CONFIG, 0, size))
    query = _count(said, _QUERY)
    key_value = _count(said, _KEY_VALUE) or (1 if said.get("multi_query") is True else query)
    if query is None or key_value is None:
        return None, reader.probes
    return Heads(query, key_value), reader.probes


def _count(said: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    found = (said.get(key) for key in keys)
    return next((v for v in found if type(v) is int and 0 < v < 1_000_000), None)
