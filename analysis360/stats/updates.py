r"""How Adam's updates are distributed, and what they do to the weights (S3, T4). Opt-in.

Weights and moments of a checkpoint are both those after its step, so an update stands beside the
weights that it led to; the ratios differ from those of the weights before it by about the update
ratio itself, 1e-3.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from analysis360.stats.adam import known, unknown
from analysis360.stats.base import Values, accumulator, statistic, vector
from analysis360.stats.bins import BINS, edges, magnitude_bins
from analysis360.stats.histograms import quantile
from analysis360.stats.tiles import once, scratch

if TYPE_CHECKING:
    import torch

__all__ = [
    "decay_balance", "norm_growth", "update_distribution", "update_kurtosis",
    "update_large_fraction", "update_mean_abs", "update_p50", "update_p90", "update_p99",
    "update_p999", "update_ratio_applied", "update_to_weight", "update_weight_cosine",
    "update_weight_sums",
]  # fmt: skip

LARGE = 0.5
"""Update that counts as large: 2.2 standard deviations of the Gaussian null."""


def direction(
    exp_avg: torch.Tensor, exp_avg_sq: torch.Tensor,
    step: float, beta1: float, beta2: float, eps: float,
) -> torch.Tensor:  # fmt: skip
    """Adam's direction of a tile, as the state `update`, taken once for all that need it."""
    import torch

    def make() -> torch.Tensor:
        u = torch.mul(exp_avg_sq, 1 / (1 - beta2**step), out=scratch(exp_avg, "direction"))
        root = u.sqrt_().add_(eps)
        torch.div(exp_avg, root, out=u).mul_(1 / (1 - beta1**step))
        if eps == 0:
            u.masked_fill_((exp_avg_sq == 0) & (exp_avg == 0), 0.0)
        return u

    return once("direction", (exp_avg, exp_avg_sq), make)


@accumulator(
    {
        "u_count": "sum", "u_total_abs": "sum", "u_second": "sum", "u_fourth": "sum",
        "u_large": "sum", **vector("update_bins", BINS),
    }
)  # fmt: skip
def update_distribution(
    exp_avg: torch.Tensor, exp_avg_sq: torch.Tensor,
    step: float, beta1: float, beta2: float, eps: float,
) -> torch.Tensor:  # fmt: skip
    """Sums of the update's powers, how often it is above 0.5, and a histogram of its magnitude.

    All NaN before the first step, and where the step or a hyper-parameter is not known.
    """
    import torch

    if not known(step, beta1, beta2, eps):
        return unknown(5 + BINS, exp_avg)
    u = direction(exp_avg, exp_avg_sq, step, beta1, beta2, eps)
    size = torch.abs(u, out=scratch(exp_avg, "size"))
    total = size.sum()
    large = torch.count_nonzero(torch.gt(size, LARGE, out=scratch(exp_avg, "truth", torch.bool)))
    square = size.square_()
    sums = torch.stack(
        [
            torch.full_like(total, u.numel()), total, square.sum(), torch.dot(square, square),
            large.to(torch.float64),
        ]
    )  # fmt: skip
    return torch.cat([sums, magnitude_bins(u)])


@accumulator(
    dict.fromkeys(
        (
            "uw_update_sq", "uw_dot", "uw_weight_sq", "uw_decay_sq", "uw_applied_sq",
            "uw_applied_dot",
        ),
        "sum",
    )
)  # fmt: skip
def update_weight_sums(
    weight: torch.Tensor, exp_avg: torch.Tensor, exp_avg_sq: torch.Tensor,
    step: float, beta1: float, beta2: float, eps: float, weight_decay: float,
) -> torch.Tensor:  # fmt: skip
    r"""Products of the update u, the weights θ, and :math:`u+\lambda\theta` of AdamW.

    The decay enters here and not later, since one layer has decayed and undecayed tensors. All NaN
    before the first step, and where the step or a hyper-parameter is not known; where only the
    decay is not, what rests on it.
    """
    import torch

    if not known(step, beta1, beta2, eps):
        return unknown(6, weight)
    u = direction(exp_avg, exp_avg_sq, step, beta1, beta2, eps)
    weight_sq = torch.dot(weight, weight)
    applied = torch.add(u, weight, alpha=weight_decay, out=scratch(weight, "applied"))
    sums = (
        torch.dot(u, u), torch.dot(u, weight), weight_sq, weight_decay**2 * weight_sq,
        torch.dot(applied, applied), torch.dot(applied, weight),
    )  # fmt: skip
    return torch.stack(sums)


@statistic(
    invariant=("sign", "permutation", "transpose"), low=0,
    code="S3", source="Kingma & Ba 2015, algorithm 1 (the update)",
    null="0.1825 for steady independent Gaussian gradients, β = (0.9, 0.95), 600 steps; simulated",
    undefined="before the first step; step or a hyper-parameter not known",
    figure="plot_layers",
)  # fmt: skip
def update_mean_abs(u_total_abs: float, u_count: float) -> float:
    r"""Mean magnitude of the update, :math:`\overline{|u|}`.

    NaN before the first step, and where the step or a hyper-parameter is not known.
    """
    return u_total_abs / u_count


@statistic(
    invariant=("sign", "permutation", "transpose"), low=0, high=1,
    code="S3",
    source="derived; motive: Molybog et al. 2023 (arXiv 2304.09871), quoted, not checked",
    null="0.0224 for steady independent Gaussian gradients, β = (0.9, 0.95), 600 steps; simulated",
    undefined="before the first step; step or a hyper-parameter not known",
    figure="plot_layers",
)  # fmt: skip
def update_large_fraction(u_large: float, u_count: float) -> float:
    r"""Fraction of coordinates with :math:`|u|>0.5`, counted exactly.

    It grows when gradients of successive steps agree, and the update becomes bimodal at ±1. NaN
    before the first step, and where the step or a hyper-parameter is not known.
    """
    return u_large / u_count


@statistic(
    invariant=("sign", "permutation", "transpose"), low=1,
    code="S3", source="derived",
    null="2.72 for steady independent Gaussian gradients, β = (0.9, 0.95), 600 steps, simulated; "
    "1 for updates of ±1 (closed form)",
    undefined="all updates are zero; before the first step; step or a hyper-parameter not known",
    figure="plot_layers",
)  # fmt: skip
def update_kurtosis(u_count: float, u_second: float, u_fourth: float) -> float:
    r"""Fourth moment of the update over its squared second, both about zero: :math:`n\sum u^4/(\sum u^2)^2`.

    Below the null when updates become alike in size, above when few coordinates move. NaN if all
    updates are zero, before the first step, and where the step or a hyper-parameter is not known.
    """  # noqa: E501
    return u_count * u_fourth / u_second**2 if u_second > 0 else math.nan


def _quantile(update_bins: Values, q: float) -> float:
    return quantile(update_bins, edges(), q, below=0.0)


@statistic(
    invariant=("sign", "permutation", "transpose"), low=0,
    code="S3", source="derived",
    null="0.158 for steady independent Gaussian gradients, β = (0.9, 0.95), 600 steps; simulated",
    undefined="before the first step; step or a hyper-parameter not known",
    figure="plot_layers, plot_moment_histograms",
)  # fmt: skip
def update_p50(update_bins: Values) -> float:
    r"""Median magnitude of the update, from a histogram: within one of its bins, 12.5 % at most.

    A zero stands for anything below 1.3e-29. NaN if it lies above 4.3e9 or among so many NaN,
    before the first step, and where the step or a hyper-parameter is not known.
    """
    return _quantile(update_bins, 0.5)


@statistic(
    invariant=("sign", "permutation", "transpose"), low=0,
    code="S3", source="derived",
    null="0.372 for steady independent Gaussian gradients, β = (0.9, 0.95), 600 steps; simulated",
    undefined="as update_p50", figure="plot_layers, plot_moment_histograms",
)  # fmt: skip
def update_p90(update_bins: Values) -> float:
    """Magnitude below which 90 % of the updates are; precise and undefined as `update_p50`."""
    return _quantile(update_bins, 0.9)


@statistic(
    invariant=("sign", "permutation", "transpose"), low=0,
    code="S3", source="derived",
    null="0.555 for steady independent Gaussian gradients, β = (0.9, 0.95), 600 steps; simulated",
    undefined="as update_p50", figure="plot_layers, plot_moment_histograms",
)  # fmt: skip
def update_p99(update_bins: Values) -> float:
    """Magnitude below which 99 % of the updates are; precise and undefined as `update_p50`."""
    return _quantile(update_bins, 0.99)


@statistic(
    invariant=("sign", "permutation", "transpose"), low=0,
    code="S3", source="derived",
    null="0.676 for steady independent Gaussian gradients, β = (0.9, 0.95), 600 steps; simulated",
    undefined="as update_p50", figure="plot_layers, plot_moment_histograms",
)  # fmt: skip
def update_p999(update_bins: Values) -> float:
    """Magnitude below which 99.9 % of the updates are; precise and undefined as `update_p50`."""
    return _quantile(update_bins, 0.999)


def _over(square: float, other: float) -> float:
    """Root of a ratio of sums; NaN if nothing is below the line."""
    return float(np.sqrt(square / other)) if other > 0 else math.nan


@statistic(
    invariant=("sign", "permutation", "transpose"), low=0,
    code="S3", source="derived; the folk target 1e-3 is quoted, not checked",
    null="0.23·√(2ηλ) for noise in equilibrium with decay at β1 = 0.9: closed form for unit "
    "diffusion",
    undefined="weights all zero; learning rate, step or a hyper-parameter not known",
    unit="1/step", figure="plot_layers",
)  # fmt: skip
def update_to_weight(uw_update_sq: float, uw_weight_sq: float, lr: float) -> float:
    r"""Relative size of one update, :math:`\eta\,\mathrm{RMS}(u)/\mathrm{RMS}(\theta)`.

    Without decay. NaN if the weights are all zero, before the first step, and where the learning
    rate, the step or a hyper-parameter is not known.
    """
    return lr * _over(uw_update_sq, uw_weight_sq)


@statistic(
    invariant=("sign", "permutation", "transpose"), low=0,
    code="S3", source="Loshchilov & Hutter 2019, algorithm 2 (AdamW's step); derived",
    null="as update_to_weight where decay is the smaller part",
    undefined="weights all zero; learning rate, decay, step or a hyper-parameter not known",
    unit="1/step", figure="plot_layers",
)  # fmt: skip
def update_ratio_applied(uw_applied_sq: float, uw_weight_sq: float, lr: float) -> float:
    r"""Relative size of the step as AdamW applies it, with decay.

    :math:`\eta\|u+\lambda\theta\|/\|\theta\|`. NaN if the weights are all zero, before the first
    step, and where the learning rate, the decay, the step or another hyper-parameter is not known.
    """
    return lr * _over(uw_applied_sq, uw_weight_sq)


@statistic(
    invariant=("sign", "permutation", "transpose"), low=0,
    code="T4", source="derived; compare Kosson et al. 2023 (arXiv 2305.17212), quoted, not checked",
    null="0 for undecayed tensors (closed form); no null otherwise: compare the branches",
    undefined="update all zero; decay, step or a hyper-parameter not known",
    figure="plot_layers",
)  # fmt: skip
def decay_balance(uw_decay_sq: float, uw_update_sq: float) -> float:
    r"""Size of the decay beside that of the update.

    :math:`\lambda\|\theta\|/\|u\|`. NaN if the update is zero everywhere, before the first step,
    and where the decay, the step or another hyper-parameter is not known.
    """
    return _over(uw_decay_sq, uw_update_sq)


@statistic(
    invariant=("sign", "permutation", "transpose"), low=-1, high=1,
    code="T4", source="derived",
    null="0 ± 1/√n for updates that have nothing to do with the weights (closed form)",
    undefined="weights or update all zero; step or a hyper-parameter not known",
    figure="plot_layers",
)  # fmt: skip
def update_weight_cosine(uw_dot: float, uw_update_sq: float, uw_weight_sq: float) -> float:
    """Cosine of update and weights: how much of the update is radial.

    The step is against the update, so a positive cosine shrinks the weights. NaN if either is zero
    everywhere, before the first step, and where the step or a hyper-parameter is not known.
    """
    size = np.sqrt(uw_update_sq) * np.sqrt(uw_weight_sq)
    return float(np.clip(uw_dot / size, -1, 1)) if size > 0 else math.nan


@statistic(
    invariant=("sign", "permutation", "transpose"), low=-1,
    code="T4", source="derived from AdamW's step (Loshchilov & Hutter 2019, algorithm 2)",
    null="0 in equilibrium (closed form); −2ηλ where decay alone acts, to first order",
    undefined="weights all zero; learning rate, decay, step or a hyper-parameter not known",
    unit="1/step", figure="plot_layers",
)  # fmt: skip
def norm_growth(
    uw_applied_dot: float, uw_applied_sq: float, uw_weight_sq: float, lr: float
) -> float:
    r"""Relative growth of :math:`\|\theta\|^2` by one more such step.

    :math:`[-2\eta(\langle u,\theta\rangle+\lambda\|\theta\|^2)+\eta^2\|u+\lambda\theta\|^2]/
    \|\theta\|^2`: positive while updates outweigh decay. One step is noisy; average over
    checkpoints. NaN if the weights are all zero, before the first step, and where the learning
    rate, the decay, the step or another hyper-parameter is not known.
    """
    if not uw_weight_sq > 0:
        return math.nan
    return (lr**2 * uw_applied_sq - 2 * lr * uw_applied_dot) / uw_weight_sq
