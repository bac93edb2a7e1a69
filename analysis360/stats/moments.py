"""Norms, moments and counts of one tensor (S1, T1 and T9 of the catalogue)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from analysis360.stats.base import accumulator, statistic
from analysis360.stats.tiles import count_zeros, magnitude, once, scratch

if TYPE_CHECKING:
    import torch

__all__ = [
    "kurtosis", "l2_norm", "max_abs", "max_over_rms", "mean", "moment_sums", "nonfinite",
    "norm_sums", "rms", "rms_to_equilibrium", "skewness", "std", "value_counts", "zero_fraction",
]  # fmt: skip


@accumulator(
    {"norm_count": "sum", "total": "sum", "square_sum": "sum", "max_abs_value": "max"}
)  # fmt: skip
def norm_sums(tensor: torch.Tensor) -> torch.Tensor:
    """Sum, sum of squares and the largest magnitude."""
    import torch

    total, square_sum = _total(tensor), norm_sq(tensor)
    values = (torch.full_like(total, tensor.numel()), total, square_sum, magnitude(tensor))
    return torch.stack(values)


@accumulator(
    {"count": "sum", "mean": "moments", "m2": "moments", "m3": "moments", "m4": "moments"},
    version=2,
)
def moment_sums(tensor: torch.Tensor) -> torch.Tensor:
    """Central moments about the tile's mean.

    Where the mean is small beside the spread, sums of powers give them without losing digits. Else
    values are centred before they are squared: the variance of gains near 1, taken as a difference
    of sums, would be wrong.
    """
    import torch

    n, total = tensor.numel(), _total(tensor)
    if tensor.device.type == "cpu":  # where reading numbers back costs nothing
        mean, second = total.item() / n, norm_sq(tensor).item()
        if n * mean**2 < 0.25 * second:
            square = torch.mul(tensor, tensor, out=scratch(tensor, "square"))
            third, fourth = torch.dot(square, tensor).item(), torch.dot(square, square).item()
            m2 = second - n * mean**2
            m3 = third - 3 * mean * second + 2 * n * mean**3
            m4 = fourth - 4 * mean * third + 6 * mean**2 * second - 3 * n * mean**4
            return torch.tensor([n, mean, m2, m3, m4], dtype=torch.float64)
    centre = total / n
    d = torch.sub(tensor, centre, out=scratch(tensor, "deviation"))
    square = torch.mul(d, d, out=scratch(tensor, "square"))
    values = (
        torch.full_like(centre, n), centre,
        square.sum(), torch.dot(square, d), torch.dot(square, square),
    )  # fmt: skip
    return torch.stack(values)


@accumulator({"value_count": "sum", "zeros": "sum", "nonfinite_count": "sum"})
def value_counts(tensor: torch.Tensor) -> torch.Tensor:
    """Counts of exact zeros, and of NaN and infinities."""
    import torch

    total = _total(tensor)
    counted = torch.full_like(total, tensor.numel())
    return torch.stack([counted, count_zeros(tensor), _nonfinite(tensor, total)])


def _total(tensor: torch.Tensor) -> torch.Tensor:
    return once("total", (tensor,), tensor.sum)


def norm_sq(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of squares."""
    import torch

    return once("norm_sq", (tensor,), lambda: torch.dot(tensor, tensor))


def _nonfinite(tensor: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """Count NaN and infinities; the scan is skipped where reading one number back costs nothing."""
    import torch

    if tensor.device.type == "cpu" and math.isfinite(total.item()):  # one of them would show there
        return torch.zeros((), dtype=torch.float64)
    return (tensor.numel() - torch.isfinite(tensor).sum()).to(torch.float64)


@statistic(
    degree=1, invariant=("sign", "permutation", "transpose", "orthogonal"), low=0,
    code="S1", source="definition", figure="plot_layers",
    null="σ√n for independent elements of spread σ (closed form)",
    undefined="not finite where the tensor holds a NaN or an infinity",
)  # fmt: skip
def l2_norm(square_sum: float) -> float:
    r"""Euclidean (Frobenius) norm.

    :math:`\|W\|_F = \sqrt{\sum w^2}`, summed in float64. Not finite if the tensor holds a NaN or
    an infinity.

    Notes
    -----
    ``torch.Tensor.norm`` in float32 on a CPU is 0.6 % low at 67 million elements and 10 % at 537
    million; this one is right to 1e-6, and does not depend on the number of threads.
    """
    return float(np.sqrt(square_sum))


@statistic(
    degree=1, invariant=("sign", "permutation", "transpose", "orthogonal"), low=0,
    code="S1", source="definition", figure="plot_layers",
    null="σ for independent elements of spread σ (closed form); where noise and weight decay "
    "balance see rms_to_equilibrium",
    undefined="not finite where the tensor holds a NaN or an infinity",
)  # fmt: skip
def rms(square_sum: float, norm_count: float) -> float:
    r"""Root mean square, :math:`\|W\|_F/\sqrt n`: the norm without the size of the tensor."""
    return float(np.sqrt(square_sum / norm_count))


@statistic(
    degree=1, invariant=("permutation", "transpose"),
    code="S1", source="definition", figure="plot_layers",
    null="0 ± σ/√n for independent elements of mean zero (closed form)",
    undefined="for no elements; not finite where the tensor holds a NaN or an infinity",
)  # fmt: skip
def mean(total: float, norm_count: float) -> float:
    r"""Arithmetic mean, :math:`\frac1n\sum w`."""
    return total / norm_count if norm_count else float("nan")


@statistic(
    degree=1, invariant=("sign", "permutation", "transpose"), low=0,
    code="S1", source="definition", figure="plot_layers",
    null="as rms, where the mean is zero",
    undefined="where the tensor holds a NaN or an infinity",
)  # fmt: skip
def std(count: float, m2: float) -> float:
    r"""Standard deviation about the mean, :math:`\sqrt{M_2/n}` (population, not :math:`n-1`)."""
    return float(np.sqrt(m2 / count))


@statistic(
    degree=1, invariant=("sign", "permutation", "transpose"), low=0,
    code="S1", source="definition", figure="plot_layers",
    null="about σ√(2 ln n) for a Gaussian, a few percent less (closed form, asymptotic)",
    undefined="where the tensor holds a NaN",
)  # fmt: skip
def max_abs(max_abs_value: float) -> float:
    r"""Largest magnitude, :math:`\max|w|`; NaN if the tensor holds a NaN."""
    return max_abs_value


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose"), low=1,
    code="T9", source="definition", figure="plot_layers",
    null="about √(2 ln n) for a Gaussian, a few percent less: 4.9 at a million (simulated)",
    undefined="for a zero tensor, and one that holds a NaN or an infinity",
)  # fmt: skip
def max_over_rms(max_abs_value: float, square_sum: float, norm_count: float) -> float:
    r"""Largest magnitude over the root mean square: how far the largest outlier stands out.

    :math:`\max|w|\,\sqrt n/\|W\|_F`, between 1 (all magnitudes equal) and :math:`\sqrt n` (one
    element that is not zero). NaN for a zero tensor. A single element of a down projection far
    outside the bell is what is called a super weight (Yu et al. 2024, arXiv:2411.07191).
    """
    if not 0 < square_sum < math.inf:
        return float("nan")
    return float(max_abs_value / np.sqrt(square_sum / norm_count))


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose"), low=0, high=1,
    code="S1", source="definition", figure="plot_layers",
    null="0 for trained weights; padding, pruning and rows never touched are not",
)  # fmt: skip
def zero_fraction(zeros: float, value_count: float) -> float:
    """Fraction of elements that are exactly zero."""
    return zeros / value_count


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose"), low=0,
    code="S1", source="definition", figure="plot_layers",
    null="0: anything else is a damaged file or a run that has failed",
)  # fmt: skip
def nonfinite(nonfinite_count: float) -> float:
    """Number of NaN and infinite elements."""
    return nonfinite_count


def _equal(count: float, mean: float, m2: float) -> bool:
    """Whether elements are all equal: what is left of their spread is the rounding of their mean.

    Also true where the spread is not a number.
    """
    rounding = count * (4 * np.finfo(np.float64).eps * mean) ** 2
    return not m2 > rounding


@statistic(
    degree=0, invariant=("permutation", "transpose"),
    code="T9", source="definition", figure="plot_layers",
    null="0 ± √(6/n) for a Gaussian (closed form)",
    undefined="where all elements are equal, or one is a NaN or an infinity",
)  # fmt: skip
def skewness(count: float, mean: float, m2: float, m3: float) -> float:
    r"""Third standardised moment, :math:`\sqrt n\,M_3/M_2^{3/2}`: 0 for what is symmetric.

    NaN for a tensor whose elements are all equal.
    """
    return float("nan") if _equal(count, mean, m2) else float(np.sqrt(count) * m3 / m2**1.5)


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose"), low=1,
    code="T9", source="definition", figure="plot_layers",
    null="3 ± √(24/n) for a Gaussian, 1.8 for a uniform one (closed form)",
    undefined="where all elements are equal, or one is a NaN or an infinity",
)  # fmt: skip
def kurtosis(count: float, mean: float, m2: float, m4: float) -> float:
    r"""Fourth standardised moment, :math:`n M_4/M_2^2`; 3 for a Gaussian (not the excess).

    NaN for a tensor whose elements are all equal.
    """
    return float("nan") if _equal(count, mean, m2) else count * m4 / m2**2


@statistic(
    degree=1, invariant=("sign", "permutation", "transpose", "orthogonal"), low=0,
    code="T1", source="Kosson et al. 2024 (arXiv:2305.17212), Table 1, re-derived",
    figure="plot_layers",
    null="1 in the balance of unit diffusion (closed form); √0.685 = 0.83 is that of K2 before its "
    "spikes (from published norms)",
    undefined="for parameters that are not decayed, where rate or decay is not known, and for "
    "layers that hold decayed and undecayed tensors",
)  # fmt: skip
def rms_to_equilibrium(
    square_sum: float, norm_count: float, lr: float, weight_decay: float
) -> float:
    r"""Root mean square over the one at which noise and weight decay balance.

    :math:`\mathrm{RMS}(\theta)/\sqrt{\eta/2\lambda}`, at the learning rate in force at the
    checkpoint. NaN for parameters that are not decayed.

    **The reference is that of unit diffusion, D = 1**: gradients that are independent from step to
    step, of steady size. Then :math:`d(\|\theta\|^2/n)/dt=-2\eta\lambda\|\theta\|^2/n+D\eta^2`
    has its fixed point there. For another D it is :math:`\sqrt{D\,\eta/2\lambda}`; `diffusion`
    measures D. K2's published norms give D = 0.685 before its spikes, so its own reference is
    :math:`\sqrt{0.685\,\eta/2\lambda}`, and 0.83 here is balance.

    The norm relaxes within :math:`1/(2\eta\lambda)` steps, 56 checkpoints in the middle of K2: a
    slow reference, and no state that a run must be in.
    """
    if not (lr > 0 and weight_decay > 0):
        return float("nan")
    return float(np.sqrt(square_sum / norm_count * 2 * weight_decay / lr))
