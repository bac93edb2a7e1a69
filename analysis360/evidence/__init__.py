"""Evidence for and against each mechanism of a loss spike, from tables; never one story."""

from analysis360.evidence.pieces import MECHANISMS
from analysis360.evidence.weigh import EVIDENCE_STATISTICS, evidence_matrix, weigh_evidence

__all__ = ["EVIDENCE_STATISTICS", "MECHANISMS", "evidence_matrix", "weigh_evidence"]
