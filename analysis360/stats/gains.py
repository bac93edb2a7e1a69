"""Gains of norms, and other tensors of one dimension, exactly (T10 of the catalogue). Opt-in."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from analysis360.stats.base import statistic, whole

if TYPE_CHECKING:
    import torch

__all__ = ["gain_max", "gain_median", "gain_min", "gain_negative", "gain_values"]


def _workspace(shape: tuple[int, ...]) -> int:
    """Bytes above the stored gains: the float32 copy, one in float64 sorted, and the order."""
    return 64 * math.prod(shape)


@whole(
    {"most_below": "max", "middle": "none", "most_above": "max", "negatives": "sum",
     "gain_count": "sum"},
    workspace=_workspace, ndim=1,
)  # fmt: skip
def gain_values(tensor: torch.Tensor) -> torch.Tensor:
    """Largest of −γ, median, largest of γ, how many are negative, and how many there are.

    The least is kept with its sign changed, so that both ends merge by the larger.
    """
    import torch

    gains = tensor.to(torch.float64)
    if not bool(gains.isfinite().all()):
        return torch.full((5,), math.nan, dtype=torch.float64, device=gains.device)
    ordered, n = gains.sort().values, gains.numel()
    middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    count = torch.full_like(middle, n)
    return torch.stack(
        [-ordered[0], middle, ordered[-1], (gains < 0).sum().to(torch.float64), count]
    )


@statistic(
    degree=1, invariant=("permutation",),
    code="T10", source="definition", figure="plot_layers",
    null="1 at initialisation",
    undefined="for tensors of several dimensions, and where one is a NaN or an infinity",
)  # fmt: skip
def gain_min(most_below: float) -> float:
    """Smallest gain of a norm. Below zero the channel is turned around, see `gain_negative`.

    Of any tensor of one dimension, so of biases too; over a layer it is that of all of them.
    """
    return -most_below


@statistic(
    degree=1, invariant=("permutation",),
    code="T10", source="definition", figure="plot_layers",
    null="1 at initialisation",
    undefined="for tensors of several dimensions, for layers and modules (medians do not merge), "
    "and where one is a NaN or an infinity",
)  # fmt: skip
def gain_median(middle: float) -> float:
    """Median gain of a norm, exact: the mean of the two in the middle if their number is even.

    Gains scale what a matrix after them is given, so growth of a norm's gains hides from the
    matrix's spectrum. In K2 they are stored in steps of 0.4 to 0.8 %. NaN over a layer.
    """
    return middle


@statistic(
    degree=1, invariant=("permutation",),
    code="T10", source="definition", figure="plot_layers",
    null="1 at initialisation",
    undefined="for tensors of several dimensions, and where one is a NaN or an infinity",
)  # fmt: skip
def gain_max(most_above: float) -> float:
    """Largest gain of a norm; over a layer the largest of all tensors of one dimension."""
    return most_above


@statistic(
    degree=0, invariant=("permutation",), low=0, high=1,
    code="T10", source="definition", figure="plot_layers",
    null="0: gains start at 1 and seldom cross zero; about 0.5 for biases",
    undefined="for tensors of several dimensions, and where one is a NaN or an infinity",
)  # fmt: skip
def gain_negative(negatives: float, gain_count: float) -> float:
    """Fraction of the gains that are negative, so that their sign flipped since initialisation."""
    return negatives / gain_count
