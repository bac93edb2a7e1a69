"""How far a tensor lies from itself in another checkpoint (S2 of the catalogue).

The reference is the preceding selected checkpoint of the branch, the other branch at the same
tokens, or the fork point; the definition is the same, and the column `against` says which.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from analysis360.stats.base import accumulator, statistic
from analysis360.stats.moments import norm_sq
from analysis360.stats.tiles import count_zeros, magnitude, once, scratch

if TYPE_CHECKING:
    import torch

__all__ = [
    "angle", "change_counts", "cosine", "difference_sums", "displacement", "max_change",
    "rel_displacement", "unchanged_fraction", "update_ratio",
]  # fmt: skip


@accumulator(
    {"diff_sq": "sum", "cross": "sum", "tensor_sq": "sum", "reference_sq": "sum"}, version=2
)
def difference_sums(tensor: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    r"""Sums of a pair: :math:`\sum d^2`, :math:`\sum d\,(a+b)`, :math:`\sum b^2`, with d = a − b.

    The angle between nearly equal tensors comes from these and never from :math:`\sum ab`, whose
    digits cancel.
    """
    import torch

    d = _difference(tensor, reference)
    diff_sq = torch.dot(d, d)
    cross = torch.add(diff_sq, torch.dot(d, reference), alpha=2)
    return torch.stack([diff_sq, cross, norm_sq(tensor), torch.dot(reference, reference)])


@accumulator({"unchanged": "sum", "pair_count": "sum", "diff_max": "max"})
def change_counts(tensor: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """How many elements are equal (a NaN equals nothing), and the largest change of one."""
    import torch

    d = _difference(tensor, reference)
    largest = magnitude(d)
    if tensor.device.type == "cpu" and math.isfinite(largest.item()):
        unchanged = count_zeros(d)
    else:  # equal infinities have no difference; comparing is slow on a CPU
        unchanged = (tensor == reference).sum().to(torch.float64)
    return torch.stack([unchanged, torch.full_like(largest, d.numel()), largest])


def _difference(tensor: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    import torch

    def make() -> torch.Tensor:
        return torch.sub(tensor, reference, out=scratch(tensor, "difference"))

    return once("difference", (tensor, reference), make)


def _chord_sq(diff_sq: float, cross: float, tensor_sq: float, reference_sq: float) -> float:
    """Squared distance of the two unit vectors; NaN if either is zero."""
    mine, other = np.sqrt(tensor_sq), np.sqrt(reference_sq)
    if not (mine > 0 and other > 0):
        return float("nan")
    gap = cross / (mine + other)  # |a| - |b| without subtracting the norms
    return float(min(max((diff_sq - gap**2) / (mine * other), 0.0), 4.0))


@statistic(degree=1, invariant=("sign", "permutation", "transpose", "orthogonal"), low=0)
def displacement(diff_sq: float) -> float:
    r"""Distance from the reference, :math:`\|\theta-\theta_{ref}\|_F`."""
    return float(np.sqrt(diff_sq))


@statistic(degree=0, invariant=("sign", "permutation", "transpose", "orthogonal"), low=0)
def rel_displacement(diff_sq: float, reference_sq: float) -> float:
    r"""Distance over the norm of the reference, :math:`\|\theta-\theta_{ref}\|/\|\theta_{ref}\|`.

    NaN if the reference is zero. Weights exported in bfloat16 put a floor under it: about 0.235 %
    for the difference of two (0.166 % for one).
    """
    return float(np.sqrt(diff_sq / reference_sq)) if reference_sq > 0 else float("nan")


@statistic(degree=1, invariant=("sign", "permutation", "transpose"), low=0)
def max_change(diff_max: float) -> float:
    r"""Largest change of one element, :math:`\max|\theta-\theta_{ref}|`."""
    return diff_max


@statistic(degree=0, invariant=("sign", "permutation", "transpose", "orthogonal"), low=-1, high=1)
def cosine(diff_sq: float, cross: float, tensor_sq: float, reference_sq: float) -> float:
    r"""Cosine of the angle to the reference.

    :math:`1-\tfrac12\|\hat\theta-\hat\theta_{ref}\|^2`, from :math:`\sum d^2` and
    :math:`\sum d(a+b)`. NaN if either tensor is zero. For small angles read `angle`.
    """
    return 1 - _chord_sq(diff_sq, cross, tensor_sq, reference_sq) / 2


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose", "orthogonal"), low=0, high=np.pi
)
def angle(diff_sq: float, cross: float, tensor_sq: float, reference_sq: float) -> float:
    r"""Angle to the reference, in radians.

    :math:`2\,\mathrm{atan2}(\|\hat a-\hat b\|,\|\hat a+\hat b\|)` (Kahan): right for tiny angles,
    where the arc cosine of a float32 loses everything below 1e-4. NaN if either tensor is zero.
    """
    chord = _chord_sq(diff_sq, cross, tensor_sq, reference_sq)
    return float(2 * np.arctan2(np.sqrt(chord), np.sqrt(4 - chord)))


@statistic(degree=0, invariant=("sign", "permutation", "transpose", "orthogonal"), low=0)
def update_ratio(diff_sq: float, reference_sq: float, lr_sum: float) -> float:
    r"""Relative displacement per unit of learning rate, :math:`\delta_{rel}/\sum_t\eta_t`.

    The sum runs over the steps between the two checkpoints. NaN if the learning-rate schedule is
    not known, or no step lies between (the other branch at the same step).
    """
    if not (reference_sq > 0 and lr_sum > 0):
        return float("nan")
    return float(np.sqrt(diff_sq / reference_sq) / lr_sum)


@statistic(degree=0, invariant=("sign", "permutation", "transpose"), low=0, high=1)
def unchanged_fraction(unchanged: float, pair_count: float) -> float:
    """Fraction of elements exactly equal to the reference: rounding, or parameters not trained."""
    return unchanged / pair_count
