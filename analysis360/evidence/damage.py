"""M10: what no training can have written."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from analysis360.evidence.case import MATRICES, Case
from analysis360.evidence.optimizer import farther_than_adam
from analysis360.evidence.pieces import (
    AGAINST,
    FOR,
    INCONCLUSIVE,
    Piece,
    judge,
    mechanism,
    of_modules,
    untestable,
)

COUNTS = ("nonfinite", "bound_violations", "v_negative", "moment_nonfinite")
"""Statistics that are 0 in any sound checkpoint."""


@mechanism("M10", "corrupted element or shard")
def damage(case: Case) -> Iterator[Piece]:
    """A few elements that no step of the optimizer can have made."""
    for name in COUNTS:
        yield _count(case, name)
    yield _jump(case)
    yield judge(case.effects("max_over_rms", floor=1.0).map(of_modules(*MATRICES)), case,
                f"the largest element over the RMS stood to {case.to}'s at", needs="weights",
                role="key")  # fmt: skip
    yield untestable("", "of replicas one is read", "each rank's file")


def _count(case: Case, name: str) -> Piece:
    rows = case.rows(name)
    rows = rows[rows["branch"] == case.branch]
    if rows.empty:
        return untestable(name, case.lacks(name), "weights and moments")
    counts = rows[name].astype("float64")
    row = rows.iloc[int(counts.argmax())]
    value, total = float(counts.max()), float(counts.sum())
    said = f"{name}: {total:g} elements in {len(rows)} rows (limit 0)"
    if not value:
        return Piece(AGAINST, said, name, 0.0, 0.0, "elements", n=len(rows), needs="every element",
                     source="closed form")  # fmt: skip
    # a run that diverges has infinities too: only what came before the onset was not its doing
    direction = INCONCLUSIVE if name.endswith("nonfinite") and row["step"] > case.early else FOR
    return Piece(direction, said, name, value, 0.0, "elements", str(row["name"]),
                 int(row["step"]), len(rows), "", "closed form", "every element",
                 "decisive")  # fmt: skip


def _jump(case: Case) -> Piece:
    """A jump of an element beyond Adam's reach, in few matrices only."""
    needs = "two checkpoints and the schedule"
    far = farther_than_adam(case)
    if far.empty:
        why = "no schedule of the learning rate, no max_change, or no comparison along the branch"
        return untestable("max_change", why, needs)
    first = far[far["over"] > 1]["step"].min()
    if np.isnan(first):
        worst = far.iloc[int(far["over"].argmax())]
        direction, role = AGAINST, "key"
    else:
        mine = far[far["step"] == first]
        worst = mine.iloc[int(mine["over"].argmax())]
        few = float((mine["over"] > 1).mean()) < 0.5
        direction, role = (FOR, "decisive") if few else (INCONCLUSIVE, "key")
    said = (
        f"an element went ×{worst['over']:.3g} as far as Adam can at the scheduled rates (limit "
        f"×1), {worst['name']}, step {worst['step']:.0f}; {int((far['over'] > 1).sum())} of "
        f"{len(far)} comparisons are beyond it"
    )
    return Piece(direction, said, "max_change", float(worst["over"]), 1.0, "ratio",
                 str(worst["name"]), int(worst["step"]), len(far), "",
                 f"closed form: {case.bound:.4g} Σlr, beside decay and rounding", needs,
                 "decisive" if role == "decisive" else "key")  # fmt: skip
