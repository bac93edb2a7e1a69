r"""Signal and noise of the gradient, coordinate by coordinate, and their errors. Opt-in.

`adam_snr` in `adam` pools a tensor; here are the mean over coordinates, and standard errors. Those
take coordinates as independent. They are not quite: the coordinates of one gradient share a batch.
So a standard error is a lower bound, and the scatter between normal checkpoints is the better
measure where there are some.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from analysis360.stats.adam import adam_snr, known, noise_alone, unknown
from analysis360.stats.base import accumulator, statistic
from analysis360.stats.tiles import scratch

if TYPE_CHECKING:
    import torch

__all__ = ["adam_snr_mean", "adam_snr_se", "noise_scale_se", "snr_sums"]


@accumulator(
    {
        "snr_count": "sum", "snr_total": "sum", "m_fourth": "sum", "m_sq_v": "sum",
        "v_square": "sum",
    }
)  # fmt: skip
def snr_sums(
    exp_avg: torch.Tensor, exp_avg_sq: torch.Tensor,
    step: float, beta1: float, beta2: float,
) -> torch.Tensor:  # fmt: skip
    r"""Sum of :math:`\hat m^2/\hat v` where v > 0, how many those are, and second-order sums.

    All NaN before the first step, and where the step or a beta is not known.
    """
    import torch

    if not known(step, beta1, beta2, 0.0):
        return unknown(5, exp_avg)
    m_sq = torch.mul(exp_avg, 1 / (1 - beta1**step), out=scratch(exp_avg, "m")).square_()
    v = torch.mul(exp_avg_sq, 1 / (1 - beta2**step), out=scratch(exp_avg, "v"))
    second = [torch.dot(m_sq, m_sq), torch.dot(m_sq, v), torch.dot(v, v)]
    positive = torch.gt(v, 0, out=scratch(exp_avg, "truth", torch.bool))
    count = torch.count_nonzero(positive).to(torch.float64)
    ratio = m_sq.div_(v).masked_fill_(positive.logical_not_(), 0.0)
    return torch.stack([count, ratio.sum(), *second])


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose"), low=0,
    code="S4", source="Kingma & Ba 2015, section 2.1 (the ratio; its square is averaged here)",
    null="0.0511 for steady independent Gaussian gradients at β = (0.9, 0.95), simulated; unlike "
    "the pooled adam_snr it depends on their distribution",
    undefined="no coordinate has a positive second moment; step or betas not known",
    figure="plot_layers",
)  # fmt: skip
def adam_snr_mean(snr_total: float, snr_count: float) -> float:
    r"""Mean over coordinates of :math:`\hat m^2/\hat v`, each with the same weight.

    Coordinates whose second moment is zero (or below) are left out: never seen, or underflowed.
    NaN if that is all of them, before the first step, and where step or betas are not known.
    """
    return snr_total / snr_count if snr_count > 0 else math.nan


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose"), low=0,
    code="S4", source="ratio estimator, Cochran 1977, section 6.4; derived for this ratio",
    null="falls as 1/√n: 0.072/√n for steady independent Gaussian gradients of one size at "
    "β = (0.9, 0.95), simulated",
    undefined="fewer than two coordinates; second moments all zero; step or betas not known",
    figure="plot_noise",
)  # fmt: skip
def adam_snr_se(
    m_fourth: float, m_sq_v: float, v_square: float, m_sq: float, v_sum: float, adam_count: float
) -> float:
    r"""Standard error of `adam_snr`, coordinates taken as independent.

    :math:`\sqrt{\sum(\hat m^2-\rho\hat v)^2}/\sum\hat v`, the ratio estimator's. The coordinates of
    a gradient share a batch, so the real error is larger. NaN for a single coordinate, and where
    `adam_snr` is.
    """
    ratio = adam_snr(m_sq, v_sum)
    if not adam_count > 1:
        return math.nan
    left = m_fourth - 2 * ratio * m_sq_v + ratio**2 * v_square
    if left <= 32 * np.finfo(np.float64).eps * (m_fourth + ratio**2 * v_square):
        return 0.0  # nothing but rounding
    return float(np.sqrt(left) / v_sum)


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose"), low=0,
    code="S4", source="delta method on noise_scale; derived",
    null="undefined half of the time under pure noise, as noise_scale is",
    undefined="where noise_scale or adam_snr_se is",
    unit="batches",
    figure="plot_noise",
)  # fmt: skip
def noise_scale_se(
    m_fourth: float, m_sq_v: float, v_square: float, m_sq: float, v_sum: float,
    step: float, beta1: float, adam_count: float,
) -> float:  # fmt: skip
    r"""Standard error of `noise_scale`, to first order in that of `adam_snr`.

    :math:`\frac{1-c_t}{(\rho-c_t)^2}\,\mathrm{se}(\rho)`. Where it is as large as `noise_scale`
    itself, the noise scale is only bounded from below. NaN where `noise_scale` or `adam_snr_se` is.
    """
    ratio, null = adam_snr(m_sq, v_sum), noise_alone(step, beta1)
    if not null < ratio < 1:
        return math.nan
    error = adam_snr_se(m_fourth, m_sq_v, v_square, m_sq, v_sum, adam_count)
    return (1 - null) / (ratio - null) ** 2 * error
