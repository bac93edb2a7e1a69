"""How arrays reach the registered functions: in tiles, and in which precision."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["TILE", "exact", "magnitude", "matrix", "scratch"]

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
    return buffers[slot][: like.numel()]


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
