"""Who is read when, and held how long: blocks, jobs, reads and lifetimes. Pure arithmetic.

A *block* is a range of rows of one tensor; its bounds depend on the shape alone, so that results do
not change with budget, device, file layout or workers. A *job* is one big block, or several small
tensors, taken through all checkpoints: what was read as "current" stays while it serves as the
previous checkpoint, the other branch's partner or the ancestor, and goes at its last use. So every
stored byte is read once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from analysis360.core import DTYPE_BYTES, Part

__all__ = ["Block", "Job", "Piece", "Place", "Read", "blocks", "group", "merge_reads", "peak"]

Place = tuple[int, str, str]
"""A stored tensor: checkpoint, name, state."""

BLOCK = 1 << 23
"""Elements of a block at most (16 MiB in bfloat16), unless one row is longer."""

GAP = 1 << 16
"""Bytes between two ranges up to which one request for both is cheaper than two."""

MAX_READ = 1 << 26
"""Bytes of one request at most, unless one block needs more or pieces overlap."""

ALIGN = 64
"""Buffers are rounded up to a multiple of this many bytes."""


@dataclass(frozen=True, slots=True)
class Block:
    """Rows `start:stop` of the tensor `name`; `index` counts the blocks of the tensor."""

    name: str
    index: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Job:
    """What is taken through the checkpoints together; all blocks of a tensor that is held whole."""

    blocks: tuple[Block, ...]

    @property
    def by_name(self) -> dict[str, tuple[Block, ...]]:
        """Blocks of each tensor."""
        found: dict[str, tuple[Block, ...]] = {}
        for block in self.blocks:
            found[block.name] = (*found.get(block.name, ()), block)
        return found

    @property
    def spans(self) -> dict[str, tuple[int, int]]:
        """Rows of each tensor: its blocks in a job follow each other."""
        found: dict[str, tuple[int, int]] = {}
        for block in self.blocks:
            start, _ = found.get(block.name, (block.start, 0))
            found[block.name] = (start, block.stop)
        return found


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a tensor inside one read; a scattered tensor is put together in another buffer."""

    name: str
    state: str
    part: Part
    scattered: bool = False

    @property
    def copied(self) -> int:
        """Bytes of the other buffer."""
        return self.part.numel * DTYPE_BYTES[self.part.dtype] if self.scattered else 0


@dataclass(frozen=True, slots=True)
class Read:
    """One request: a byte range of a file of one checkpoint, and the pieces that lie in it."""

    checkpoint: int
    file: str
    offset: int
    nbytes: int
    pieces: tuple[Piece, ...]

    @property
    def lead(self) -> int:
        """Bytes left free at the start of the buffer: what a file aligns stays aligned."""
        return self.offset % ALIGN

    @property
    def held(self) -> int:
        """Bytes of the buffer it needs."""
        return -(-(self.lead + self.nbytes) // ALIGN) * ALIGN

    @property
    def copied(self) -> int:
        """Bytes that its pieces take where scattered tensors are put together."""
        return sum(piece.copied for piece in self.pieces)


def blocks(name: str, shape: Sequence[int]) -> tuple[Block, ...]:
    """Cut a tensor into row ranges of at most `BLOCK` elements.

    Examples
    --------
    >>> [(b.start, b.stop) for b in blocks("w", (20000, 1024))]
    [(0, 8192), (8192, 16384), (16384, 20000)]
    >>> [(b.start, b.stop) for b in blocks("scale", ())]
    [(0, 1)]
    """
    rows = shape[0] if shape else 1
    width = math.prod(shape[1:])
    step = max(1, BLOCK // max(width, 1))
    cuts = range(0, rows, step)
    return tuple(Block(name, i, at, min(at + step, rows)) for i, at in enumerate(cuts))


def group(
    order: Mapping[str, Sequence[int]],
    whole: AbstractSet[str],
    columns: Mapping[str, str] | None = None,
    together: Iterable[AbstractSet[str]] = (),
) -> list[tuple[Block, ...]]:
    """Put blocks into jobs: tensors held whole and big blocks alone, small tensors together.

    Parameters
    ----------
    order : mapping of str to shape
        Tensors in the order in which their files hold them.
    whole : set of str
        Tensors of which all blocks must be held at once.
    columns : mapping of str to str, optional
        Tensors that are columns of a stored matrix, to the name of that. Blocks of the same rows
        are taken together: their bytes lie between each other.
    together : iterable of set of str, optional
        Tensors that a step takes together: a job of their own, all of them whole. Sets that share
        a tensor are one.
    """
    jobs: list[tuple[Block, ...]] = []
    small: list[Block] = []
    filled = 0
    beside = _beside(order, columns or {})
    tied = _tied(order, together, beside)
    for name, shape in order.items():
        if name in tied:
            if name == tied[name][0]:
                every = tuple(block for n in tied[name] for block in blocks(n, order[n]))
                jobs.append(every)
            continue
        names = beside.get(name, (name,))
        numel = math.prod(shape)
        if numel * len(names) >= BLOCK // 2:
            if name == names[0]:
                rows = list(zip(*(blocks(n, shape) for n in names), strict=True))
                every = tuple(block for row in rows for block in row)
                jobs += [every] if whole & set(names) else rows
            continue
        if filled + numel > BLOCK:
            jobs.append(tuple(small))
            small, filled = [], 0
        small += blocks(name, shape)
        filled += numel
    return [*jobs, tuple(small)] if small else jobs


def _tied(
    order: Mapping[str, Sequence[int]],
    together: Iterable[AbstractSet[str]],
    beside: Mapping[str, tuple[str, ...]],
) -> dict[str, tuple[str, ...]]:
    """Tensor to all that it must be in one job with, in order."""
    found: dict[str, set[str]] = {}
    for names in together:
        every = {other for name in names for other in beside.get(name, (name,))}
        sets = {id(found[name]): found[name] for name in every if name in found}
        largest = max(sets.values(), key=len, default=set())
        for other in (every, *sets.values()):
            if other is not largest:
                largest |= other
                found |= dict.fromkeys(other, largest)
    place = {name: i for i, name in enumerate(order)}
    ordered = {id(names): tuple(sorted(names, key=place.__getitem__)) for names in found.values()}
    return {name: ordered[id(names)] for name, names in found.items()}


def _beside(
    order: Mapping[str, Sequence[int]], columns: Mapping[str, str]
) -> dict[str, tuple[str, ...]]:
    """Tensor to all those, of its shape, that are columns of the same stored matrix."""
    found: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name in order:
        if name in columns:
            found.setdefault((columns[name], tuple(order[name])), []).append(name)
    return {name: tuple(names) for names in found.values() for name in names}


def merge_reads(checkpoint: int, pieces: Iterable[Piece]) -> list[Read]:
    """Merge the pieces of one checkpoint into requests, in file order.

    Pieces that overlap, as columns of one matrix do, are one request however long it is.
    """
    ordered = sorted(pieces, key=lambda p: (p.part.file, p.part.offset, p.name, p.state))
    reads: list[Read] = []
    for piece in ordered:
        file, offset, stop = (
            piece.part.file,
            piece.part.offset,
            piece.part.offset + piece.part.nbytes,
        )
        last = reads[-1] if reads else None
        if last is not None and last.file == file:
            end = last.offset + last.nbytes
            joined = max(end, stop) - last.offset
            if offset < end or (offset - end <= GAP and joined <= MAX_READ):
                reads[-1] = Read(checkpoint, file, last.offset, joined, (*last.pieces, piece))
                continue
        reads.append(Read(checkpoint, file, offset, stop - offset, (piece,)))
    return reads


def peak(steps: Iterable[tuple[int, Sequence[Read]]], until: Mapping[Place, int]) -> int:
    """Largest number of buffer bytes that a job holds at once.

    Parameters
    ----------
    steps : iterable of (checkpoint, reads)
        In the order in which they are taken.
    until : mapping of (checkpoint, name, state) to int
        Last checkpoint position at which a stored tensor is used.
    """
    live: list[tuple[int, int]] = []
    most = 0
    for position, reads in steps:
        for read in reads:
            last = position
            for piece in read.pieces:
                used = until[read.checkpoint, piece.name, piece.state]
                if piece.scattered:
                    live.append((used, piece.copied))
                else:
                    last = max(last, used)
            live.append((last, read.held))
        most = max(most, sum(size for _, size in live))
        live = [entry for entry in live if entry[0] > position]
    return most
