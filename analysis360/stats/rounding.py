r"""What stored digits allow to be seen: rounding, and the floor it puts under a change (S2).

A value between :math:`2^e` and :math:`2^{e+1}` that is stored with p significant bits lies on a
grid of step :math:`\mathrm{ulp}=2^{e-p+1}`, and a continuous weight is off by
:math:`\mathrm{ulp}/\sqrt{12}` on the average. Opt-in.

How many bits is read off the values and not from the dtype: a bfloat16 weight that was exported as
float16 or float32, as all of K2's were, has gained no digits by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from analysis360.stats.base import accumulator, statistic
from analysis360.stats.tiles import scratch

if TYPE_CHECKING:
    import torch

__all__ = ["pair_ulp_sums", "rounding_error", "rounding_floor", "ulp_sums"]

FORMATS = ((8, -126), (11, -14), (24, -126), (53, -1022))
"""Significant bits and smallest exponent of bfloat16, float16, float32 and float64."""

_MANTISSA = (1 << 52) - 1
_EXPONENT = 0x7FF << 52


@accumulator({"ulp_sq": "sum"})
def ulp_sums(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of squares of the distances between neighbouring values."""
    return _ulp_sq(tensor).reshape(1)


@accumulator({"tensor_ulp_sq": "sum", "reference_ulp_sq": "sum"})
def pair_ulp_sums(tensor: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The same of both tensors of a pair."""
    import torch

    return torch.stack([_ulp_sq(tensor), _ulp_sq(reference)])


def _ulp_sq(x: torch.Tensor) -> torch.Tensor:
    """Σ ulp², for the narrowest format that holds all values of the tile.

    The digits are those that any value of the tile uses. Decided for each tile, sums of tensors of
    several dtypes add up to the right one. Nothing is read back from a device.
    """
    import torch

    bits = x.view(torch.int64)
    used = _any_of(bits, scratch(x, "digits", torch.int64)).bitwise_and(_MANTISSA)
    step, least = torch.ones_like(used, dtype=torch.float64), None
    for significant, exponent in reversed(FORMATS):
        holds = used.bitwise_and((1 << (53 - significant)) - 1) == 0
        step = torch.where(holds, 2.0 ** (1 - significant), step)
        smallest = torch.full_like(step, 2.0**exponent)
        least = smallest if least is None else torch.where(holds, smallest, least)
    octave = torch.bitwise_and(bits, _EXPONENT, out=scratch(x, "octave", torch.int64))
    scale = octave.view(torch.float64)
    scale = torch.clamp(scale, min=least, out=scale)
    return torch.dot(scale, scale) * step.square()


def _any_of(bits: torch.Tensor, work: torch.Tensor) -> torch.Tensor:
    """Bits that are set in any of several integers, in one; `work` is as long, and written to."""
    import torch

    length = bits.numel()
    while length > 1:
        half, odd = divmod(length, 2)
        folded = torch.bitwise_or(bits[:half], bits[half : 2 * half], out=work[:half])
        if odd:
            folded[0] |= bits[length - 1]
        bits, length = folded, half
    return bits[0]


@statistic(
    invariant=("sign", "permutation", "transpose"), low=0,
    code="S2", source="derived", figure="plot_layers",
    null="0.166 % for Gaussian weights in bfloat16 (simulated), 0.021 % in float16; gains near 1 "
    "0.11 to 0.21 %",
    undefined="for a zero tensor, and one that holds a NaN or an infinity",
)  # fmt: skip
def rounding_error(ulp_sq: float, square_sum: float) -> float:
    r"""Relative error of the stored tensor by rounding, :math:`\sqrt{\sum\mathrm{ulp}^2/12}/\|W\|`.

    For continuous values, such as those of a float32 master that was exported. The digits are those
    in use: if all values of a tile have at most 8 significant bits it is taken for bfloat16,
    whatever the dtype (so is a tensor of ones), at most 11 for float16, and at most 24 for float32.
    Formats of 8 bits are taken for bfloat16 too: there it is a lower bound. NaN for a zero tensor.
    """
    if not 0 < square_sum < np.inf:
        return float("nan")
    return float(np.sqrt(ulp_sq / 12 / square_sum))


@statistic(
    invariant=("sign", "permutation", "transpose"), low=0,
    code="S2", source="derived", figure="plot_layers",
    null="0.235 % for Gaussian weights in bfloat16 (simulated), 0.029 % in float16, 4e-8 in "
    "float32; gains near 1 in bfloat16 0.16 to 0.3 %",
    undefined="where the reference is zero, or either tensor holds a NaN or an infinity",
)  # fmt: skip
def rounding_floor(tensor_ulp_sq: float, reference_ulp_sq: float, reference_sq: float) -> float:
    r"""Relative displacement that rounding alone would show, beside `rel_displacement`.

    :math:`\sqrt{(\sum\mathrm{ulp}_\theta^2+\sum\mathrm{ulp}_{ref}^2)/12}\,/\,\|\theta_{ref}\|`: two
    independent roundings of continuous weights, by the digits in use as in `rounding_error`. What
    is measured is about :math:`\sqrt{\delta^2+\mathrm{floor}^2}` if the true changes :math:`\delta`
    are many steps of the grid wide. Where they are less, most elements do not change at all, the
    two roundings are not independent, and the floor is too high: see `unchanged_fraction`. NaN if
    the reference is zero.
    """
    if not (reference_sq > 0 and tensor_ulp_sq + reference_ulp_sq < np.inf):
        return float("nan")
    return float(np.sqrt((tensor_ulp_sq + reference_ulp_sq) / 12 / reference_sq))
