"""Loss spikes: found, cut into onset, peak, end and recovery, and held against another branch.

A LOSS frame (`analysis360.read_loss`) goes in, one row per spike comes out.
"""

from analysis360.spikes.aligned import align_spikes as align_spikes
from analysis360.spikes.changes import find_changes as find_changes
from analysis360.spikes.find import find_spikes as find_spikes
from analysis360.spikes.gap import spike_gap as spike_gap
from analysis360.spikes.gap import summarize_gap as summarize_gap
from analysis360.spikes.presets import spike_presets as spike_presets
from analysis360.spikes.presets import spike_score as spike_score

__all__ = [
    "align_spikes",
    "find_changes",
    "find_spikes",
    "spike_gap",
    "spike_presets",
    "spike_score",
    "summarize_gap",
]
