"""Statistics: accumulators, whole-matrix steps, derived states, and the numbers made of them.

A new statistic is one function::

    from analysis360.stats import statistic

    @statistic(degree=0)
    def rms_over_max(square_sum, norm_count, max_abs_value):
        "How flat a tensor is: 1 if all magnitudes are equal."
        return (square_sum / norm_count) ** 0.5 / max_abs_value
"""

from analysis360.stats import adam, change, moments, spectrum
from analysis360.stats.base import (
    SCALARS,
    STORED,
    Accumulator,
    State,
    Statistic,
    Whole,
    accumulator,
    accumulators,
    field_owner,
    merge,
    state,
    states,
    statistic,
    statistics,
    whole,
    wholes,
)  # fmt: skip

__all__ = [
    "DEFAULT", "SCALARS", "STORED", "Accumulator", "State", "Statistic", "Whole", "accumulator",
    "accumulators", "adam", "change", "field_owner", "merge", "moments", "spectrum", "state",
    "states", "statistic", "statistics", "whole", "wholes",
]  # fmt: skip

DEFAULT = tuple(name for name in statistics if name not in spectrum.__all__)
"""What is measured when nothing is asked for: all that one pass gives. Spectra are opt-in."""
