"""Histogram of magnitudes, on a logarithmic scale, and the quantiles that it gives. Opt-in.

Bins are cut where the bits of a float are: each octave into `PER_OCTAVE` equal ones. So a value's
bin is its leading bits, exact in every stored dtype, and histograms of blocks, tensors, checkpoints
and machines add up.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from analysis360.stats.base import Values, accumulator, statistic, vector
from analysis360.stats.histograms import quantile
from analysis360.stats.tiles import scratch

if TYPE_CHECKING:
    import torch

__all__ = ["BINS", "abs_median", "abs_p99", "abs_p999", "edges", "magnitude_bins"]

PER_OCTAVE = 8
LOW, HIGH = -96, 32
"""Exponents of two between which magnitudes are told apart: 1.3e-29 to 4.3e9."""

BINS = (HIGH - LOW) * PER_OCTAVE + 2
"""With one below, which holds the zeros, and one above, which holds infinities and NaN."""

_SHIFT = 52 - 3
_FIRST = (LOW + 1023) * PER_OCTAVE


@cache
def edges() -> Values:
    """Where bins begin and end: `BINS` + 1 numbers, the first 0 and the last infinite.

    Examples
    --------
    >>> len(edges()) - BINS, [float(e) for e in edges()[1:3] * 2.0**96]
    (1, [1.0, 1.125])
    """
    at = np.arange((HIGH - LOW) * PER_OCTAVE + 1)
    inner = np.ldexp(1 + at % PER_OCTAVE / PER_OCTAVE, LOW + at // PER_OCTAVE)
    found: Values = np.concatenate([[0.0], inner, [np.inf]])
    found.flags.writeable = False
    return found


@accumulator(vector("magnitude_bins", BINS))
def magnitude_bins(tensor: torch.Tensor) -> torch.Tensor:
    """Count magnitudes in logarithmic bins."""
    import torch

    bits = torch.abs(tensor, out=scratch(tensor, "bins")).view(torch.int64)
    place = bits.bitwise_right_shift_(_SHIFT).sub_(_FIRST - 1).clamp_(0, BINS - 1)
    return torch.bincount(place, minlength=BINS).to(torch.float64)


@statistic(
    invariant=("sign", "permutation", "transpose"), low=0,
    code="S3", source="definition", figure="plot_layers",
    null="0.674 σ for a Gaussian (closed form)",
    undefined="above 4.3e9, or where it falls among NaN and infinities",
)  # fmt: skip
def abs_median(magnitude_bins: Values) -> float:
    r"""Median magnitude, from a histogram: within one of its bins, 12.5 % at most.

    Within the bin it is interpolated, which leaves at most 2 % for a Gaussian (measured).
    A zero stands for anything below 1.3e-29. NaN if it lies above 4.3e9, or if the tensor holds so
    many NaN or infinities that it falls among those.
    """
    return quantile(magnitude_bins, edges(), 0.5, below=0.0)


@statistic(
    invariant=("sign", "permutation", "transpose"), low=0,
    code="S3", source="definition", figure="plot_layers",
    null="2.576 σ for a Gaussian (closed form)",
    undefined="above 4.3e9, or where it falls among NaN and infinities",
)  # fmt: skip
def abs_p99(magnitude_bins: Values) -> float:
    """Magnitude below which 99 % of the elements are; precise and undefined as `abs_median`."""
    return quantile(magnitude_bins, edges(), 0.99, below=0.0)


@statistic(
    invariant=("sign", "permutation", "transpose"), low=0,
    code="S3", source="definition", figure="plot_layers",
    null="3.291 σ for a Gaussian (closed form)",
    undefined="above 4.3e9, or where it falls among NaN and infinities",
)  # fmt: skip
def abs_p999(magnitude_bins: Values) -> float:
    """Magnitude below which 99.9 % of the elements are; precise and undefined as `abs_median`."""
    return quantile(magnitude_bins, edges(), 0.999, below=0.0)
