r"""Spectrum of a change, and angles between the leading subspaces of two checkpoints (T5, T6).

Where the smaller side is at most 1024, both rest on eigenvalues of the Gram matrix in float64 and
are exact. Above, on a block Krylov space with full reorthogonalisation: 24 blocks of 16 from a
seeded random start. What lies in such a space is never more than the truth (Rayleigh–Ritz, Ky Fan),
so norms and energies are lower bounds but for rounding.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from analysis360.stats.base import statistic, whole
from analysis360.stats.gram import (
    BLOCK,
    EXACT_UP_TO,
    gram,
    gram_nbytes,
    krylov,
    krylov_nbytes,
    slabs,
    slabs_nbytes,
    wide,
)
from analysis360.stats.tiles import magnitude

if TYPE_CHECKING:
    import torch

__all__ = [
    "change_spectrum", "delta_exact", "delta_spectral_norm", "delta_spectral_norm_error",
    "delta_stable_rank", "delta_top8_energy", "leading_subspaces", "subspace_gap",
    "subspace_null_left", "subspace_null_right", "subspace_overlap_left", "subspace_overlap_right",
]  # fmt: skip

TOP = 8
"""Leading directions."""

FAILURE = 1e-6
"""Probability with which the bound of `delta_spectral_norm_error` may fail."""

APART, APART_EXACT = 0.02, 1e-3
"""Largest residual of a subspace, over the gap below it: bounds the sine of its angle to the true
one, and by its square the error of an overlap; from a Krylov space, and from a Gram matrix."""


def _change_workspace(shape: tuple[int, ...]) -> int:
    """Bytes above the stored matrices: float32 copies, the difference, and Gram matrices."""
    rows, columns = shape
    side = min(rows, columns)
    work = 3 * 8 * side * side + gram_nbytes(shape)
    if side > EXACT_UP_TO:
        work = krylov_nbytes(shape, TOP) + slabs_nbytes(shape)
    return 3 * 4 * rows * columns + work + 8 * 8 * (rows + columns)


@whole(
    ("delta_sigma", "delta_sigma_error", "delta_top", "delta_square", "delta_is_exact"),
    workspace=_change_workspace,
)
def change_spectrum(tensor: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Of the difference: σ₁, a bound on its error, energy of the top 8 and of all, and the way."""
    import torch

    delta = tensor - reference
    exact = float(min(delta.shape) <= EXACT_UP_TO)
    scale = magnitude(delta.reshape(-1)).to(torch.float64)
    if not bool(torch.isfinite(scale)):
        return torch.full((5,), math.nan, dtype=torch.float64, device=delta.device)
    if not bool(scale > 0):
        return scale.new_tensor([0.0, 0.0, 0.0, 0.0, exact])
    sigma, error, top, square = _exactly(delta, scale) if exact else _nearly(wide(delta), scale)
    values = (sigma * scale, error * scale, top * scale**2, square * scale**2)
    return torch.stack([*values, scale.new_tensor(exact)])


def _exactly(delta: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, ...]:
    import torch

    square = gram(delta, scale)
    trace = square.trace()
    values = torch.linalg.eigvalsh(square).clamp(min=0)
    sigma = values[-1].sqrt()
    error = 4 * sum(delta.shape) * torch.finfo(torch.float64).eps * trace / (2 * sigma)
    return sigma, error, values[-TOP:].sum(), trace


def _nearly(delta: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, ...]:
    import torch

    square = torch.stack([slab.square_().sum() for slab in slabs(delta, scale)]).sum()
    found = krylov(delta, scale, TOP, 0.0)
    values = found.values.clamp(min=0)
    sigma = values[0].sqrt()
    # Each column of the block is a start of its own: all of them have to fail
    unlikely = FAILURE ** (1 / BLOCK)
    gap = math.log(1.648 * math.sqrt(len(delta)) / unlikely) / (2 * found.steps - 1)
    relative = 0.0 if found.complete else 1 / math.sqrt(1 - min(gap**2, 0.75)) - 1
    rounding = 32 * math.sqrt(delta.shape[1]) * torch.finfo(delta.dtype).eps
    return sigma, sigma * (relative + rounding), values[:TOP].sum(), square


_BOTH = ("sign", "permutation", "transpose", "orthogonal")
_UNLIKE = "tensors that are not matrices, or hold non-finite values"


@statistic(
    degree=1,
    invariant=_BOTH,
    low=0,
    code="T5",
    source="block Krylov, Rayleigh–Ritz",
    null="(√rows + √columns)·RMS(Δ) if Δ is independent Gaussian noise (closed form)",
    undefined=_UNLIKE,
    unit="as the tensor",
    figure="plot_spectra",
)
def delta_spectral_norm(delta_sigma: float) -> float:
    r"""Largest singular value of the change, :math:`\sigma_1(W-W_\mathrm{ref})`.

    Exact where the smaller side is at most 1024; above, a lower bound but for rounding, and
    `delta_spectral_norm_error` bounds what is missing; `delta_exact` says which. 0 if nothing
    changed. NaN for tensors that are not matrices or hold non-finite values.
    """
    return delta_sigma


@statistic(
    degree=1,
    invariant=("sign", "permutation", "transpose"),
    low=0,
    code="T5",
    source="derived from Kuczyński & Woźniakowski 1992, Theorem 4.2 (quoted, not checked)",
    null="none: it is a bound",
    undefined=_UNLIKE,
    unit="as the tensor",
    figure="plot_spectra",
)
def delta_spectral_norm_error(delta_sigma_error: float) -> float:
    r"""Bound on the error of `delta_spectral_norm`, certain where that is exact.

    Elsewhere it holds with probability above 1 − 1e-6 over the random start: the space holds the
    Krylov spaces of 16 independent vectors, of which all would have to fail.
    """
    return delta_sigma_error


@statistic(
    degree=0, invariant=_BOTH, low=0, high=1, code="T5", source="derived",
    null="none: it follows from the shape", undefined=_UNLIKE,
)  # fmt: skip
def delta_exact(delta_is_exact: float) -> float:
    """How the change's spectrum was found: 1 by the Gram matrix, exactly; 0 by block Krylov.

    By size alone: exactly where the smaller side is at most 1024.
    """
    return delta_is_exact


@statistic(
    degree=0,
    invariant=("sign", "permutation", "transpose"),
    low=1,
    code="T5",
    source="Rudelson & Vershynin 2007, of the change",
    null="rows·columns/(√rows + √columns)² if Δ is independent Gaussian noise: d/4 if square "
    "(closed form)",
    undefined="nothing changed; " + _UNLIKE,
    figure="plot_spectra",
)
def delta_stable_rank(delta_sigma: float, delta_square: float) -> float:
    r"""Stable rank of the change, :math:`\|\Delta\|_F^2/\sigma_1(\Delta)^2`.

    1 if it is of rank one: a few directions did the damage. Where `delta_exact` is 0 it is an upper
    bound. NaN if nothing changed.
    """
    return float(np.divide(delta_square, delta_sigma**2)) if delta_sigma > 0 else float("nan")


@statistic(
    degree=0,
    invariant=_BOTH,
    low=0,
    high=1,
    code="T5",
    source="derived",
    null="below 32/d (closed form) if Δ is square Gaussian noise: 30.7/d at d = 1024 (simulated); "
    "1 for rank up to 8",
    undefined="nothing changed; " + _UNLIKE,
    figure="plot_spectra",
)
def delta_top8_energy(delta_top: float, delta_square: float) -> float:
    r"""Share of :math:`\|\Delta\|_F^2` in its 8 leading directions.

    Exact where the smaller side is at most 1024; above, a lower bound (Ky Fan): what the Krylov
    space holds. NaN if nothing changed.
    """
    return min(1.0, delta_top / delta_square) if delta_square > 0 else float("nan")


def _subspace_workspace(shape: tuple[int, ...]) -> int:
    """Bytes above the stored matrices: float32 copies, a Gram matrix with vectors or a basis."""
    rows, columns = shape
    side = min(rows, columns)
    work = 6 * 8 * side * side + gram_nbytes(shape)
    if side > EXACT_UP_TO:
        work = krylov_nbytes(shape, TOP)
    return 2 * 4 * rows * columns + work + 8 * 8 * TOP * (rows + columns)


@whole(
    ("overlap_left", "overlap_right", "overlap_gap", "chance_left", "chance_right"),
    workspace=_subspace_workspace,
)
def leading_subspaces(tensor: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Mean squared cosine between top-8 subspaces, left and right; smallest gap; by chance."""
    import torch

    rows, columns = tensor.shape
    nothing = torch.full((5,), math.nan, dtype=torch.float64)
    if min(tensor.shape) <= TOP:
        return nothing
    found = []
    for matrix in (tensor, reference):
        scale = magnitude(matrix.reshape(-1)).to(torch.float64)
        if not bool(torch.isfinite(scale)) or not bool(scale > 0):
            return nothing
        found.append(_subspace(matrix, scale))
    short = long = math.nan
    if all(one[2] for one in found):
        short, long = (_overlap(found[0][0][side], found[1][0][side]) for side in (0, 1))
    left, right = (short, long) if rows <= columns else (long, short)
    gap = min(one[1] for one in found)
    return torch.tensor([left, right, gap, TOP / rows, TOP / columns], dtype=torch.float64)


def _overlap(first: torch.Tensor, second: torch.Tensor) -> float:
    return min(1.0, float((first.T @ second).square().sum()) / TOP)


def _subspace(
    tensor: torch.Tensor, scale: torch.Tensor
) -> tuple[tuple[torch.Tensor, torch.Tensor], float, bool]:
    """Leading vectors of the short and of the long side; the gap below; how settled they are."""
    import torch

    matrix = wide(tensor)
    if len(matrix) <= EXACT_UP_TO:
        values, vectors = torch.linalg.eigh(gram(tensor, scale))
        values, short = values.flip(0), vectors[:, -TOP:].flip(1)
        residual = len(matrix) * torch.finfo(torch.float64).eps * float(values[0])
        apart = APART_EXACT
    else:
        ritz = krylov(matrix, scale, TOP, APART / 2)
        values, short = ritz.values, ritz.vectors
        products = 8 * torch.finfo(matrix.dtype).eps * float(values[0])
        residual, apart = ritz.residual + products, APART
    settled = residual <= apart * float(values[TOP - 1] - values[TOP])
    settled = settled and bool(values[TOP - 1] > 0)
    sigmas = values[: TOP + 1].clamp(min=0).sqrt()
    gap = float((sigmas[TOP - 1] - sigmas[TOP]) / sigmas[0])
    long = torch.linalg.qr(_images(matrix, short, scale) / sigmas[:TOP].clamp(min=1e-30)).Q
    return (short, long), gap, settled


def _images(matrix: torch.Tensor, short: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``matrix.T @ short / scale`` in float64, a slab at a time."""
    import torch

    images = torch.zeros(matrix.shape[1], TOP, dtype=torch.float64, device=matrix.device)
    at = 0
    for slab in slabs(matrix, scale):
        images.addmm_(slab.T, short[at : at + len(slab)])
        at += len(slab)
    return images


_LOOSE = (
    "the smaller side is 8 or less; a zero matrix or non-finite values; the 8th and 9th singular "
    "values are too near to each other for the subspace to be settled, see its notes"
)


@statistic(
    degree=0, invariant=("sign", "permutation", "orthogonal"), low=0, high=1, code="T6",
    source="Björck & Golub 1973",
    null="8/rows for unrelated subspaces (closed form): subspace_null_left", undefined=_LOOSE,
    figure="plot_spectra",
)  # fmt: skip
def subspace_overlap_left(overlap_left: float) -> float:
    r"""Mean :math:`\cos^2` of the principal angles between the top-8 left singular subspaces.

    :math:`\|U_8^TU_{8,\mathrm{ref}}\|_F^2/8`: 1 if they are the same, `subspace_null_left` = 8/rows
    on average if they have nothing to do with each other.

    Notes
    -----
    The subspace means little where the 8th singular value is no different from the 9th. It is
    undefined (NaN) where what is left of the equation, over the gap :math:`\sigma_8^2-\sigma_9^2`,
    may turn it by a sine above 0.001 (rounding, smaller side up to 1024) or 0.02 (residual of the
    Krylov space, above), by the theorem of Davis & Kahan (1970); so overlaps are right to 1e-6 or
    1e-3. That concerns arithmetic only: compare `subspace_gap` with the rounding of the stored
    values too.
    """
    return overlap_left


@statistic(
    degree=0, invariant=("sign", "permutation", "orthogonal"), low=0, high=1, code="T6",
    source="Björck & Golub 1973",
    null="8/columns for unrelated subspaces (closed form): subspace_null_right", undefined=_LOOSE,
    figure="plot_spectra",
)  # fmt: skip
def subspace_overlap_right(overlap_right: float) -> float:
    r"""Mean :math:`\cos^2` of the principal angles between the top-8 right singular subspaces.

    As `subspace_overlap_left`, for the side of the inputs; by chance `subspace_null_right`.
    """
    return overlap_right


@statistic(
    degree=0, invariant=_BOTH, low=0, high=1, code="T6", source="derived",
    null="0.0040 and 0.0025 on average for square Gaussian matrices, d = 512, 1024 (simulated)",
    undefined="the smaller side is 8 or less; a zero matrix or non-finite values",
    figure="plot_spectra",
)  # fmt: skip
def subspace_gap(overlap_gap: float) -> float:
    r"""Smaller of the two gaps :math:`(\sigma_8-\sigma_9)/\sigma_1` below the top-8 subspaces.

    A disturbance `E` of the weights turns a subspace by about :math:`\|E\|_2/(\sigma_1\cdot` gap):
    where that is near 1, the overlaps compare noise. Exact where the smaller side is at most 1024;
    above, :math:`\sigma_9` is that of a Krylov space which ends when the eight are settled, not
    above the truth, so the gap may read some percent too large (3 % at most in simulations).
    """
    return overlap_gap


@statistic(
    degree=0, invariant=("sign", "permutation", "orthogonal"), low=0, high=1, code="T6",
    source="derived", null="none: it is one", undefined="as subspace_gap",
)  # fmt: skip
def subspace_null_left(chance_left: float) -> float:
    """What `subspace_overlap_left` reads on average for unrelated subspaces: 8/rows."""
    return chance_left


@statistic(
    degree=0, invariant=("sign", "permutation", "orthogonal"), low=0, high=1, code="T6",
    source="derived", null="none: it is one", undefined="as subspace_gap",
)  # fmt: skip
def subspace_null_right(chance_right: float) -> float:
    """What `subspace_overlap_right` reads on average for unrelated subspaces: 8/columns."""
    return chance_right
