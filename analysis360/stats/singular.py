r"""All singular values of a matrix, and what is made of them (T7 and T14 of the catalogue).

Up to a smaller side of 512 they are those of LAPACK's SVD in float64. Above, they are square roots
of the eigenvalues of the Gram matrix of the smaller side, summed in float64: half the work and far
less memory, but the square loses digits of small values. What lies below
:math:`\sqrt{d\,\varepsilon}\,\sigma_1` (4.8e-7 σ₁ at d = 1024, 1.3e-6 at 8192) cannot be told from
0 there and is given as 0; the elements of a float32 matrix are themselves known to 6e-8 only.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from analysis360.stats.base import statistic, whole
from analysis360.stats.gram import gram, gram_nbytes
from analysis360.stats.powerlaw import PowerLaw, Values, fit_nbytes, fit_power_law
from analysis360.stats.tiles import magnitude

if TYPE_CHECKING:
    import torch

__all__ = [
    "effective_rank", "nuclear_norm", "participation_ratio", "power_law_alpha",
    "power_law_alpha_se", "power_law_distance", "power_law_tail", "power_law_xmin",
    "singular_spectrum",
]  # fmt: skip

SVD_UP_TO = 512
"""Smaller side up to which the singular value decomposition is taken."""

SVD_LENGTH = 8192
"""Longer side up to which it is: it holds a copy of the matrix in float64."""


def _by_svd(shape: tuple[int, ...]) -> bool:
    return min(shape) <= SVD_UP_TO and max(shape) <= SVD_LENGTH


def _workspace(shape: tuple[int, ...]) -> int:
    """Bytes above the stored matrix: its float32 copy, and copies or Gram matrices in float64."""
    rows, columns = shape
    side = min(rows, columns)
    work = 3 * 8 * rows * columns if _by_svd(shape) else 0
    work += 3 * 8 * side * side + gram_nbytes(shape)
    return 4 * rows * columns + max(work, fit_nbytes(side)) + 64 * 8 * (rows + columns)


FIELDS = ("pl_alpha", "pl_xmin", "pl_distance", "pl_tail")


@whole(FIELDS, workspace=_workspace, vector="singular_values")
def singular_spectrum(tensor: torch.Tensor) -> torch.Tensor:
    """The law of the tail of the eigenvalues, and all singular values."""
    import torch

    scale = magnitude(tensor.reshape(-1)).to(torch.float64)
    side = min(tensor.shape)
    if not bool(torch.isfinite(scale)):
        return torch.full((len(FIELDS) + side,), math.nan, dtype=torch.float64)
    if not bool(scale > 0):
        none = [math.nan] * len(FIELDS)
        return torch.cat([torch.tensor(none, dtype=torch.float64), torch.zeros(side).double()])
    unit, values = float(scale), _values(tensor, scale).cpu()
    law = _law(values.numpy(), max(tensor.shape))
    fields = [law.alpha, unit**2 * law.xmin, law.distance, law.tail]
    return torch.cat([torch.tensor(fields, dtype=torch.float64), unit * values])


def _values(tensor: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Singular values over `scale`, descending."""
    import torch

    if _by_svd(tuple(tensor.shape)):
        values: torch.Tensor = torch.linalg.svdvals(tensor.to(torch.float64) / scale)
        return values
    squares = torch.linalg.eigvalsh(gram(tensor, scale)).flip(0)
    floor = len(squares) * torch.finfo(torch.float64).eps * squares[0]
    return torch.where(squares > floor, squares, 0.0).sqrt()


def _law(values: Values, length: int) -> PowerLaw:
    """Power law of the eigenvalues, without those that are zero to rounding."""
    floor = length * np.finfo(np.float64).eps * values[0]
    return fit_power_law(values[values > floor] ** 2)


@statistic(
    degree=1,
    invariant=("sign", "permutation", "transpose", "orthogonal"),
    low=0,
    code="T7",
    source="derived",
    null="(8/3π)·d^1.5·RMS for a large square Gaussian matrix (closed form, quarter-circle law)",
    undefined="tensors that are not matrices, or hold non-finite values",
    unit="as the tensor",
    figure="plot_spectra",
)
def nuclear_norm(singular_values: Values) -> float:
    r"""Sum of the singular values, :math:`\sum_i\sigma_i`; 0 for a zero matrix."""
    return float(np.sum(singular_values))


@statistic(
    degree=0,
    invariant=("sign", "permutation", "transpose", "orthogonal"),
    low=1,
    code="T7",
    source="Roy & Vetterli 2007, equation 4",
    null="0.805·d for a large square Gaussian matrix (quarter-circle law, integrated numerically); "
    "d for an orthogonal one (closed form)",
    undefined="zero matrices, tensors that are not matrices, non-finite values",
    figure="plot_spectra",
)
def effective_rank(singular_values: Values) -> float:
    r"""Effective rank, :math:`\exp(-\sum_i p_i\ln p_i)` with :math:`p_i=\sigma_i/\sum\sigma`.

    Between 1 and the rank (Roy & Vetterli 2007). NaN for a zero matrix.
    """
    total = np.sum(singular_values)
    if not total > 0:
        return float("nan")
    shares = singular_values[singular_values > 0] / total
    return float(np.exp(-np.sum(shares * np.log(shares))))


@statistic(
    degree=0,
    invariant=("sign", "permutation", "transpose", "orthogonal"),
    low=1,
    code="T7",
    source="derived",
    null="rows·columns/(rows + columns) for a large Gaussian matrix: d/2 if square (closed form)",
    undefined="zero matrices, tensors that are not matrices, non-finite values",
    figure="plot_spectra",
)
def participation_ratio(singular_values: Values) -> float:
    r"""How many directions share the energy, :math:`(\sum\sigma^2)^2/\sum\sigma^4`.

    1 if one direction holds all, the rank if all hold the same. Less moved by small singular values
    than `effective_rank`. NaN for a zero matrix.
    """
    top = np.max(singular_values)
    if not top > 0:
        return float("nan")
    squares = (singular_values / top) ** 2
    return float(np.sum(squares) ** 2 / np.sum(squares**2))


_FIT = "Clauset, Shalizi & Newman 2009, equation 3.1; of weights: Martin & Mahoney 2021"
_FEW = "fewer than 10 non-zero singular values, or all the same; otherwise as nuclear_norm"


@statistic(
    degree=0,
    invariant=("sign",),
    low=1,
    code="T14",
    source=_FIT,
    null="none for a Gaussian matrix, whose spectrum has no tail: what is fitted is its edge. "
    "WeightWatcher calls below 2 over-trained, above 6 under-trained (its code, no proof)",
    undefined=_FEW,
    figure="plot_spectra",
)
def power_law_alpha(pl_alpha: float) -> float:
    r"""Exponent of the tail of the eigenvalues :math:`\lambda=\sigma^2`, as in WeightWatcher.

    The density :math:`\lambda^{-\alpha}` is fitted by maximum likelihood from the threshold
    `power_law_xmin` on, which is where the Kolmogorov–Smirnov distance is least (Clauset, Shalizi &
    Newman 2009). A fit is always found, whether or not there is a power law: read
    `power_law_distance` and `power_law_tail` beside it. NaN for fewer than 10 non-zero singular
    values.

    Notes
    -----
    Exploratory: no signature of loss spikes is published for it. The threshold is a minimum over
    many candidates, so that rounding may move it, and α with it, to another that fits as well.
    WeightWatcher drops eigenvalues below 1e-5 whatever the scale of the weights, and fits fewer
    than 20 in another way; there the two differ.
    """
    return pl_alpha


@statistic(
    degree=0,
    invariant=("sign",),
    low=0,
    code="T14",
    source="Clauset, Shalizi & Newman 2009, equation 3.2",
    null="none: it is an error",
    undefined=_FEW,
    figure="plot_spectra",
)
def power_law_alpha_se(pl_alpha: float, pl_tail: float) -> float:
    r"""Standard error of `power_law_alpha`, :math:`(\alpha-1)/\sqrt{n_\mathrm{tail}}`.

    For independent draws from a tail whose threshold is known. Where the same draws choose the
    threshold, one and two of it cover the truth in 57 % and 90 % of cases, not 68 % and 95 %
    (simulated: 200 to 1000 draws, α 2.5 and 3.5). Eigenvalues are not independent either: they
    repel each other, so the scatter from checkpoint to checkpoint is the better measure.
    """
    return float((pl_alpha - 1) / np.sqrt(pl_tail))


@statistic(
    degree=2,
    invariant=("sign",),
    low=0,
    code="T14",
    source=_FIT,
    null="none",
    undefined=_FEW,
    unit="the tensor's, squared",
    figure="plot_spectra",
)
def power_law_xmin(pl_xmin: float) -> float:
    """Eigenvalue from which on the power law is fitted."""
    return pl_xmin


@statistic(
    degree=0,
    invariant=("sign",),
    low=0,
    high=1,
    code="T14",
    source=_FIT,
    null="0.5/√n for n draws from a power law, 95th percentile 0.8/√n (simulated)",
    undefined=_FEW,
    figure="plot_spectra",
)
def power_law_distance(pl_distance: float) -> float:
    """Kolmogorov–Smirnov distance between the tail and its power law: how badly it fits."""
    return pl_distance


@statistic(
    degree=0,
    invariant=("sign",),
    low=2,
    code="T14",
    source=_FIT,
    null="none",
    undefined=_FEW,
    figure="plot_spectra",
)
def power_law_tail(pl_tail: float) -> float:
    """Number of eigenvalues in the fitted tail."""
    return pl_tail
