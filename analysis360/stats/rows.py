r"""Rows of a matrix, above all of an embedding or a head: one row, one token (S13). Opt-in.

Any matrix has them; what a row is (a token, an output channel) is for the reader to know. The
vectors themselves are in ``load_table(path, kind="vectors")``; `analysis360.rank_tokens` names the
largest.
"""

from __future__ import annotations

import numpy as np

from analysis360.stats import preconditioner, tails  # noqa: F401  (the sums that these rest on)
from analysis360.stats.base import Values, statistic

__all__ = [
    "centred_row_norm", "mean_row_norm", "mean_row_share", "row_norm_max", "row_norm_median",
    "row_norm_min", "row_norm_p1", "row_norm_p99", "v_row_top_share", "v_row_unseen",
]  # fmt: skip

_LAWS = ("sign", "permutation")

UNSEEN = float(np.exp(-10))
"""Of the usual row's second moment: what ten times its memory, 10/(1 − β2) steps, leave of it."""

_NOT_MATRIX = "the tensor is no matrix, or holds a NaN"


def _quantile(square_sums: Values, q: float) -> float:
    """Exact, between two rows by linear interpolation."""
    norms = np.sqrt(square_sums)
    return float(np.quantile(norms, q)) if np.isfinite(norms).all() else float("nan")


@statistic(
    degree=1, invariant=_LAWS, low=0, code="S13", source="definition", figure="plot_layers",
    null="none; rows of tokens that were never trained are small and alike (S13, quoted)",
    undefined=_NOT_MATRIX,
)  # fmt: skip
def row_norm_min(row_square_sum: Values) -> float:
    r"""Smallest norm of a row, :math:`\min_i\|W_i\|`."""
    return _quantile(row_square_sum, 0.0)


@statistic(
    degree=1, invariant=_LAWS, low=0, code="S13", source="definition",
    null="none; as `row_norm_min`, without its single row", undefined=_NOT_MATRIX,
    figure="plot_tokens",
)  # fmt: skip
def row_norm_p1(row_square_sum: Values) -> float:
    """Norm below which 1 % of the rows are, exactly."""
    return _quantile(row_square_sum, 0.01)


@statistic(
    degree=1, invariant=_LAWS, low=0, code="S13", source="definition",
    null="σ√d, less by 1/(4d) of it, for Gaussian rows of d elements (closed form)",
    undefined=_NOT_MATRIX,
    figure="plot_tokens",
)  # fmt: skip
def row_norm_median(row_square_sum: Values) -> float:
    """Median of the norms of the rows, exactly."""
    return _quantile(row_square_sum, 0.5)


@statistic(
    degree=1, invariant=_LAWS, low=0, code="S13", source="definition",
    null="none", undefined=_NOT_MATRIX,
    figure="plot_tokens",
)  # fmt: skip
def row_norm_p99(row_square_sum: Values) -> float:
    """Norm below which 99 % of the rows are, exactly."""
    return _quantile(row_square_sum, 0.99)


@statistic(
    degree=1, invariant=_LAWS, low=0, code="S13", source="definition",
    null="none", undefined=_NOT_MATRIX,
    figure="plot_tokens",
)  # fmt: skip
def row_norm_max(row_square_sum: Values) -> float:
    r"""Largest norm of a row, :math:`\max_i\|W_i\|`."""
    return _quantile(row_square_sum, 1.0)


def _mean_row_sq(row_square_sum: Values, column_sum: Values) -> float:
    return float(np.sum((column_sum / len(row_square_sum)) ** 2))


@statistic(
    degree=1, invariant=_LAWS, low=0, code="S13", figure="plot_layers",
    source="definition; common mode of the logits: PaLM's z-loss, OLMo 2 (M4)",
    null="rms row norm/√n for n independent rows of mean zero (closed form)",
    undefined=_NOT_MATRIX,
)  # fmt: skip
def mean_row_norm(row_square_sum: Values, column_sum: Values) -> float:
    r"""Norm of the mean row, :math:`\|\overline{W}\|`, :math:`\overline W=\frac1n\sum_iW_i`.

    In a head it is the direction that moves all logits at once; the softmax does not see it, so
    nothing but weight decay holds it.
    """
    return float(np.sqrt(_mean_row_sq(row_square_sum, column_sum)))


@statistic(
    degree=1, invariant=_LAWS, low=0, code="S13", source="definition", figure="plot_layers",
    null="rms row norm · √(1 − 1/n) for n independent rows of mean zero (closed form)",
    undefined=_NOT_MATRIX,
)  # fmt: skip
def centred_row_norm(row_square_sum: Values, column_sum: Values) -> float:
    r"""Root mean square distance of a row from the mean row.

    :math:`\sqrt{\overline{\|W_i\|^2}-\|\overline W\|^2}`, in one pass. The difference loses digits
    where rows are alike: its relative error is about 1e-16 times the square of rms row norm over
    this number. 0 where nothing but rounding is left, at 1e-7 of the rms row norm.
    """
    total = float(np.mean(row_square_sum))
    left = total - _mean_row_sq(row_square_sum, column_sum)
    if np.isnan(left):
        return float("nan")
    return float(np.sqrt(left)) if left > 64 * np.finfo(np.float64).eps * total else 0.0


@statistic(
    degree=0, invariant=_LAWS, low=0, high=1, code="S13", figure="plot_layers",
    source="derived from `mean_row_norm`",
    null="1/n for n independent rows of mean zero (closed form)",
    undefined="the tensor is no matrix, is zero, or holds a NaN",
)  # fmt: skip
def mean_row_share(row_square_sum: Values, column_sum: Values) -> float:
    r"""Part of the energy that all rows share, :math:`\|\overline W\|^2/\overline{\|W_i\|^2}`."""
    total = float(np.mean(row_square_sum))
    return _mean_row_sq(row_square_sum, column_sum) / total if total > 0 else float("nan")


@statistic(
    degree=0, invariant=_LAWS, low=0, high=1, code="S13", source="derived (mechanism M7)",
    null="none; of a vocabulary, what a frequent token has. Read it against the normal branch",
    undefined="no second moment is positive, or one is negative or NaN",
    figure="plot_tokens",
)  # fmt: skip
def v_row_top_share(row_v_sum: Values) -> float:
    r"""Share of the largest row in the second moment, :math:`\max_i\hat v_i/\sum_i\hat v_i`.

    Of an embedding: how much of the last gradients was about one token.
    """
    total = float(np.sum(row_v_sum))
    if not (total > 0 and np.min(row_v_sum) >= 0):
        return float("nan")
    return float(np.max(row_v_sum)) / total


@statistic(
    degree=0, invariant=_LAWS, low=0, high=1, code="S13", source="derived (mechanism M7)",
    null="0 for a matrix whose every row has a gradient at each step (definition)",
    undefined="a second moment is negative or NaN",
    figure="plot_tokens",
)  # fmt: skip
def v_row_unseen(row_v_sum: Values) -> float:
    r"""Fraction of rows that had no gradient lately.

    Rows whose :math:`\sum\hat v` is below :math:`e^{-10}` = 4.5e-5 of the median of those that are
    not zero: a row like the others falls so far in 10/(1 − β2) steps, 200 at 0.95. 1 if all are
    zero.
    """
    if not np.min(row_v_sum) >= 0:
        return float("nan")
    seen = row_v_sum[row_v_sum > 0]
    return float(np.mean(row_v_sum < UNSEEN * np.median(seen))) if len(seen) else 1.0
