"""Statistics: accumulators, whole-matrix steps, derived states, and the numbers made of them.

A new statistic is one function::

    from analysis360.stats import statistic

    @statistic(degree=0)
    def rms_over_max(square_sum, norm_count, max_abs_value):
        "How flat a tensor is: 1 if all magnitudes are equal."
        return (square_sum / norm_count) ** 0.5 / max_abs_value
"""

from analysis360.stats import (
    adam,
    bins,
    change,
    directions,
    moments,
    preconditioner,
    snr,
    spectrum,
    updates,
)
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

_OPT_IN = {
    *adam.OPT_IN, *bins.__all__, *directions.__all__, *preconditioner.__all__, *snr.__all__,
    *spectrum.__all__, *updates.__all__,
}  # fmt: skip

DEFAULT = tuple(name for name in statistics if name not in _OPT_IN)
"""What is measured when nothing is asked for: all sums of one pass. Spectra and histograms are
opt-in."""
