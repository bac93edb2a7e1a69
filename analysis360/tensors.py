"""Where a tensor lies in the files of a checkpoint, and what it is in the model.

A `TensorInfo` is one logical tensor, as a list of `Part`, each a contiguous byte range. A `Label`
says what the tensor is in the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

__all__ = ["DTYPE_BYTES", "Label", "Part", "TensorInfo"]

DTYPE_BYTES: Mapping[str, int] = {
    "float64": 8, "float32": 4, "bfloat16": 2, "float16": 2,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "complex64": 8, "complex128": 16,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
    "uint16": 2, "uint32": 4, "uint64": 8,
}  # fmt: skip
"""Bytes of one element of every dtype that a stored tensor may have."""


@dataclass(frozen=True, slots=True)
class Label:
    """What a tensor is in the model.

    Attributes
    ----------
    layer : int or None
        Number of the transformer block, from 0; None for embeddings, final norm and head.
    module : str
        For example ``"attn.q"``, ``"mlp.down"``, ``"norm.attn"``, ``"embed"``, ``"head"``.
    param : str
        ``"weight"`` or ``"bias"``, or what the model calls it.
    expert, head : int or None
        Number of the expert or attention head, where a tensor belongs to one.
    """

    layer: int | None
    module: str
    param: str = "weight"
    expert: int | None = None
    head: int | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """One contiguous byte range of a file, and where it lies in the logical tensor.

    The place is either a *flat* range of elements in C order, or a *box* of one ``(start, stop)``
    per dimension whose elements the bytes fill in C order: so a tensor-parallel column split, a
    buffer cut in the middle of a row, and a strip of a fused matrix are all sayable.

    Attributes
    ----------
    file : str
        Path inside the checkpoint's store, with forward slashes.
    offset, nbytes : int
        Byte range in the file.
    dtype : str
        A key of `DTYPE_BYTES`.
    flat : tuple of int, optional
        ``(start, stop)`` in elements.
    box : tuple of tuple of int, optional
        ``(start, stop)`` for each dimension. Exactly one of `flat` and `box` is given.
    stride : tuple of int, optional
        Of a `box` that is stored as a strided view: elements from one index to the next, for each
        dimension. The bytes are then the span from the first to the last of its elements.
    """

    file: str
    offset: int
    nbytes: int
    dtype: str
    flat: tuple[int, int] | None = None
    box: tuple[tuple[int, int], ...] | None = None
    stride: tuple[int, ...] | None = None

    @property
    def sides(self) -> tuple[int, ...]:
        """Number of elements in each dimension of the box, or of the flat range."""
        if self.flat is not None:
            return (self.flat[1] - self.flat[0],)
        return tuple(b - a for a, b in self.box or ())

    @property
    def numel(self) -> int:
        """Number of elements of the tensor that it holds."""
        return math.prod(self.sides)

    @property
    def interleaved(self) -> bool:
        """Whether the bytes of a row lie between those of others, as in a transposed matrix."""
        if self.stride is None or not self.stride:
            return False
        return self.stride[0] < _span(self.sides[1:], self.stride[1:])

    def rows(self, shape: tuple[int, ...], start: int, stop: int) -> Part | None:
        """Cut to the rows ``start:stop`` of a tensor of `shape`; None if nothing is left.

        A row is one index of the first dimension. The cut is still placed in the whole tensor.
        """
        size = DTYPE_BYTES[self.dtype]
        if self.flat is not None:
            width = math.prod(shape[1:])
            low = max(self.flat[0], start * width)
            high = min(self.flat[1], stop * width)
            if low >= high:
                return None
            shift = (low - self.flat[0]) * size
            return replace(
                self, offset=self.offset + shift, nbytes=(high - low) * size, flat=(low, high)
            )
        assert self.box is not None
        if not self.box:  # a scalar has one row
            return self if start == 0 < stop else None
        first, sides = self.box[0], self.sides
        low, high = max(first[0], start), min(first[1], stop)
        if low >= high:
            return None
        stride = self.stride or (math.prod(sides[1:]),)
        held = (high - low) * stride[0]
        if self.stride is not None:
            held = _span((high - low, *sides[1:]), self.stride)
        return replace(
            self,
            offset=self.offset + (low - first[0]) * stride[0] * size,
            nbytes=held * size,
            box=((low, high), *self.box[1:]),
        )


def _span(sides: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Elements from the first to the last of a strided view, both included."""
    return 1 + sum((n - 1) * s for n, s in zip(sides, stride, strict=True))


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One logical tensor of a checkpoint, and the bytes it is made of.

    Attributes
    ----------
    name : str
        Canonical parameter name, for example ``"model.layers.0.mlp.up_proj.weight"``.
    key : str
        Key under which it is stored.
    state : str
        ``"weight"``, ``"exp_avg"``, ``"exp_avg_sq"``, ``"master"`` or ``"step"``.
    shape : tuple of int
    dtype : str
        A key of `DTYPE_BYTES`.
    parts : tuple of Part
        Byte ranges; together they cover every element once.
    """

    name: str
    key: str
    state: str
    shape: tuple[int, ...]
    dtype: str
    parts: tuple[Part, ...]

    @property
    def numel(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return sum(part.nbytes for part in self.parts)

    @property
    def scattered(self) -> bool:
        """Whether the bytes are not the elements in C order, aligned, and have to be copied."""
        return len(self.parts) > 1 or any(
            part.stride is not None or part.offset % DTYPE_BYTES[part.dtype] for part in self.parts
        )
