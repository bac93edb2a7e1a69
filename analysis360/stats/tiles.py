"""How arrays reach the registered functions: in tiles, and in which precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["TILE", "exact", "magnitude", "matrix"]

TILE = 1 << 16
"""Elements of a tile: half a megabyte in float64, which stays in a core's cache."""


def exact(x: torch.Tensor) -> torch.Tensor:
    """Float64 copy of a tile; every stored dtype fits in it without rounding.

    So differences, squares and fourth powers are right whatever the values: second moments of 1e-13
    do not underflow, gains near 1 keep their variance, nearly equal tensors keep their angle.
    """
    import torch

    if x.dtype in (torch.float32, torch.float64):
        return x.to(torch.float64, copy=True)
    return x.to(torch.float32).to(torch.float64)  # two fast conversions beat a slow one


def matrix(x: torch.Tensor) -> torch.Tensor:
    """Float32 copy of a whole tensor (float64 if stored so), for steps that hold it entire."""
    import torch

    return x if x.dtype == torch.float64 else x.to(torch.float32)


def magnitude(x: torch.Tensor) -> torch.Tensor:
    """Largest absolute value; NaN if there is one."""
    import torch

    low, high = torch.aminmax(x)
    return torch.maximum(high, -low)
