r"""The second moment as what divides the update: its shift, its spread, its channels (S7, S8, T8).

Opt-in. :math:`\sqrt{\hat v}` scales the learning rate of each coordinate. Its memory is short:
95 % of it are the last 58 steps for :math:`\beta_2` = 0.95, so two checkpoints of a large run hold
independent snapshots of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from analysis360.stats.adam import unknown
from analysis360.stats.base import Values, accumulator, statistic, vector
from analysis360.stats.bins import BINS, edges, magnitude_bins
from analysis360.stats.histograms import quantile
from analysis360.stats.tiles import scratch

if TYPE_CHECKING:
    import torch

__all__ = [
    "column_v_sums", "effective_lr_max", "effective_lr_p1", "effective_lr_p50", "effective_lr_p99",
    "effective_lr_p999", "log_v_std", "root_v_histogram", "row_v_sums", "shift_edges",
    "v_anisotropy",
    "v_column_anisotropy", "v_participation", "v_row_anisotropy", "v_shift_down",
    "v_shift_masked", "v_shift_median", "v_shift_p1", "v_shift_p10", "v_shift_p90", "v_shift_p99",
    "v_shift_std", "v_shift_sums", "v_shift_up", "v_spread_sums", "v_zero_fraction",
]  # fmt: skip

PER_DECADE, DECADES = 64, 8
"""Bins of the shift: so many a decade, to so many decades either way."""

SHIFTS = 2 * PER_DECADE * DECADES + 3
"""With one for no shift, which is the middle of its bin, and one for what lies beyond each end."""


@cache
def shift_edges() -> Values:
    """Where the bins of the shift begin and end, in decades: `SHIFTS` + 1 numbers.

    Examples
    --------
    >>> len(shift_edges()) - SHIFTS, float(shift_edges()[1] + 8) * 128
    (1, -1.0)
    """
    inner = (np.arange(SHIFTS - 1) - PER_DECADE * DECADES - 0.5) / PER_DECADE
    found: Values = np.concatenate([[-np.inf], inner, [np.inf]])
    found.flags.writeable = False
    return found


def _known(step: float, beta2: float) -> bool:
    return step >= 1 and 0 <= beta2 < 1


@accumulator(
    {
        "shift_count": "sum", "shift_masked": "sum", "shift_total": "sum", "shift_sq": "sum",
        "shift_down": "sum", "shift_up": "sum", **vector("shift_bins", SHIFTS),
    }
)  # fmt: skip
def v_shift_sums(
    exp_avg_sq: torch.Tensor, reference_exp_avg_sq: torch.Tensor,
    step: float, reference_step: float, beta2: float,
) -> torch.Tensor:  # fmt: skip
    r"""Histogram and sums of :math:`d=\log_{10}(\hat v/\hat v_{ref})`, each with its own step.

    Where either is not a positive number there is no ratio: those are counted and left out. All NaN
    before the first step of either, and where a step or :math:`\beta_2` is not known.
    """
    import torch

    if not (_known(step, beta2) and _known(reference_step, beta2)):
        return unknown(6 + SHIFTS, exp_avg_sq)
    factor = (1 - beta2**reference_step) / (1 - beta2**step)
    d = torch.div(exp_avg_sq, reference_exp_avg_sq, out=scratch(exp_avg_sq, "shift"))
    d.mul_(factor).log10_()
    truth = scratch(exp_avg_sq, "truth", torch.bool)
    # A finite logarithm has a positive ratio: with one positive second moment both are
    masked = torch.gt(exp_avg_sq, 0, out=truth).logical_and_(d.isfinite()).logical_not_()
    d.masked_fill_(masked, 0.0)
    place = torch.mul(d, PER_DECADE, out=scratch(exp_avg_sq, "place"))
    place.add_(PER_DECADE * DECADES + 1.5).clamp_(0, SHIFTS - 1).masked_fill_(masked, SHIFTS)
    bins = torch.bincount(place.to(torch.int64), minlength=SHIFTS + 1).to(torch.float64)
    left = bins[SHIFTS]
    square = torch.dot(d, d)
    down, up = (torch.count_nonzero(there).to(square) for there in (d < -1, d > 1))
    sums = [d.numel() - left, left, d.sum(), square, down, up]
    return torch.cat([torch.stack(sums), bins[:SHIFTS]])


@accumulator({"root_v_min": "min", **vector("root_v_bins", BINS)})
def root_v_histogram(exp_avg_sq: torch.Tensor, step: float, beta2: float) -> torch.Tensor:
    r"""Smallest :math:`\sqrt{\hat v}`, and a histogram of it.

    All NaN before the first step, and where the step or :math:`\beta_2` is not known.
    """
    import torch

    if not _known(step, beta2):
        return unknown(1 + BINS, exp_avg_sq)
    root = torch.mul(exp_avg_sq, 1 / (1 - beta2**step), out=scratch(exp_avg_sq, "root")).sqrt_()
    return torch.cat([root.min().reshape(1), magnitude_bins(root)])


@accumulator(
    dict.fromkeys(
        ("v_count", "v_total", "v_sq", "v_positive", "v_log_total", "v_log_sq"), "sum"
    )
)  # fmt: skip
def v_spread_sums(exp_avg_sq: torch.Tensor, step: float, beta2: float) -> torch.Tensor:
    r"""Sums of :math:`\hat v`, of its square, and of its logarithm where it is positive.

    In float64 squares of 1e-26 stay what they are; float32 would lose them. All NaN before the
    first step, and where the step or :math:`\beta_2` is not known.
    """
    import torch

    if not _known(step, beta2):
        return unknown(6, exp_avg_sq)
    v = torch.mul(exp_avg_sq, 1 / (1 - beta2**step), out=scratch(exp_avg_sq, "v"))
    total = v.sum()
    square = torch.dot(v, v)
    positive = torch.gt(v, 0, out=scratch(exp_avg_sq, "truth", torch.bool))
    several = torch.count_nonzero(positive).to(torch.float64)
    log = v.masked_fill_(positive.logical_not_(), 1.0).log_()
    count = torch.full_like(total, v.numel())
    return torch.stack([count, total, square, several, log.sum(), torch.dot(log, log)])


@accumulator({"row_v_sum": "rows"}, axis="rows")
def row_v_sums(exp_avg_sq: torch.Tensor, step: float, beta2: float) -> torch.Tensor:
    r"""Sum of :math:`\hat v` over each row (one output channel, or one token of a vocabulary)."""
    if not _known(step, beta2):
        return unknown(len(exp_avg_sq), exp_avg_sq)[None]
    return exp_avg_sq.sum(1).div_(1 - beta2**step).reshape(1, -1)


@accumulator({"column_v_sum": "sum"}, axis="columns")
def column_v_sums(exp_avg_sq: torch.Tensor, step: float, beta2: float) -> torch.Tensor:
    r"""Sum of :math:`\hat v` over each column (one input channel)."""
    if not _known(step, beta2):
        return unknown(exp_avg_sq.shape[1], exp_avg_sq)[None]
    return exp_avg_sq.sum(0).div_(1 - beta2**step).reshape(1, -1)


def _std(count: float, total: float, square: float) -> float:
    """Standard deviation from sums, 0 where nothing but rounding is left of it."""
    if not count > 0:
        return math.nan
    left = square / count - (total / count) ** 2
    if left <= 64 * np.finfo(np.float64).eps * square / count:
        return 0.0
    return float(np.sqrt(left))


def _shift(shift_bins: Values, q: float) -> float:
    return quantile(shift_bins, shift_edges(), q, below=math.nan)


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose"),
    code="S7", source="derived",
    null="0 between two snapshots of steady noise (closed form); beyond ±0.3, a factor of two, is "
    "worth a flag (derived, not tested on real spikes)",
    undefined="no coordinate has two positive second moments; beyond 8 decades; a step not known",
    unit="decades", figure="plot_layers",
)  # fmt: skip
def v_shift_median(shift_bins: Values) -> float:
    r"""Median over coordinates of :math:`d=\log_{10}(\hat v/\hat v_{ref})`.

    From a histogram of 64 bins a decade: within 1/64 of a decade (0.016), and for the smooth
    distributions of large tensors within 0.001. Negative in quiet layers while another one spikes
    under global clipping (v-depletion): their effective learning rate grows. NaN if no coordinate
    has two positive second moments, if it lies beyond 8 decades, before the first step of either,
    and where a step or :math:`\beta_2` is not known.
    """
    return _shift(shift_bins, 0.5)


def _percentile(null: str) -> Callable[[Callable[..., float]], Callable[..., float]]:
    """Register a percentile of the shift, which reads `null` between snapshots of steady noise."""
    return statistic(
        degree=0, invariant=("sign", "permutation", "transpose"),
        code="S7", source="derived",
        null=f"{null} between two snapshots of steady Gaussian noise, β2 = 0.95; simulated",
        undefined="as v_shift_median", unit="decades", figure="plot_layers",
    )  # fmt: skip


@_percentile("-0.32")
def v_shift_p1(shift_bins: Values) -> float:
    """First percentile of the shift; precise and undefined as `v_shift_median`."""
    return _shift(shift_bins, 0.01)


@_percentile("-0.18")
def v_shift_p10(shift_bins: Values) -> float:
    """Tenth percentile of the shift; precise and undefined as `v_shift_median`."""
    return _shift(shift_bins, 0.1)


@_percentile("0.18")
def v_shift_p90(shift_bins: Values) -> float:
    """Ninetieth percentile of the shift; precise and undefined as `v_shift_median`."""
    return _shift(shift_bins, 0.9)


@_percentile("0.32")
def v_shift_p99(shift_bins: Values) -> float:
    """Ninety-ninth percentile of the shift; precise and undefined as `v_shift_median`."""
    return _shift(shift_bins, 0.99)


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose"), low=0,
    code="S7", source="derived",
    null="0.138 between two independent snapshots of steady Gaussian noise, β2 = 0.95, simulated; "
    "√2·√((kurt − 1)/n_eff)/ln 10 to first order, n_eff = (1 + β2)/(1 − β2)",
    undefined="no coordinate has two positive second moments; a step or β2 not known",
    unit="decades", figure="plot_layers",
)  # fmt: skip
def v_shift_std(shift_count: float, shift_total: float, shift_sq: float) -> float:
    r"""Standard deviation over coordinates of the shift, in decades, from exact sums.

    NaN if no coordinate has two positive second moments, before the first step of either, and where
    a step or :math:`\beta_2` is not known.
    """
    return _std(shift_count, shift_total, shift_sq)


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose"), low=0, high=1,
    code="S7", source="derived",
    null="0 for steady noise (7 standard deviations away); simulated",
    undefined="as v_shift_std", figure="plot_layers",
)  # fmt: skip
def v_shift_down(shift_down: float, shift_count: float) -> float:
    """Fraction of coordinates whose second moment is less than a tenth of the reference's.

    Counted exactly, of those where both are positive. Undefined as `v_shift_std`.
    """
    return shift_down / shift_count if shift_count > 0 else math.nan


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose"), low=0, high=1,
    code="S7", source="derived",
    null="0 for steady noise (7 standard deviations away); simulated",
    undefined="as v_shift_std", figure="plot_layers",
)  # fmt: skip
def v_shift_up(shift_up: float, shift_count: float) -> float:
    """Fraction of coordinates whose second moment is more than ten times the reference's.

    Counted exactly, of those where both are positive. Undefined as `v_shift_std`.
    """
    return shift_up / shift_count if shift_count > 0 else math.nan


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose"), low=0, high=1,
    code="S7", source="derived",
    null="0 where every coordinate is trained; near 1 for rows of tokens not seen",
    undefined="before the first step of either; a step or β2 not known", figure="plot_layers",
)  # fmt: skip
def v_shift_masked(shift_masked: float, shift_count: float) -> float:
    """Fraction of coordinates left out of the shift: one of the second moments is not positive.

    NaN before the first step of either checkpoint, and where a step or the beta is not known.
    """
    return shift_masked / (shift_masked + shift_count)


def _rate(root_v_bins: Values, above: float, lr: float, eps: float) -> float:
    """Rate that a fraction `above` exceeds: it falls where the root of v grows."""
    return float(np.divide(lr, quantile(root_v_bins, edges(), above, below=0.0) + eps))


def _effective() -> Callable[[Callable[..., float]], Callable[..., float]]:
    """Register a quantile of the effective learning rate."""
    return statistic(
        invariant=("sign", "permutation", "transpose"), low=0,
        code="S8", source="Kingma & Ba 2015, algorithm 1 (the factor of the first moment)",
        null="none: depends on the size of the gradients; compare the branches",
        undefined="learning rate, epsilon, step or β2 not known; before the first step",
        figure="plot_layers",
    )  # fmt: skip


@_effective()
def effective_lr_p1(root_v_bins: Values, lr: float, eps: float) -> float:
    r"""First percentile of the effective learning rate :math:`\eta/(\sqrt{\hat v}+\epsilon)`.

    From a histogram of :math:`\sqrt{\hat v}`: within one of its bins, 12.5 % at most. Infinite
    without epsilon, where the second moment is zero. NaN before the first step, where the learning
    rate, epsilon, the step or :math:`\beta_2` is not known, and where so many second moments are
    negative or NaN that it falls among those.
    """
    return _rate(root_v_bins, 0.99, lr, eps)


@_effective()
def effective_lr_p50(root_v_bins: Values, lr: float, eps: float) -> float:
    """Median of the effective learning rate; precise and undefined as `effective_lr_p1`."""
    return _rate(root_v_bins, 0.5, lr, eps)


@_effective()
def effective_lr_p99(root_v_bins: Values, lr: float, eps: float) -> float:
    """Learning rate that 1 % of the coordinates exceed; precise and undefined as `effective_lr_p1`.

    Its growth before onset is what the adaptive edge of stability predicts (Cohen et al. 2022).
    """
    return _rate(root_v_bins, 0.01, lr, eps)


@_effective()
def effective_lr_p999(root_v_bins: Values, lr: float, eps: float) -> float:
    """Learning rate that 0.1 % of the coordinates exceed; undefined as `effective_lr_p1`."""
    return _rate(root_v_bins, 0.001, lr, eps)


@_effective()
def effective_lr_max(root_v_min: float, lr: float, eps: float) -> float:
    r"""Largest effective learning rate, exactly; :math:`\eta/\epsilon` if some second moment is 0.

    NaN if a second moment is negative or NaN, before the first step, and where the learning rate,
    epsilon, the step or :math:`\beta_2` is not known.
    """
    return float(np.divide(lr, root_v_min + eps))


@statistic(
    invariant=("sign", "permutation", "transpose"), low=0,
    code="T8", source="derived",
    null="0.228 for steady Gaussian noise of one size, β2 = 0.95, of which the bins make 0.238; "
    "simulated",
    undefined="the first percentile is zero; step or β2 not known", unit="decades",
    figure="plot_layers, plot_moment_histograms",
)  # fmt: skip
def v_anisotropy(root_v_bins: Values) -> float:
    r"""Range of the preconditioner in decades, :math:`\log_{10}(p_{99}/p_1)` of :math:`\sqrt{\hat v}`.

    From a histogram: each percentile within one of its bins, together 0.1 of a decade at most. NaN
    if 1 % of the second moments are zero, before the first step, where the step or :math:`\beta_2`
    is not known, and where so many second moments are negative or NaN that it falls among those.
    """  # noqa: E501
    low, high = (quantile(root_v_bins, edges(), q, below=0.0) for q in (0.01, 0.99))
    return math.log10(high / low) if low > 0 else math.nan


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose"), low=0, high=1,
    code="T8", source="participation ratio, as of wave functions (Bell & Dean 1970); derived",
    null="0.951 for steady Gaussian noise of one size, β2 = 0.95: 1/(1 + 2/n_eff), closed form",
    undefined="second moments all zero; step or β2 not known", figure="plot_layers",
)  # fmt: skip
def v_participation(v_count: float, v_total: float, v_sq: float) -> float:
    r"""Fraction of coordinates that carry the second moment, :math:`(\sum v)^2/(n\sum v^2)`.

    1 if all are alike, 1/n if one has it all. NaN if all are zero, before the first step, and where
    the step or :math:`\beta_2` is not known.
    """
    return v_total**2 / (v_count * v_sq) if v_sq > 0 else math.nan


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose"), low=0,
    code="S7", source="derived",
    null="0.225 for steady Gaussian noise of one size, β2 = 0.95, 600 steps, simulated; "
    "√((kurt − 1)/n_eff) to first order, n_eff = (1 + β2)/(1 − β2) = 39",
    undefined="no second moment is positive; step or β2 not known", unit="nats",
    figure="plot_layers",
)  # fmt: skip
def log_v_std(v_positive: float, v_log_total: float, v_log_sq: float) -> float:
    r"""Standard deviation over coordinates of the logarithm of the second moment.

    Of :math:`\ln\hat v`, where that is defined. What exceeds the null is that gradients of some
    coordinates are larger than those of others. NaN if no second moment is positive, before the
    first step, and where the step or :math:`\beta_2` is not known.
    """
    return _std(v_positive, v_log_total, v_log_sq)


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose"), low=0, high=1,
    code="T8", source="derived",
    null="0 where every coordinate is trained; the unseen tokens' share in an embedding",
    undefined="before the first step; step or β2 not known", figure="plot_layers",
)  # fmt: skip
def v_zero_fraction(v_positive: float, v_count: float) -> float:
    """Fraction of coordinates whose second moment is not positive: never seen, or underflowed.

    NaN before the first step, and where the step or the beta is not known.
    """
    return 1 - v_positive / v_count


def _worst(sums: Values) -> float:
    """Largest over median."""
    values = np.asarray(sums, dtype=np.float64)
    middle = np.median(values) if values.size else math.nan
    return float(values.max() / middle) if middle > 0 else math.nan


def _channels() -> Callable[[Callable[..., float]], Callable[..., float]]:
    """Register a ratio of channels."""
    return statistic(
        degree=0, invariant=("sign", "permutation"), low=1,
        code="T8", source="row and column sums as in Shazeer & Stern 2018 (Adafactor); derived",
        null="near 1 for noise of one size: 1 + 0.23·√(2 ln channels)/√(length of a channel) for "
        "Gaussian gradients at β2 = 0.95, to first order",
        undefined="half of the channels are zero; not a matrix; several tensors; step not known",
        figure="plot_layers",
    )  # fmt: skip


@_channels()
def v_row_anisotropy(row_v_sum: Values) -> float:
    r"""Largest over median sum of :math:`\hat v` of a row: one output channel, or one token.

    NaN if half of the rows are zero, for tensors that are not matrices and for several tensors
    together, before the first step, and where the step or :math:`\beta_2` is not known.
    """
    return _worst(row_v_sum)


@_channels()
def v_column_anisotropy(column_v_sum: Values) -> float:
    r"""Largest over median sum of :math:`\hat v` of a column: one input channel.

    NaN if half of the columns are zero, for tensors that are not matrices and for several tensors
    together, before the first step, and where the step or :math:`\beta_2` is not known.
    """
    return _worst(column_v_sum)
