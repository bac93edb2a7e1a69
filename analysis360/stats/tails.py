"""Tails and outliers of one tensor: single elements, and rows and columns (T9, S13). Opt-in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from analysis360.stats.base import Values, accumulator, statistic
from analysis360.stats.tiles import count_zeros, once, scratch

if TYPE_CHECKING:
    import torch

__all__ = [
    "channel_max_column", "channel_max_row", "column_sums", "l1_norm", "row_sums",
    "subnormal_fraction", "tail_sums",
]  # fmt: skip

SMALLEST_NORMAL = {
    "float32": 2.0**-126, "bfloat16": 2.0**-126, "float16": 2.0**-14,
}  # fmt: skip
"""Magnitudes below it are stored with fewer digits, the smaller the fewer."""


@accumulator(
    {"tail_count": "sum", "abs_sum": "sum", "below_2_14": "sum", "below_2_126": "sum"}
)  # fmt: skip
def tail_sums(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of magnitudes, and how many are not zero but below 2**-14, and below 2**-126."""
    import torch

    size = torch.abs(tensor, out=scratch(tensor, "size"))
    total = size.sum()
    zeros, found = count_zeros(size), scratch(tensor, "below")
    below = [torch.lt(size, limit, out=found).sum() - zeros for limit in (2.0**-14, 2.0**-126)]
    return torch.stack([torch.full_like(total, size.numel()), total, *below])


@accumulator({"row_square_sum": "rows", "row_sum": "rows"}, axis="rows")
def row_sums(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of squares and sum of each row."""
    import torch

    return torch.stack([_squares(tensor).sum(1), tensor.sum(1)])


@accumulator({"column_square_sum": "sum", "column_sum": "sum"}, axis="columns")
def column_sums(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of squares and sum of each column."""
    import torch

    return torch.stack([_squares(tensor).sum(0), tensor.sum(0)])


def _squares(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    def make() -> torch.Tensor:
        return torch.mul(tensor, tensor, out=scratch(tensor, "row squares").view(tensor.shape))

    return once("row squares", (tensor,), make)


@statistic(
    degree=1, invariant=("sign", "permutation", "transpose"), low=0,
    code="T9", source="definition", figure="plot_layers",
    null="√(2/π) nσ for a Gaussian (closed form)",
    undefined="not finite where the tensor holds a NaN or an infinity",
)  # fmt: skip
def l1_norm(abs_sum: float) -> float:
    r"""Sum of magnitudes, :math:`\sum|w|`."""
    return abs_sum


@statistic(
    invariant=("sign", "permutation", "transpose"), low=0, high=1,
    code="S1", source="IEEE 754, section 3.4", figure="plot_layers",
    null="erf(2⁻¹⁴/(σ√2)) for a Gaussian in float16: 0.24 % at σ = 0.02 (closed form); 0 in "
    "float32 and bfloat16",
    undefined="where the dtype is not float32, bfloat16 or float16, and for layers of several",
)  # fmt: skip
def subnormal_fraction(
    below_2_14: float, below_2_126: float, tail_count: float, dtype: str
) -> float:
    """Fraction of elements that are not zero, but below the smallest normal number of their dtype.

    That is 2⁻¹²⁶ (1.2e-38) in float32 and bfloat16, and 2⁻¹⁴ (6.1e-5) in float16. Such numbers
    have fewer digits, some hardware takes them for zero, and second moments that reach them have
    lost small gradients. NaN for other dtypes.
    """
    if dtype not in SMALLEST_NORMAL:
        return float("nan")
    return (below_2_14 if dtype == "float16" else below_2_126) / tail_count


def _largest_over_median(square_sums: Values) -> float:
    norms = np.sqrt(square_sums)
    if not np.isfinite(norms).all():
        return float("nan")
    middle = np.median(norms)
    return float(norms.max() / middle) if middle > 0 else float("nan")


@statistic(
    degree=0, invariant=("sign", "permutation"), low=1,
    code="T9", source="Yu et al. 2024 (arXiv:2411.07191); Sun et al. 2024 (arXiv:2402.17762)",
    figure="plot_layers",
    null="about 1 + √(ln(rows)/columns) for a Gaussian (closed form, asymptotic)",
    undefined="for tensors of one dimension, where half of the rows are zero, and where the tensor "
    "holds a NaN or an infinity",
)  # fmt: skip
def channel_max_row(row_square_sum: Values) -> float:
    """Largest norm of a row over the median norm of the rows: outliers among output channels.

    Of an output or down projection, rows that stand out write into few dimensions of the residual
    stream, where massive activations are found. Tensors of more than two dimensions are taken as
    [first, the rest]. NaN where the median row is zero. For layers and modules it is NaN: rows of
    different tensors do not merge.
    """
    return _largest_over_median(row_square_sum)


@statistic(
    degree=0, invariant=("sign", "permutation"), low=1,
    code="T9", source="Yu et al. 2024 (arXiv:2411.07191); Sun et al. 2024 (arXiv:2402.17762)",
    figure="plot_layers",
    null="about 1 + √(ln(columns)/rows) for a Gaussian (closed form, asymptotic)",
    undefined="for tensors of one dimension, where half of the columns are zero, and where the "
    "tensor holds a NaN or an infinity",
)  # fmt: skip
def channel_max_column(column_square_sum: Values) -> float:
    """Largest norm of a column over the median norm of the columns: outliers among input channels.

    Otherwise as `channel_max_row`.
    """
    return _largest_over_median(column_square_sum)
