"""Flat buffers of Megatron's distributed optimizer: where each parameter lies in them.

Offsets are not stored. Parameters follow each other in reverse order of the model, because their
gradients become ready in that order; what differs between versions is the padding:

- one buffer, padded at its end to a multiple of the data-parallel ranks (until 2023);
- a list of buckets, each padded at its end (``per_bucket_numel``, core 0.4 to 0.6);
- buckets joined without that padding (``buckets_coalesced``, from core 0.7 on), in which each
  parameter may begin at a multiple of 64 elements (from core 0.8 on).

Where the sizes admit one layout only, that is it; else nothing is named.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analysis360.formats.inert import StoredTensor, short
from analysis360.formats.layout import Stretch
from analysis360.formats.torch_file import TorchFile

__all__ = ["Piece", "Unsettled", "flat_states"]

STATES = {"param": "master", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}
_ALIGNED = 64  # elements: where a parameter may begin in the buffers of core 0.8 and later


class Unsettled(Exception):
    """The file does not settle which parameter is where."""


@dataclass(frozen=True)
class Piece:
    """One state of one parameter of a rank: where its elements lie, and under which key."""

    param: str
    state: str
    key: str
    stretch: Stretch


def flat_states(
    file: TorchFile,
    chunks: Sequence[Sequence[tuple[str, tuple[int, ...]]]],
    spare: int | None,
    tied: bool,
) -> list[Piece]:
    """Find the states of all parameters of a rank.

    Parameters
    ----------
    file : TorchFile
        ``distrib_optim.pt``.
    chunks : sequence of sequences of (str, tuple of int)
        Key and shape of the parameters, in the order of the model, for each chunk of it.
    spare : int, optional
        Number of data-parallel ranks: a padding is shorter. None if it is not known.
    tied : bool
        Whether the embedding is shared with the head, which then has a bucket of its own.

    Raises
    ------
    Unsettled
        If the sizes fit no layout that is known, or more than one.
    FormatError
        If a buffer is damaged.
    """
    root = file.root
    if isinstance(root, list) and len(root) == 1:  # one optimizer of a chain
        root = root[0]
    if not isinstance(root, dict):
        raise Unsettled("it is not what Megatron's distributed optimizer saves")
    numbers = sorted(key for key in root if type(key) is int)
    if numbers != list(range(len(chunks))):
        raise Unsettled(
            f"it has the buffers {numbers} for {len(chunks)} model chunks: experts and mixed types "
            "have buffers of their own, which are not read"
        )
    found: list[Piece] = []
    for number, params in enumerate(chunks):
        kind, buffers = _buffers(root[number], number)
        told = _told(root, number, kind, root[number][kind])
        sizes = [math.prod(shape) for _, shape in params]
        for state in STATES:
            lengths = [math.prod(tensor.shape) for _, tensor in buffers[state]]
            places = _places(sizes, lengths, told, spare, tied)
            for (name, _), numel, (bucket, start) in zip(params, sizes, places, strict=True):
                key, tensor = buffers[state][bucket]
                run = file.stretch(tensor, key)
                offset = run.offset + 4 * start
                stretch = Stretch(run.file, offset, run.dtype, 0, numel)
                found.append(Piece(name, STATES[state], key, stretch))
    return found


def _buffers(held: Any, number: int) -> tuple[Any, dict[str, list[tuple[str, StoredTensor]]]]:
    """The one data type of a chunk, and the flat tensors of each state with their keys."""
    if not isinstance(held, dict) or len(held) != 1:
        raise Unsettled(f"chunk {number} has not one buffer, of one data type")
    ((kind, world),) = held.items()
    found: dict[str, list[tuple[str, StoredTensor]]] = {}
    for state in STATES:
        value = world.get(state) if isinstance(world, dict) else None
        tensors = value if isinstance(value, list) else [value]
        found[state] = [
            (f"{number}.{state}" + (f".{i}" if isinstance(value, list) else ""), tensor)
            for i, tensor in enumerate(tensors)
            if isinstance(tensor, StoredTensor)
            and len(tensor.shape) == 1
            and tensor.dtype == "float32"
        ]
        if not tensors or len(found[state]) != len(tensors):
            raise Unsettled(f"{number}.{state} is not a flat buffer of float32, or a list of such")
    return kind, found


def _told(root: Any, number: int, kind: Any, world: Any) -> list[int] | None:
    """Elements without padding of each bucket, where the file says so."""
    if "numel_unpadded" in world:
        told = [world["numel_unpadded"]]
    elif "per_bucket_numel_unpadded" in root:
        try:
            told = list(root["per_bucket_numel_unpadded"][number][kind])
        except (LookupError, TypeError):
            raise Unsettled("'per_bucket_numel_unpadded' does not speak of its buffers") from None
    else:
        return None
    if not all(type(n) is int and n >= 0 for n in told):
        raise Unsettled(f"the sizes of its buckets, {short(told)}, are no counts")
    return told


def _places(
    sizes: Sequence[int],
    lengths: Sequence[int],
    told: list[int] | None,
    spare: int | None,
    tied: bool,
) -> list[tuple[int, int]]:
    """Bucket and first element of each parameter, in the order of the model."""
    last_first = list(reversed(sizes))
    if told is None:
        if spare is None:
            raise Unsettled(
                "the number of data-parallel ranks, which bounds the padding, is unknown"
            )
        found = _greedy(last_first, lengths, spare)
    elif len(told) != len(lengths):
        raise Unsettled(f"{len(lengths)} buckets, of which {len(told)} are described")
    else:
        found = _exact(last_first, lengths, told, tied)
    return found[::-1]


def _exact(
    sizes: list[int], lengths: Sequence[int], told: list[int], tied: bool
) -> list[tuple[int, int]]:
    """Fill buckets of known sizes without a gap; or one with the gaps that alignment makes.

    No gap is the only layout of which the sizes add up. Aligned starts are the only other one: if
    buckets were joined, each joint would have left a gap out, and the total would be less. The
    bucket of a shared embedding can add one again, so there no gap is taken for settled.
    """
    if any(n > length for n, length in zip(told, lengths, strict=True)):
        raise Unsettled(f"buckets of {list(lengths)} elements are said to hold {told}")
    found: list[tuple[int, int]] = []
    bucket, at = 0, 0
    for size in sizes:
        while bucket < len(told) and at == told[bucket]:
            bucket, at = bucket + 1, 0
        if bucket == len(told) or at + size > told[bucket]:
            break
        found.append((bucket, at))
        at += size
    if len(found) == len(sizes) and bucket == len(told) - 1 and at == told[bucket]:
        return found
    aligned, end = [], 0
    for size in sizes:
        start = -(-end // _ALIGNED) * _ALIGNED
        aligned.append((0, start))
        end = start + size
    if told == [end] and not tied:
        return aligned
    raise Unsettled(
        f"its buffers hold {sum(told)} elements, the parameters {sum(sizes)}: where the gaps are "
        "is not stored"
    )


def _greedy(sizes: list[int], lengths: Sequence[int], spare: int) -> list[tuple[int, int]]:
    """Fill buckets of which each has less than `spare` elements of padding at its end."""
    found: list[tuple[int, int]] = []
    left = 0
    for bucket, length in enumerate(lengths):
        at, last = 0, bucket == len(lengths) - 1
        while left < len(sizes) and (last or length - at >= spare):
            found.append((bucket, at))
            at += sizes[left]
            left += 1
        if not 0 <= length - at < spare:
            raise Unsettled(
                f"bucket {bucket} of {length} elements is not filled by whole parameters and a "
                f"padding shorter than the {spare} data-parallel ranks"
            )
        if not last and left < len(sizes) and sizes[left] <= length - at:
            raise Unsettled(f"a parameter fits both into bucket {bucket} and into the next")
    if left < len(sizes):
        raise Unsettled(f"there are no buffers for {len(sizes) - left} parameters")
    return found
