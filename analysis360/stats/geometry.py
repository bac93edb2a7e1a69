r"""What the geometry of branches needs of a pair besides its distance (S10 of the catalogue).

Displacements of two branches share the decay of their ancestor. Taking it off,
:math:`\theta_b-\Pi\theta_0`, needs the part of a displacement that lies along the reference, and
the schedule since then. All rest on `difference_sums`, so they cost nothing.
"""

from __future__ import annotations

import numpy as np

from analysis360.stats.base import statistic

__all__ = ["decay_between", "lr_between", "lr_sq_between", "projection", "reference_norm"]


@statistic(degree=0, invariant=("sign", "permutation", "transpose", "orthogonal"))
def projection(diff_sq: float, cross: float, reference_sq: float) -> float:
    r"""Part of the displacement along the reference, :math:`\langle d,b\rangle/\|b\|^2`.

    With :math:`d=\theta-\theta_{ref}`; −(1 − Π) for a tensor that weight decay alone moved. NaN if
    the reference is zero.
    """
    return (cross - diff_sq) / 2 / reference_sq if reference_sq > 0 else float("nan")


@statistic(degree=1, invariant=("sign", "permutation", "transpose", "orthogonal"), low=0)
def reference_norm(reference_sq: float) -> float:
    r"""Euclidean norm of the reference, :math:`\|\theta_{ref}\|_F`."""
    return float(np.sqrt(reference_sq))
