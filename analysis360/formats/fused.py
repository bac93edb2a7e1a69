"""Divide fused matrices into what they hold, and attention matrices by head where that is asked.

Many models keep queries, keys and values in one matrix, or gate and up: a spectrum of that is of
nothing. What a fused matrix holds is in the family tables; how many heads there are is in the
checkpoint's ``config.json``, or in what a trainer saved of its arguments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
_MOST = 10_000  # heads
_QUERY = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_KEY_VALUE = ("num_key_value_heads", "n_kv_heads", "num_kv_heads", "n_head_kv")
_ONE_KEY_VALUE = ("multi_query", "multi_query_attention")
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
    turned = _turned(index, held, refused)
    # Steps last: one is divided if what it counts is
    for tensor in sorted(index.tensors, key=lambda t: t.state == "step"):
        parts = [tensor]
        if tensor.name in held and tensor.name not in turned:
            parts = _apart(tensor, *held[tensor.name], heads, refused)
        for part in parts:
            made += _by_head(part, family, heads, refused) if per_head else [part]
    skipped = (*index.skipped, *refused.items())
    return replace(index, tensors=tuple(made), skipped=skipped, probes=probes, heads=heads)


def _turned(
    index: Index, held: Mapping[str, tuple[Fused, tuple[str, ...]]], refused: dict[str, str]
) -> set[str]:
    """Names that a table has as inputs × outputs, of a model that stores outputs × inputs.

    StarCoder and the first Qwen have GPT-2's names, but not its layout.
    """
    sides = {t.name: t.shape for t in index.tensors if t.state != "step" and len(t.shape) == 2}
    found = set()
    for name, (one, parts) in held.items():
        rows, columns = sides.get(f"{name.rpartition('.')[0]}.weight", (0, 0))
        if one.columns and columns != len(parts) * rows:
            found.add(name)
            refused[name] = (
                f"not divided into {', '.join(one.modules)}: its matrix, {rows} × {columns}, is "
                f"not that of inputs by {len(parts)} times as many outputs"
            )
    return found


def _apart(
    tensor: TensorInfo,
    one: Fused,
    names: tuple[str, ...],
    heads: Heads | None,
    refused: dict[str, str],
) -> list[TensorInfo]:
    """Tensors that a fused one holds; itself, with a reason noted, if it can't be divided."""
    if tensor.state == "step":
        whole = tensor.name in refused
        return [tensor] if whole else [replace(tensor, name=name) for name in names]
    axis = 1 if one.columns and len(tensor.shape) == 2 else 0
    length = tensor.shape[axis] if tensor.shape else 0
    ranges = _ranges(one, length, heads)
    if isinstance(ranges, str):
        refused[tensor.name] = f"not divided into {', '.join(one.modules)}: {ranges}"
        return [tensor]
    return _cut(tensor, dict(zip(names, ranges, strict=True)), axis, refused)


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
        whole = tensor.name in refused
        return [tensor] if whole else [replace(tensor, name=name) for name in names]
    axis = 1 if is_transposed(family) and len(tensor.shape) == 2 else 0
    length = tensor.shape[axis] if tensor.shape else 0
    if length % count or length == 0:
        refused[tensor.name] = f"not divided by head: {length} rows of {count} heads"
        return [tensor]
    size = length // count
    ranges = {n: [(i * size, i * size + size)] for i, n in enumerate(names)}
    return _cut(tensor, ranges, axis, refused)


def _cut(
    tensor: TensorInfo, ranges: Mapping[str, list[Range]], axis: int, refused: dict[str, str]
) -> list[TensorInfo]:
    if axis == 0:
        return split(tensor, _strips(tensor.shape, ranges))
    rows = [_whole_rows(part, tensor.shape) for part in tensor.parts]
    if None in rows:
        refused[tensor.name] = "its columns are not divided: a file holds parts of its rows"
        return [tensor]
    return [_columns(tensor, name, cut, rows) for name, (cut,) in ranges.items()]


def _whole_rows(part: Part, shape: tuple[int, ...]) -> Range | None:
    """Rows of a matrix that a part is; None if it has some of their elements only."""
    width = shape[1]
    if part.box is not None:
        return part.box[0] if part.box[1] == (0, width) else None
    low, high = part.flat or (0, 0)
    return None if low % width or high % width else (low // width, high // width)


def _strips(shape: tuple[int, ...], ranges: Mapping[str, list[Range]]) -> Iterator[Strip]:
    rest = tuple((0, n) for n in shape[1:])
    for name, cuts in ranges.items():
        rows = sum(stop - start for start, stop in cuts)
        at = 0
        for start, stop in cuts:
            box = ((at, at + stop - start), *rest)
            yield Strip(start, stop, name, (rows, *shape[1:]), box)
            at += stop - start


def _columns(tensor: TensorInfo, name: str, cut: Range, rows: Sequence[Range | None]) -> TensorInfo:
    """Some columns of a matrix, as views with strides of the rows that its parts are."""
    width, parts = cut[1] - cut[0], []
    for part, held in zip(tensor.parts, rows, strict=True):
        assert held is not None
        down, across = part.stride or (tensor.shape[1], 1)
        size = DTYPE_BYTES[part.dtype]
        span = 1 + (held[1] - held[0] - 1) * down + (width - 1) * across
        box, offset = (held, (0, width)), part.offset + cut[0] * across * size
        view = Part(part.file, offset, span * size, part.dtype, box=box, stride=(down, across))
        parts.append(view)
    shape = (tensor.shape[0], width)
    return TensorInfo(name, tensor.key, tensor.state, shape, tensor.dtype, tuple(parts))


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
    one = any(said.get(key) is True for key in _ONE_KEY_VALUE)
    key_value = _count(said, _KEY_VALUE) or (1 if one else query)
    if query is None or key_value is None:
        return None, reader.probes
    return Heads(query, key_value), reader.probes


def _count(said: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    found = (said.get(key) for key in keys)
    return next((v for v in found if type(v) is int and 0 < v <= _MOST), None)
