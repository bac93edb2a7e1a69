r"""What the geometry of branches needs of a pair besides its distance (S10 of the catalogue).

Displacements of two branches share the decay of their ancestor. Taking it off,
:math:`\theta_b-\Pi\theta_0`, needs the part of a displacement that lies along the reference, and
the schedule since then. All rest on `difference_sums`, so they cost nothing; the function that
puts them together is `analysis360.branch_divergence`.
"""

from __future__ import annotations

import numpy as np

from analysis360.stats.base import statistic

__all__ = ["decay_between", "lr_between", "lr_sq_between", "projection", "reference_norm"]


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose", "orthogonal"),
    code="S10", source="derived", undefined="the reference is zero",
    null="Π − 1 where weight decay alone moved the tensor, and on average for a random walk "
    "(derived)",
    figure="plot_divergence",
)  # fmt: skip
def projection(diff_sq: float, cross: float, reference_sq: float) -> float:
    r"""Part of the displacement along the reference, :math:`\langle d,b\rangle/\|b\|^2`.

    With :math:`d=\theta-\theta_{ref}`. NaN if the reference is zero.
    """
    return (cross - diff_sq) / 2 / reference_sq if reference_sq > 0 else float("nan")


@statistic(
    degree=1, invariant=("sign", "permutation", "transpose", "orthogonal"), low=0,
    code="S10", source="definition", undefined="not finite where the reference is not",
    null="none: a size, by which others are divided",
)  # fmt: skip
def reference_norm(reference_sq: float) -> float:
    r"""Euclidean norm of what the tensor is compared with, :math:`\|\theta_{ref}\|_F`."""
    return float(np.sqrt(reference_sq))


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose", "orthogonal"), low=0, high=1,
    code="S10", source="Loshchilov & Hutter 2019 (decoupled decay); product derived",
    null="1 for tensors that are not decayed, and between branches at one step (definition)",
    undefined="the learning-rate schedule or the weight decay is not known",
)  # fmt: skip
def decay_between(decay: float, diff_sq: float) -> float:
    r"""What weight decay alone would have left, :math:`\Pi=\prod_t(1-\eta_t\lambda)`.

    Over the steps since the reference. NaN where the schedule or the decay is not known, or differs
    within a row of several tensors.
    """
    return decay


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose", "orthogonal"), low=0,
    code="S10", source="definition", undefined="the learning-rate schedule is not known",
    null="none: a clock of the schedule, against which a steady pull grows with slope 1 (derived)",
)  # fmt: skip
def lr_between(lr_sum: float, diff_sq: float) -> float:
    r"""Sum of the learning rate over the steps since the reference, :math:`\sum_t\eta_t`."""
    return lr_sum


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose", "orthogonal"), low=0,
    code="S10", source="definition", undefined="the learning-rate schedule is not known",
    null="none: a clock of the schedule, against which a random walk grows with slope ½ (derived)",
)  # fmt: skip
def lr_sq_between(lr_sq_sum: float, diff_sq: float) -> float:
    r"""Sum of the squared learning rate since the reference, :math:`\sum_t\eta_t^2`."""
    return lr_sq_sum
