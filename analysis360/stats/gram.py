"""What the spectra share: slabs of a matrix in float64, its Gram matrix, and block Krylov steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis360.stats import blas

if TYPE_CHECKING:
    import torch

__all__ = [
    "BLOCK",
    "BLOCK_STEPS",
    "EXACT_UP_TO",
    "Ritz",
    "gram",
    "gram_nbytes",
    "krylov",
    "krylov_nbytes",
    "slabs",
    "slabs_nbytes",
    "wide",
]

EXACT_UP_TO = 1024
"""Smaller side up to which the Gram matrix is used: exact, and still cheap."""

SLAB = 1 << 20
"""Elements of a slab that is taken to float64 at a time."""

PANEL = 256
"""Rows of a Gram matrix that are summed at a time; what lies above the diagonal is copied."""

BLOCK, BLOCK_STEPS = 16, 24
"""Width of a Krylov block, and how many are taken: the products read the matrix 48 times, a
quarter of what 96 single steps do, and values that occur several times are found as often."""


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """The matrix or its transpose: at most as high as wide."""
    return tensor if tensor.shape[0] <= tensor.shape[1] else tensor.T


def slabs_nbytes(shape: tuple[int, ...]) -> int:
    """Bytes that `slabs` needs: one buffer, and room for a transposed copy of it."""
    return 2 * 8 * max(SLAB, *shape)


def slabs(matrix: torch.Tensor, scale: torch.Tensor) -> Iterator[torch.Tensor]:
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


def gram_nbytes(shape: tuple[int, ...]) -> int:
    """Bytes that `gram` needs besides its result.

    No transposed copy is made of a slab: the room for it is what a BLAS packs its operands into.
    """
    return slabs_nbytes(shape) + 8 * PANEL * min(shape)


def gram(tensor: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Gram matrix of the smaller side of ``tensor / scale``, summed in float64."""
    import torch

    side = min(tensor.shape)
    square = torch.zeros(side, side, dtype=torch.float64, device=tensor.device)
    add = blas.rank_update if blas.held(square) else _strips
    for slab in _across(tensor, scale):
        add(square, slab)
    for top in range(0, side, PANEL):
        rows = square[top : top + PANEL]
        rows[:, top + PANEL :] = square[top + PANEL :, top : top + PANEL].T
        corner = rows[:, top : top + PANEL]
        corner.copy_(corner.tril() + corner.tril(-1).T)
    return square


def _strips(square: torch.Tensor, slab: torch.Tensor) -> None:
    """Add ``slab @ slab.T`` to the lower triangle, and to some more."""
    for top in range(0, len(square), PANEL):
        square[top:, top : top + PANEL].addmm_(slab[top:], slab[top : top + PANEL].T)


def _across(tensor: torch.Tensor, scale: torch.Tensor) -> Iterator[torch.Tensor]:
    """Pieces of full height of the wide matrix, in float64; rows of a tall one lie as stored."""
    import torch

    rows, columns = tensor.shape
    if rows > columns:
        yield from (slab.T for slab in slabs(tensor, scale))
        return
    width = min(columns, max(1, SLAB // rows))
    buffer = torch.empty(rows, width, dtype=torch.float64, device=tensor.device)
    for start in range(0, columns, width):
        taken = tensor[:, start : start + width]
        yield buffer[:, : taken.shape[1]].copy_(taken).div_(scale)


@dataclass(frozen=True, slots=True)
class Ritz:
    """Approximate top of the spectrum of ``matrix @ matrix.T / scale**2``.

    Attributes
    ----------
    values : torch.Tensor
        Eigenvalues of the projection, descending; never above the true ones of the same rank.
    vectors : torch.Tensor
        Their vectors, as columns.
    residual : float
        Frobenius norm of the residual of those vectors.
    steps : int
        Blocks taken.
    complete : bool
        Whether the space is invariant, so that from this start there is nothing more to find.
    """

    values: torch.Tensor
    vectors: torch.Tensor
    residual: float
    steps: int
    complete: bool


def krylov_nbytes(shape: tuple[int, ...], count: int) -> int:
    """Bytes that `krylov` needs besides the matrix."""
    size = BLOCK * BLOCK_STEPS
    side, length = min(shape), max(shape)
    small = 5 * size * size + 6 * BLOCK * size
    return 8 * (size * side + 8 * BLOCK * side + 3 * BLOCK * length + 2 * count * side + small)


def krylov(matrix: torch.Tensor, scale: torch.Tensor, count: int, apart: float) -> Ritz:
    """Block Krylov steps with full reorthogonalisation, from a seeded random block.

    Parameters
    ----------
    matrix : torch.Tensor
        At most as high as wide; products are taken in its precision, all else in float64.
    scale : torch.Tensor
        Its largest magnitude.
    count : int
        Vectors wanted, fewer than `BLOCK`.
    apart : float
        Stop when the residual is below this fraction of the distance between the values `count` and
        ``count + 1``; 0 to take all steps.
    """
    import torch

    rows = matrix.shape[0]
    root = scale.sqrt()

    def times(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (one @ (other / root).to(one.dtype)).to(torch.float64).div_(root)

    generator = torch.Generator().manual_seed(360)
    start = torch.randn(rows, BLOCK, generator=generator, dtype=torch.float64).to(matrix.device)
    block = torch.linalg.qr(start).Q
    size = BLOCK * BLOCK_STEPS
    basis = torch.zeros(size, rows, dtype=torch.float64, device=matrix.device)
    small = torch.zeros(size, size, dtype=torch.float64, device=matrix.device)
    for step in range(1, BLOCK_STEPS + 1):
        done = step * BLOCK
        basis[done - BLOCK : done] = block.T
        taken = basis[:done]
        image = times(matrix, times(matrix.T, block))
        weights = taken @ image
        small[:done, done - BLOCK : done] = weights
        small[done - BLOCK : done, :done] = weights.T
        for _ in range(2):
            image -= taken.T @ (taken @ image)
        complete = bool(image.norm() <= 1e-7 * small[0, 0].abs())
        if complete or step == BLOCK_STEPS or (apart and step % 4 == 0):
            values, vectors = torch.linalg.eigh(small[:done, :done])
            values, vectors = values.flip(0), vectors.flip(1)[:, :count]
            residual = 0.0 if complete else float((image @ vectors[-BLOCK:]).norm())
            if (
                complete
                or step == BLOCK_STEPS
                or residual <= apart * (values[count - 1] - values[count])
            ):
                return Ritz(values, taken.T @ vectors, residual, step, complete)
        block = torch.linalg.qr(image).Q
        block -= taken.T @ (taken @ block)  # columns that were nearly zero are any direction
        block = torch.linalg.qr(block).Q
    raise AssertionError
