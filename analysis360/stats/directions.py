r"""Whether moments point where the weights went, and where those of another run point (T2, T3).

Opt-in. They compare two checkpoints: the preceding one, the other branch, or the fork point.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from analysis360.stats.adam import known, unknown
from analysis360.stats.base import accumulator, statistic, term
from analysis360.stats.tiles import scratch
from analysis360.stats.updates import direction

if TYPE_CHECKING:
    import torch

__all__ = [
    "direction_sums", "momentum_cosine", "momentum_direction_cosine", "momentum_pair_sums",
    "momentum_sign_agreement", "update_direction_cosine",
]  # fmt: skip


@accumulator(
    dict.fromkeys(
        (
            "way_sq", "way_start", "start_sq", "way_update", "start_update", "way_momentum",
            "start_momentum", "way_update_sq", "way_momentum_sq",
        ),
        "sum",
    )
)  # fmt: skip
def direction_sums(
    weight: torch.Tensor, reference_weight: torch.Tensor,
    exp_avg: torch.Tensor, exp_avg_sq: torch.Tensor,
    step: float, beta1: float, beta2: float, eps: float,
) -> torch.Tensor:  # fmt: skip
    """Products of the way, from reference to weights, its start, the update and the momentum.

    All NaN before the first step, and where the step or a hyper-parameter is not known.
    """
    import torch

    if not known(step, beta1, beta2, eps):
        return unknown(9, weight)
    u = direction(exp_avg, exp_avg_sq, step, beta1, beta2, eps)
    m = torch.mul(exp_avg, 1 / (1 - beta1**step), out=scratch(weight, "m"))
    way = torch.sub(weight, reference_weight, out=scratch(weight, "way"))
    pairs = (
        (way, way), (way, reference_weight), (reference_weight, reference_weight),
        (way, u), (reference_weight, u), (way, m), (reference_weight, m), (u, u), (m, m),
    )  # fmt: skip
    return torch.stack([torch.dot(one, other) for one, other in pairs])


@accumulator(
    dict.fromkeys(
        ("pair_momentum", "pair_momentum_sq", "pair_reference_sq", "same_sign", "both_signs"), "sum"
    )
)
def momentum_pair_sums(exp_avg: torch.Tensor, reference_exp_avg: torch.Tensor) -> torch.Tensor:
    """Products of two first moments, and how many of their signs agree.

    Needs no bias correction: that is one positive factor for all of a tensor.
    """
    import torch

    product = torch.mul(exp_avg.sign(), reference_exp_avg.sign(), out=scratch(exp_avg, "product"))
    signed, difference = product.abs().sum(), product.sum()
    pairs = (
        (exp_avg, reference_exp_avg), (exp_avg, exp_avg), (reference_exp_avg, reference_exp_avg),
    )  # fmt: skip
    dots = [torch.dot(one, other) for one, other in pairs]
    return torch.stack([*dots, (signed + difference) / 2, signed])


def _cosine(dot: float, square: float, other: float) -> float:
    size = np.sqrt(square) * np.sqrt(other)
    return float(np.clip(dot / size, -1, 1)) if size > 0 else math.nan


@term()
def undecayed_way_sq(way_sq: float, way_start: float, start_sq: float, decay: float) -> float:
    """Squared length of the way, without the decay's share; 0 if it is rounding."""
    gone = 1 - decay
    size_sq = way_sq + 2 * gone * way_start + gone**2 * start_sq
    rounding = 32 * np.finfo(np.float64).eps * (way_sq + gone**2 * start_sq)
    return 0.0 if size_sq <= rounding else size_sq


@term()
def undecayed_way_update(way_update: float, start_update: float, decay: float) -> float:
    """Product of that way with the update."""
    return way_update + (1 - decay) * start_update


@term()
def undecayed_way_momentum(way_momentum: float, start_momentum: float, decay: float) -> float:
    """Product of that way with the first moment."""
    return way_momentum + (1 - decay) * start_momentum


@statistic(
    invariant=("sign", "permutation", "transpose"), low=-1, high=1,
    code="T2", source="derived",
    null="0.075 at 941 steps of independent Gaussian gradients of any sizes, β = (0.9, 0.95), "
    "simulated; it falls as 1/√steps: 0.053 at 1882, 0.043 at 2823",
    undefined="nothing moved but by decay; decay, step or a hyper-parameter not known",
    figure="plot_layers",
)  # fmt: skip
def update_direction_cosine(
    undecayed_way_update: float, undecayed_way_sq: float, way_update_sq: float
) -> float:
    r"""Cosine of the last update with the way since the reference, turned round.

    :math:`\cos(-\Delta\theta',u)` with :math:`\Delta\theta'=\theta_b-\Pi\theta_a`, where
    :math:`\Pi=\prod_t(1-\eta_t\lambda)` is what decay alone would have left. Near 0: a walk; near
    1: still going the same way; negative: turning back. Not 0 under pure noise, since the update
    shares its last ~10 steps with the way. Preferred to `momentum_direction_cosine`. NaN if nothing
    moved but by decay, if the update is zero, before the first step, and where Π, the step or a
    hyper-parameter is not known.
    """
    return _cosine(-undecayed_way_update, undecayed_way_sq, way_update_sq)


@statistic(
    invariant=("sign", "permutation", "transpose"), low=-1, high=1,
    code="T2", source="derived",
    null="depends on how gradient sizes are spread over coordinates: 0.076 at 941 steps if all are "
    "alike, 0.04 if log-normal with s = 1; simulated, β = (0.9, 0.95)",
    undefined="as update_direction_cosine", figure="plot_layers",
)  # fmt: skip
def momentum_direction_cosine(
    undecayed_way_momentum: float, undecayed_way_sq: float, way_momentum_sq: float
) -> float:
    """Cosine of the first moment with the way since the reference, turned round.

    As `update_direction_cosine`, with its conditions; its null is not the same for all tensors.
    """
    return _cosine(-undecayed_way_momentum, undecayed_way_sq, way_momentum_sq)


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose"), low=-1, high=1,
    code="T3", source="derived",
    null="0 ± 1/√n for independent gradients (closed form); more where coordinates are correlated",
    undefined="either first moment is zero everywhere", figure="plot_layers",
)  # fmt: skip
def momentum_cosine(
    pair_momentum: float, pair_momentum_sq: float, pair_reference_sq: float
) -> float:
    """Cosine of the first moments of two checkpoints.

    First moments remember ~20 steps, so those of two checkpoints of one run, or of branches that
    see different data, share a direction only if the gradient itself does. NaN if either is zero
    everywhere. For nearly equal moments read `angle` of the state ``exp_avg``.
    """
    return _cosine(pair_momentum, pair_momentum_sq, pair_reference_sq)


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose"), low=0, high=1,
    code="T3", source="derived",
    null="0.5 ± 0.5/√n for independent gradients (closed form)",
    undefined="no coordinate has a sign in both", figure="plot_layers",
)  # fmt: skip
def momentum_sign_agreement(same_sign: float, both_signs: float) -> float:
    """Fraction of coordinates whose first moments have one sign, of those that are zero in neither.

    A zero has no sign, nor has a NaN: rows of an embedding that were not seen say nothing. NaN if
    no coordinate has a sign in both.
    """
    return same_sign / both_signs if both_signs > 0 else math.nan
