"""Statistics: accumulators, whole-matrix steps, derived states, and the numbers made of them.

A new statistic is one function::

    from analysis360.stats import statistic

    @statistic(degree=0)
    def rms_over_max(square_sum, norm_count, max_abs_value):
        "How flat a tensor is: 1 if all magnitudes are equal."
        return (square_sum / norm_count) ** 0.5 / max_abs_value
"""

from analysis360.stats import adam, bins, change, gains, moments, rounding, spectrum, tails
from analysis360.stats.base import (
    BETWEEN,
    REFERENCES,
    SCALARS,
    STORED,
    Accumulator,
    State,
    Statistic,
    Whole,
    accumulator,
    accumulators,
    field_owner,
    gather,
    is_vector,
    merge,
    state,
    states,
    statistic,
    statistics,
    vector,
    whole,
    wholes,
)  # fmt: skip

__all__ = [
    "BETWEEN", "DEFAULT", "REFERENCES", "SCALARS", "STORED", "Accumulator", "State", "Statistic",
    "Whole", "accumulator", "accumulators", "adam", "bins", "change", "field_owner", "gains",
    "gather", "is_vector", "merge", "moments", "rounding", "spectrum", "state", "states",
    "statistic", "statistics", "tails", "vector", "whole", "wholes",
]  # fmt: skip

_OPT_IN = (spectrum, bins, tails, gains, rounding)

DEFAULT = tuple(
    name for name in statistics
    if name not in {"sign_flips", *(n for module in _OPT_IN for n in module.__all__)}
)  # fmt: skip
"""What is measured when nothing is asked for: all sums of one pass. Spectra and histograms are
opt-in."""
