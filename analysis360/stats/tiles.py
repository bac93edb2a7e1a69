"""How arrays reach the registered functions: in tiles, and in which precision."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["TILE", "count_zeros", "exact", "magnitude", "matrix", "once", "scratch", "sharing"]

TILE = 1 << 18
"""Elements of a tile: two megabytes in float64. Larger ones fall out of the cache; with smaller
ones threads spend their time on handing the interpreter's lock to each other."""

_kept = threading.local()


def scratch(like: torch.Tensor, slot: str, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Memory for an intermediate result, of the size of `like`, used again by the next tile.

    Each thread has its own, one for each `slot`. Fresh memory for every tile would be handed back
    to the system and cleared by it each time, which takes longer than the arithmetic. On a CUDA
    device torch keeps memory itself.

    Parameters
    ----------
    like : torch.Tensor
        Gives size and device.
    slot : str
        Name of the intermediate result; unique in what is in use at one time.
    dtype : torch.dtype, optional
        Float64 by default.
    """
    import torch

    dtype = torch.float64 if dtype is None else dtype
    if like.device.type != "cpu" or like.numel() > TILE:
        return torch.empty(like.shape, dtype=dtype, device=like.device)
    buffers: dict[str, torch.Tensor] = _kept.__dict__.setdefault("buffers", {})
    if slot not in buffers:
        buffers[slot] = torch.empty(TILE, dtype=dtype)
    buffer = buffers[slot]
    flat = buffer if like.numel() == TILE else buffer[: like.numel()]
    return flat if like.dim() == 1 else flat.view(like.shape)


@contextmanager
def sharing() -> Iterator[None]:
    """Within it, accumulators that need the same of the same tile take it once, see `once`.

    For one thread, and for tiles that stay as they are until its end.
    """
    _kept.shared = {}
    try:
        yield
    finally:
        del _kept.shared


def once(what: str, of: tuple[torch.Tensor, ...], make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What `make` gives, or gave for the same tensors if that was the last `what` made.

    Only the last is kept, so `make` may write to a scratch slot of that name. Outside of `sharing`
    it is made each time.

    Parameters
    ----------
    what : str
        Name of the intermediate result.
    of : tuple of torch.Tensor
        All that it depends on.
    make : callable
    """
    shared: dict[str, tuple[tuple[int, ...], torch.Tensor]] | None = _kept.__dict__.get("shared")
    if shared is None:
        return make()
    key = tuple(id(tensor) for tensor in of)
    if what not in shared or shared[what][0] != key:
        shared[what] = (key, make())
    return shared[what][1]


def exact(x: torch.Tensor, slot: str = "tile") -> torch.Tensor:
    """Float64 copy of a tile, in the memory of `slot`; every stored dtype fits without rounding.

    So differences, squares and fourth powers are right whatever the values: second moments of 1e-13
    do not underflow, gains near 1 keep their variance, nearly equal tensors keep their angle.
    """
    return scratch(x, slot).copy_(x)


def matrix(x: torch.Tensor) -> torch.Tensor:
    """Float32 copy of a whole tensor (float64 if stored so), for steps that hold it entire."""
    import torch

    return x if x.dtype == torch.float64 else x.to(torch.float32)


def magnitude(x: torch.Tensor) -> torch.Tensor:
    """Largest absolute value; NaN if there is one."""
    import torch

    low, high = torch.aminmax(x)
    return torch.maximum(high, -low)


def count_zeros(x: torch.Tensor) -> torch.Tensor:
    """How many elements are zero, in float64: comparing into booleans takes three times as long."""
    import torch

    return torch.eq(x, 0, out=scratch(x, "zeros")).sum()
