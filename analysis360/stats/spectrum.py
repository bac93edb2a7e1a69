r"""Largest singular value and stable rank (S11 of the catalogue).

Small matrices go through the Gram matrix of their smaller side in float64, exactly. Larger ones go
through Lanczos steps on :math:`WW^T` from a seeded random start. A residual proves only that *a*
singular value lies near, not that it is the largest; the error reported is the bound of
Kuczyński & Woźniakowski (1992), Theorem 4.2, which holds with probability above 1 − 1e-6 over the
start: after `k` steps :math:`(\lambda_1-\theta)/\lambda_1\le(\ln(1.648\sqrt n/p)/(2k-1))^2` for
:math:`\lambda=\sigma^2`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from analysis360.stats.base import statistic, whole
from analysis360.stats.tiles import magnitude

if TYPE_CHECKING:
    import torch

__all__ = ["largest_singular_value", "spectral_norm", "spectral_norm_error", "stable_rank"]

EXACT_UP_TO = 1024
"""Smaller side up to which the Gram matrix is used: exact, and still cheap."""

STEPS = 96
"""Lanczos steps above that: bounds the relative error of σ at 0.5 % for a side of 8192 (measured
errors are a hundred times smaller)."""

FAILURE = 1e-6
"""Probability with which the reported bound may fail."""


SLAB = 1 << 20
"""Elements of a slab that is taken to float64 at a time."""


def _workspace(shape: tuple[int, ...]) -> int:
    """Bytes above the stored matrix: its float32 copy, slabs, and the Gram matrix or the basis."""
    rows, columns = shape
    side = min(rows, columns)
    work = 4 * 8 * side * side if side <= EXACT_UP_TO else 3 * 8 * STEPS * side
    return 4 * rows * columns + 2 * 8 * max(SLAB, side) + work + 8 * 8 * (rows + columns)


@whole(("sigma_max", "sigma_max_error", "frobenius_sq"), workspace=_workspace)
def largest_singular_value(tensor: torch.Tensor) -> torch.Tensor:
    """Largest singular value, a bound on its error, and the squared Frobenius norm."""
    import torch

    scale = magnitude(tensor.reshape(-1)).to(torch.float64)
    if not bool(torch.isfinite(scale)):
        return torch.full((3,), math.nan, dtype=torch.float64, device=tensor.device)
    if not bool(scale > 0):
        return torch.zeros(3, dtype=torch.float64, device=tensor.device)
    rows, columns = tensor.shape
    matrix = tensor if rows <= columns else tensor.T  # at most as high as wide
    if matrix.shape[0] <= EXACT_UP_TO:
        return _exact(matrix, scale)
    return _lanczos(matrix, scale)


def _slabs(matrix: torch.Tensor, scale: torch.Tensor) -> Iterator[torch.Tensor]:
    """Some rows at a time over `scale`, in float64, in one buffer that is used again and again.

    Fresh buffers of some megabytes would leave holes in the heap that nothing fits into.
    """
    import torch

    rows, columns = matrix.shape
    height = min(rows, max(1, SLAB // columns))
    buffer = torch.empty(height, columns, dtype=torch.float64, device=matrix.device)
    for start in range(0, rows, height):
        taken = matrix[start : start + height]
        slab = buffer[: len(taken)]
        yield slab.copy_(taken).div_(scale)


def _exact(matrix: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Eigenvalues of the Gram matrix, summed over slabs of columns in float64."""
    import torch

    side, length = matrix.shape
    gram = torch.zeros(side, side, dtype=torch.float64, device=matrix.device)
    for slab in _slabs(matrix.T, scale):
        gram.addmm_(slab.T, slab)
    trace = gram.trace()
    sigma = torch.linalg.eigvalsh(gram)[-1].clamp(min=0).sqrt()
    # Backward error of the sums and of eigvalsh, over 2σ for the square root.
    error = 4 * (side + length) * torch.finfo(torch.float64).eps * trace / (2 * sigma)
    return torch.stack([sigma * scale, error * scale, trace * scale**2])


def _lanczos(matrix: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Lanczos with full reorthogonalisation; products in the matrix's own precision."""
    import torch

    rows, columns = matrix.shape
    squares = [torch.dot(slab.reshape(-1), slab.reshape(-1)) for slab in _slabs(matrix, scale)]
    root = scale.sqrt()

    def times(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """One product, scaled half before and half after, so that nothing over- or underflows."""
        return (one @ (other / root).to(one.dtype)).to(torch.float64) / root

    generator = torch.Generator().manual_seed(360)  # its own: the caller's is left alone
    start = torch.randn(rows, generator=generator, dtype=torch.float64).to(matrix.device)
    basis = torch.zeros(STEPS, rows, dtype=torch.float64, device=matrix.device)
    gram = torch.zeros(STEPS, STEPS, dtype=torch.float64, device=matrix.device)
    vector = start / start.norm()
    done = 0
    for step in range(STEPS):
        basis[step] = vector
        done = step + 1
        image = times(matrix, times(matrix.T, vector))
        weights = basis[:done] @ image
        gram[:done, step] = weights
        gram[step, :done] = weights
        for _ in range(2):  # twice is enough (Giraud et al. 2005)
            image = image - basis[:done].T @ (basis[:done] @ image)
        length = image.norm()
        if not bool(length > 1e-7 * gram[0, 0].abs()):
            break  # the space is invariant: nothing more to find from this start
        vector = image / length
    sigma = torch.linalg.eigvalsh(gram[:done, :done])[-1].clamp(min=0).sqrt()
    gap = math.log(1.648 * math.sqrt(rows) / FAILURE) / (2 * done - 1)
    relative = 1 / math.sqrt(1 - min(gap**2, 0.75)) - 1 if done == STEPS else 0.0
    rounding = 32 * math.sqrt(columns) * torch.finfo(matrix.dtype).eps
    norm_sq = torch.stack(squares).sum()
    return torch.stack([sigma * scale, sigma * scale * (relative + rounding), norm_sq * scale**2])


@statistic(degree=1, invariant=("sign", "permutation", "transpose", "orthogonal"), low=0)
def spectral_norm(sigma_max: float) -> float:
    r"""Largest singular value, :math:`\sigma_1(W)`.

    Exact to rounding where the smaller side is at most 1024, otherwise from 96 Lanczos steps and
    not above the truth but for rounding; `spectral_norm_error` bounds what is missing. NaN for
    tensors that are not matrices or hold non-finite values.
    """
    return sigma_max


@statistic(degree=1, invariant=("sign", "permutation", "transpose"), low=0)
def spectral_norm_error(sigma_max_error: float) -> float:
    r"""Bound on the error of `spectral_norm`, with probability above 1 − 1e-6 over the start."""
    return sigma_max_error


@statistic(degree=0, invariant=("sign", "permutation", "transpose", "orthogonal"), low=0)
def stable_rank(sigma_max: float, frobenius_sq: float) -> float:
    r"""Stable rank, :math:`\|W\|_F^2/\sigma_1^2` (Rudelson & Vershynin 2007).

    Between 1 and the rank; about a quarter of the side for a square Gaussian matrix. NaN for a zero
    matrix, and for tensors that are not matrices. Its relative error is twice that of
    `spectral_norm`.
    """
    return float(np.divide(frobenius_sq, sigma_max**2)) if sigma_max > 0 else float("nan")
