"""What became of a spike, by stated rules: neutral, benign, malignant or catastrophic."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LONG", "STAYS", "LOST", "Outcome", "classify"]

LONG = 100
"""Steps from which a spike is no longer benign: K2's own distinction, "about 100 steps"."""

STAYS = 0.06
"""Nats above the extrapolated baseline from which a spike left something: twice the 0.03 nat (root
mean square) that the residual reads at places without a spike in two real logs."""

LOST = 1000
"""Steps without an end from which a spike may be catastrophic."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the rules look at; steps and nats."""

    fast: bool
    censored: bool
    steps: int
    height: float
    residual: float
    late: float
    """Median excess of the last quarter of the event's samples."""


def classify(seen: Outcome) -> tuple[str, str]:
    """Class of an event and the rule that gave it, with its numbers; "" where none can."""
    if seen.height < 0:
        return "", "below its baseline"
    if seen.fast:
        if seen.censored:
            return "", "the log ends with it"
        return "neutral", f"over after {seen.steps} steps, too few samples to be sustained"
    if seen.censored:
        half = seen.height / 2
        if seen.steps >= LOST and seen.late > half:
            return "catastrophic", (
                f"no end within {seen.steps} steps (limit {LOST}), and its last quarter still "
                f"{seen.late:.3g} above the baseline, over half of its height"
            )
        return "malignant", f"cut: the log ends {seen.steps} steps after the onset, before its end"
    if seen.steps >= LONG:
        return "malignant", f"lasted {seen.steps} steps (limit {LONG})"
    if seen.residual != seen.residual:
        return "", f"lasted {seen.steps} steps; too few samples follow to say what stayed"
    if seen.residual > STAYS:
        return "malignant", (
            f"lasted {seen.steps} steps, but the loss stays {seen.residual:.3g} above the "
            f"extrapolated baseline (limit {STAYS})"
        )
    return "benign", (
        f"lasted {seen.steps} steps (limit {LONG}) and came back to {seen.residual:+.3g} of the "
        f"baseline (limit {STAYS})"
    )
