"""Branches of a run held against each other: how far apart, in what, since when, and by chance."""

from analysis360.branches.checks import check_branches
from analysis360.branches.compare import check_names, clock_of, compare_branches
from analysis360.branches.crossings import first_crossings
from analysis360.branches.departure import first_departure
from analysis360.branches.divergence import branch_divergence
from analysis360.branches.growth import growth_exponent
from analysis360.branches.placebos import score_branches
from analysis360.branches.ranks import rank_agreement, rank_layers, shares

__all__ = [
    "branch_divergence",
    "check_branches",
    "check_names",
    "clock_of",
    "compare_branches",
    "first_crossings",
    "first_departure",
    "growth_exponent",
    "rank_agreement",
    "rank_layers",
    "score_branches",
    "shares",
]
