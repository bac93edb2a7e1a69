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
    checks,
    directions,
    gains,
    geometry,
    moments,
    preconditioner,
    rounding,
    rows,
    snr,
    spectrum,
    tails,
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
    "Whole", "accumulator", "accumulators", "adam", "bins", "change", "checks", "directions",
    "field_owner", "gains", "gather", "geometry", "is_vector", "merge", "moments",
    "preconditioner", "rounding", "rows", "snr", "spectrum", "state", "states", "statistic",
    "statistics", "tails", "updates", "vector", "whole", "wholes",
]  # fmt: skip

_OPT_IN = {
    "sign_flips",
    *adam.OPT_IN, *bins.__all__, *directions.__all__, *gains.__all__, *preconditioner.__all__,
    *rounding.__all__, *rows.__all__, *snr.__all__, *spectrum.__all__, *tails.__all__,
    *updates.__all__,
}  # fmt: skip

DEFAULT = tuple(name for name in statistics if name not in _OPT_IN)
"""What is measured when nothing is asked for: all sums of one pass. Spectra, histograms, rows and
what takes sums of its own are opt-in."""
