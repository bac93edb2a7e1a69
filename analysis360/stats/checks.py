"""What a checkpoint says of its optimizer, beside its moments (S9 of the catalogue)."""

from __future__ import annotations

from analysis360.stats.base import statistic

__all__ = ["optimizer_step"]


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose"), low=0,
    code="S9", source="the optimizer's own count, per parameter", unit="steps",
    null="the same for every parameter that was trained from the start (definition)",
    undefined="the step is not stored, and not told by the run",
)  # fmt: skip
def optimizer_step(step: float, adam_count: float) -> float:
    """Steps that Adam has taken for this tensor: bias correction rests on it.

    Of the checkpoint, where the optimizer stores none of its own. NaN where neither is known, and
    for several tensors that differ.
    """
    return step
