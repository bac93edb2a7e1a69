"""Statistics: accumulators, whole-matrix steps, derived states, and the numbers made of them.

A new statistic is one function::

    from analysis360.stats import statistic

    @statistic(degree=0)
    def rms_over_max(square_sum, norm_count, max_abs_value):
        "How flat a tensor is: 1 if all magnitudes are equal."
        return (square_sum / norm_count) ** 0.5 / max_abs_value
"""

from analysis360.stats import adam, bins, change, moments, spectrum
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
    "Whole", "accumulator", "accumulators", "adam", "bins", "change", "field_owner", "gather",
    "is_vector", "merge", "moments", "spectrum", "state", "states", "statistic", "statistics",
    "vector", "whole", "wholes",
]  # fmt: skip

DEFAULT = tuple(name for name in statistics if name not in {*spectrum.__all__, *bins.__all__})
"""What is measured when nothing is asked for: all sums of one pass. Spectra and histograms are
opt-in."""
