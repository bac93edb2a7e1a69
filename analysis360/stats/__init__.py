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
    logits,
    moments,
    preconditioner,
    rounding,
    rows,
    singular,
    snr,
    spectrum,
    subspace,
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
    Term,
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
    term,
    terms,
    vector,
    whole,
    wholes,
)  # fmt: skip

__all__ = [
    "Accumulator", "BETWEEN", "DEFAULT", "REFERENCES", "SCALARS", "STORED", "State",
    "Statistic", "Term", "Whole", "accumulator", "accumulators", "adam", "bins", "change",
    "checks", "directions", "field_owner", "gains", "gather", "geometry", "is_vector",
    "logits", "merge", "moments", "preconditioner", "rounding", "rows", "singular", "snr",
    "spectrum", "state", "states", "statistic", "statistics", "subspace", "tails", "term",
    "terms", "updates", "vector", "whole", "wholes",
]  # fmt: skip

_ONE_PASS = {
    "norm_sums", "moment_sums", "value_counts", "difference_sums", "change_counts", "adam_sums",
}  # fmt: skip

DEFAULT = tuple(
    name
    for name, entry in statistics.items()
    if {measure.name for measure in entry.measures} <= _ONE_PASS and "clip" not in entry.inputs
)
"""What is measured when nothing is asked for: all that six accumulators give in one pass. Spectra,
histograms, rows, what takes sums of its own, and what needs the clip, which few runs tell, are
opt-in."""
