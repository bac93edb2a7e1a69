"""Where the elements of stored arrays belong in named tensors: strips, boxes, and what covers what.

Trainers store a parameter in pieces: split over ranks, fused with its neighbours, cut anywhere in a
flat buffer. A format says which rows of a stored array fill which box of a named tensor (a `Strip`)
and which elements of the array lie in one stretch of a file (a `Stretch`); `place` works out the
parts, and an `Assembly` checks that they cover every element of every tensor once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from analysis360.core import DTYPE_BYTES, Part, TensorInfo
from analysis360.errors import FormatError

__all__ = ["Assembly", "Box", "Strip", "Stretch", "boxes", "place", "split", "whole"]

Box = tuple[tuple[int, int], ...]
"""One ``(start, stop)`` for each dimension."""

_CELLS = 10_000_000
"""Pieces into which the cuts of one tensor may divide it, when it is checked for overlaps."""


@dataclass(frozen=True, slots=True)
class Strip:
    """Rows ``start:stop`` of a stored array, which fill a box of the tensor `name` in C order.

    A row is one index of the array's first dimension; a scalar has one. `shape` is that of the
    whole tensor, and the box holds as many elements as the rows do.
    """

    start: int
    stop: int
    name: str
    shape: tuple[int, ...]
    box: Box


@dataclass(frozen=True, slots=True)
class Stretch:
    """Elements ``start:stop`` of a stored array, in C order, which lie together in a file.

    `offset` is the byte of the first of them.
    """

    file: str
    offset: int
    dtype: str
    start: int
    stop: int


def whole(name: str, shape: Sequence[int]) -> Strip:
    """Give the strip of an array that is the tensor `name` itself."""
    shape = tuple(shape)
    return Strip(0, shape[0] if shape else 1, name, shape, tuple((0, n) for n in shape))


def boxes(sides: Sequence[int], start: int, stop: int) -> Iterator[Box]:
    """Give the boxes, in C order, that the elements `start:stop` of an array make up.

    There are at most ``2 n - 1`` of them in `n` dimensions.

    Examples
    --------
    >>> list(boxes((4, 10), 7, 25))
    [((0, 1), (7, 10)), ((1, 2), (0, 10)), ((2, 3), (0, 5))]
    >>> list(boxes((), 0, 1))
    [()]
    """
    if start >= stop:
        return
    if not sides:
        yield ()
        return
    width = math.prod(sides[1:])
    first, last = -(-start // width), stop // width
    if first > last:  # inside one row
        for inner in boxes(sides[1:], start - last * width, stop - last * width):
            yield ((last, last + 1), *inner)
        return
    for inner in boxes(sides[1:], start - (first - 1) * width, width) if start % width else ():
        yield ((first - 1, first), *inner)
    if first < last:
        yield ((first, last), *((0, n) for n in sides[1:]))
    for inner in boxes(sides[1:], 0, stop % width):
        yield ((last, last + 1), *inner)


def place(
    shape: Sequence[int], strips: Iterable[Strip], stretch: Stretch
) -> Iterator[tuple[Strip, Part]]:
    """Give the parts of named tensors that lie in a stretch of a stored array.

    Parameters
    ----------
    shape : sequence of int
        Of the stored array.
    strips : iterable of Strip
        What the array's rows are; rows that no strip names are padding.
    stretch : Stretch

    Yields
    ------
    (Strip, Part)
        With a place in the tensor that the strip names.
    """
    width, size = math.prod(shape[1:]), DTYPE_BYTES[stretch.dtype]
    for strip in strips:
        origin = strip.start * width
        low, high = max(stretch.start, origin), min(stretch.stop, strip.stop * width)
        at = stretch.offset + (low - stretch.start) * size
        if (low, high) == (origin, strip.stop * width):  # most are whole, and there are many
            if low < high:
                nbytes = (high - low) * size
                yield strip, Part(stretch.file, at, nbytes, stretch.dtype, box=strip.box)
            continue
        sides = [b - a for a, b in strip.box]
        for box in boxes(sides, low - origin, high - origin) if low < high else ():
            nbytes = math.prod(b - a for a, b in box) * size
            moved = tuple((a + s[0], b + s[0]) for (a, b), s in zip(box, strip.box, strict=True))
            yield strip, Part(stretch.file, at, nbytes, stretch.dtype, box=moved)
            at += nbytes


def split(tensor: TensorInfo, strips: Iterable[Strip]) -> list[TensorInfo]:
    """Divide a fused tensor, whatever parts it lies in, into those that its strips name.

    Parameters
    ----------
    tensor : TensorInfo
    strips : iterable of Strip
        What the rows of the tensor are.

    Returns
    -------
    list of TensorInfo
        With the key, state and dtype of `tensor`.

    Raises
    ------
    FormatError
        If strips do not fill the tensors that they name.
    """
    strips, made = list(strips), Assembly(tensor.key)
    for part in tensor.parts:
        for strip, piece in _cut(tensor.shape, strips, part):
            made.put(strip.name, tensor.state, tensor.key, strip.shape, piece)
    return made.tensors()


def _cut(shape: tuple[int, ...], strips: list[Strip], part: Part) -> Iterator[tuple[Strip, Part]]:
    """Pieces of one part of a fused tensor."""
    if part.flat is not None:
        yield from place(shape, strips, Stretch(part.file, part.offset, part.dtype, *part.flat))
        return
    assert part.box is not None
    rows, *others = part.box
    for strip in strips:
        low, high = max(rows[0], strip.start), min(rows[1], strip.stop)
        cut = part.rows(shape, low, high) if low < high else None
        if cut is None:
            continue
        if len(strip.box) != len(shape) or [b - a for a, b in strip.box[1:]] != list(shape[1:]):
            raise FormatError(f"{strip.name}: rows of a part do not fit its shape {strip.shape}")
        first = strip.box[0][0] + low - strip.start
        columns = ((a + s[0], b + s[0]) for (a, b), s in zip(others, strip.box[1:], strict=True))
        box = ((first, first + high - low), *columns)
        yield strip, Part(cut.file, cut.offset, cut.nbytes, cut.dtype, box=box, stride=cut.stride)


class Assembly:
    """Gathers the parts of tensors, and checks that they fill them.

    Parameters
    ----------
    where : str
        Checkpoint or file, for error messages.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._parts: dict[tuple[str, str], list[Part]] = {}
        self._known: dict[tuple[str, str], tuple[str, tuple[int, ...]]] = {}

    def put(self, name: str, state: str, key: str, shape: tuple[int, ...], part: Part) -> None:
        """Add a part of a tensor; `key` of the first part is the tensor's.

        Raises
        ------
        FormatError
            If an earlier part said another shape or dtype.
        """
        place = name, state
        _, before = self._known.setdefault(place, (key, shape))
        parts = self._parts.setdefault(place, [])
        if before != shape or (parts and parts[0].dtype != part.dtype):
            of = parts[0].dtype if parts else part.dtype
            raise FormatError(
                f"{self._where}: {name} ({state}) is {list(shape)} of {part.dtype} in {part.file}, "
                f"elsewhere {list(before)} of {of}"
            )
        last = parts[-1] if parts else None
        joined = None if last is None else _joined(last, part, shape)
        if joined is None:
            parts.append(part)
        else:
            parts[-1] = joined

    def tensors(self, lacking: list[tuple[str, str]] | None = None) -> list[TensorInfo]:
        """Give the tensors, in the order of their first parts.

        Parameters
        ----------
        lacking : list of (str, str), optional
            Where to note the key of a tensor of which elements are missing, and how many there
            are, instead of raising: an optimizer has no state for what was not trained.

        Raises
        ------
        FormatError
            If a tensor is not whole, or two parts hold the same elements of it.
        """
        made = []
        for (name, state), (key, shape) in self._known.items():
            parts = self._parts[name, state]
            held, numel = sum(part.numel for part in parts), math.prod(shape)
            if lacking is not None and held < numel:
                lacking.append((key, f"has {numel} elements, its parts hold {held}"))
            else:
                made.append(self._tensor(name, state, key, shape))
        return made

    def _tensor(self, name: str, state: str, key: str, shape: tuple[int, ...]) -> TensorInfo:
        parts = self._parts[name, state]
        wrong = _covers(shape, parts)
        if wrong:
            files = ", ".join(sorted({part.file for part in parts})[:4])
            raise FormatError(
                f"{self._where}: {name} ({state}), {list(shape)}, {wrong}; its parts are in {files}"
            )
        return TensorInfo(name, key, state, shape, parts[0].dtype, tuple(parts))


def _joined(last: Part, part: Part, shape: tuple[int, ...]) -> Part | None:
    """Make one part of two that follow each other in the file and by whole rows."""
    if (last.file, last.offset + last.nbytes) != (part.file, part.offset):
        return None
    if last.box is None or part.box is None or last.stride or part.stride or not shape:
        return None
    full = tuple((0, n) for n in shape[1:])
    if last.box[1:] != full or part.box[1:] != full or last.box[0][1] != part.box[0][0]:
        return None
    box = ((last.box[0][0], part.box[0][1]), *full)
    return Part(last.file, last.offset, last.nbytes + part.nbytes, last.dtype, box=box)


def _covers(shape: tuple[int, ...], parts: Sequence[Part]) -> str:
    """Say what is wrong if parts do not cover a tensor's elements once; empty if they do."""
    flats = sorted(part.flat for part in parts if part.flat is not None)
    if len(flats) == len(parts):
        return _covers_flat(math.prod(shape), flats)
    found = [b for p in parts for b in ([p.box] if p.box is not None else _flat(shape, p))]
    for box in found:
        if len(box) != len(shape) or any(
            not 0 <= a < b <= n for (a, b), n in zip(box, shape, strict=True)
        ):
            return f"has a part outside of it, {box}"
    held, numel = sum(math.prod(b - a for a, b in box) for box in found), math.prod(shape)
    if held != numel:
        return f"has {numel} elements, its parts hold {held}"
    if len(found) < 2:
        return ""
    cuts = [sorted({edge for box in found for edge in box[d]}) for d in range(len(shape))]
    if math.prod(len(c) - 1 for c in cuts) > _CELLS:
        return "lies in too many pieces to be checked"
    seen = np.zeros([len(c) - 1 for c in cuts], dtype=np.int32)
    at = [{edge: i for i, edge in enumerate(c)} for c in cuts]
    for box in found:
        seen[tuple(slice(at[d][a], at[d][b]) for d, (a, b) in enumerate(box))] += 1
    return "" if (seen == 1).all() else "has elements that two parts hold"


def _covers_flat(numel: int, flats: list[tuple[int, int]]) -> str:
    """As `_covers`, of parts cut in one order: there may be as many as ranks, each cut mid-row."""
    if flats and not 0 <= flats[0][0] <= flats[-1][1] <= numel:
        return f"has a part outside of it, elements {flats[0][0]}…{flats[-1][1]}"
    held = sum(stop - start for start, stop in flats)
    if held != numel:
        return f"has {numel} elements, its parts hold {held}"
    twice = any(a[1] > b[0] for a, b in itertools.pairwise(flats))
    return "has elements that two parts hold" if twice else ""


def _flat(shape: tuple[int, ...], part: Part) -> Iterator[Box]:
    assert part.flat is not None
    return boxes(shape, *part.flat)
