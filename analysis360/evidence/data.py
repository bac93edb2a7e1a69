"""M5, M7: what starts at the input, in the embedding or in the batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis360.evidence.case import Case, Effects
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

Values = npt.NDArray[np.float64]

SMALL_EMBEDDING, ORDINARY_EMBEDDING = 0.01, 0.05
"""RMS of an embedding that feeds an RMSNorm: gradients go as its inverse."""

TAKES_OVER = 1.0
"""log2 of the least growth of the embedding's share: any spike shifts shares by some tens of
percent, and what is reported of this mechanism is more than that."""

PASSING = 100
"""Steps above which a spike is no passing one: K2's own rule (second-hand)."""


@mechanism("M5", "gradients of the embedding")
def embedding(case: Case) -> Iterator[Piece]:
    """The embedding takes over the gradient before the loss goes up (GLM-130B, Takase 2023)."""
    needs = "exp_avg_sq less than ~58 steps after the onset"
    late = case.onset is not None and case.gap(before=False) > case.memory
    effects = _embedding_share(case)
    if late and not effects.why:
        why = (
            f"the first checkpoint after the onset is {case.gap(before=False):.0f} steps later; "
            f"the second moment remembers {case.memory}"
        )
        yield untestable("grad_norm_ema share", why, needs, "key")
    else:
        yield judge(effects, case, f"the embedding's share of Σv̂ stood to {case.to}'s at",
                    needs=needs, role="key")  # fmt: skip
    yield _small_embedding(case)
    yield untestable("", "which came first, to a few steps, is not in checkpoints",
                     "gradient norms of each tensor at each step")  # fmt: skip


def _embedding_share(case: Case) -> Effects:
    made = case.effects("grad_norm_ema")
    if made.why and made.mine.empty:
        return made
    rows = case.rows("grad_norm_ema")
    square = rows["grad_norm_ema"] ** 2
    of = square.groupby([rows["branch"], rows["step"]])
    if of.size().max() == 1:
        return replace(made, mine=made.mine.iloc[:0], why="the table is not per tensor")
    name = "grad_norm_ema_share"
    whole = replace(case, table=rows.assign(**{name: square / of.transform("sum")}), _made={})
    made = whole.effects(name, floor=TAKES_OVER)
    return replace(made.map(of_modules("embed")), statistic="grad_norm_ema share")


def _small_embedding(case: Case) -> Piece:
    rows = case.rows("rms")
    rows = rows[(rows["branch"] == case.branch) & (rows["module"] == "embed")]
    rows = rows[rows["step"] <= case.early]
    if rows.empty:
        return untestable("rms", "no row of the embedding has an rms", "weights of the embedding")
    row = rows.iloc[int(rows["rms"].astype("float64").argmin())]
    value = float(row["rms"])
    small = value < SMALL_EMBEDDING
    direction = FOR if small else AGAINST if value > ORDINARY_EMBEDDING else INCONCLUSIVE
    said = f"the RMS of the embedding is {value:.3g} at least (limit {SMALL_EMBEDDING:g})"
    return Piece(direction, said, "rms", value, SMALL_EMBEDDING, "", str(row["name"]),
                 int(row["step"]), len(rows), "",
                 "half of the usual initial deviation 0.02; a convention", "weights")  # fmt: skip


@mechanism("M7", "a batch, met in this state")
def batch(case: Case) -> Iterator[Piece]:
    """Loss jumps on the bad steps and is back in tens; few tokens carry the gradient."""
    yield _passing(case)
    yield _rows(case)
    yield _lasting(case)


def _events(case: Case) -> pd.DataFrame | None:
    if case.spikes is None:
        return None
    mine = case.spikes[case.spikes["branch"] == case.branch]
    steps = case.steps(case.branch)
    return mine[mine["onset"] <= steps[-1]] if steps else mine


def _passing(case: Case) -> Piece:
    """Whether there is a spike at all; that it passes supports, as a batch can also start more."""
    events = _events(case)
    needs = "training loss"
    if events is None:
        return untestable("loss", "no loss was given", needs, "key")
    if events.empty:
        return Piece(AGAINST, "the log shows no loss spike in this branch", "loss", 0.0, 1.0,
                     "events", n=0, source="find_spikes", needs=needs, role="key")  # fmt: skip
    tallest = events.iloc[int(events["height"].astype("float64").argmax())]
    if bool(tallest.get("censored", False)) or pd.isna(tallest["end"]):
        return Piece(INCONCLUSIVE, "the log ends before the spike does", "loss", n=1,
                     source="find_spikes", needs=needs)  # fmt: skip
    steps = int(tallest["end"]) - int(tallest["onset"])
    said = f"the tallest event lasted {steps} steps (limit {PASSING}), from step {tallest['onset']}"
    direction = FOR if steps <= PASSING else AGAINST
    return Piece(direction, said, "loss", steps, PASSING, "steps", "", int(tallest["onset"]), 1,
                 "", "K2's own rule for benign spikes, second-hand", needs)  # fmt: skip


def _rows(case: Case) -> Piece:
    """The largest row's share of the second moment, of the embedding."""
    needs = "exp_avg_sq of the embedding less than ~58 steps after the onset"
    if case.onset is not None and case.gap(before=False) > case.memory:
        lacks = case.lacks("v_row_top_share") if case.rows("v_row_top_share").empty else ""
        why = (
            f"the first checkpoint after the onset is {case.gap(before=False):.0f} steps later; "
            f"the second moment remembers {case.memory}"
        )
        return untestable("v_row_top_share", lacks or why, needs, "key")
    made = _row_shares(case)
    said = f"the share of one token's row in Σv̂ of the embedding stood to {case.to}'s at"
    if made.statistic == "row_v_sum":
        said = f"part of the embedding's Σv̂ that lies in other rows than in {case.to}:"
    return judge(made, case, said, needs=needs, role="key")


def _row_shares(case: Case) -> Effects:
    """How the mass is spread over rows, where vectors were given, else the largest row's share."""
    top = case.effects("v_row_top_share", floor=1.0).map(of_modules("embed"))
    if case.vectors is None or not len(case.vectors):
        return top
    rows = case.vectors
    rows = rows[(rows["vector"] == "row_v_sum") & (rows["module"] == "embed")]
    rows = rows[(rows["against"] == "") & rows["step"].notna()]
    of = {
        (str(branch), int(step)): np.asarray(values, dtype=np.float64)
        for branch, step, values in zip(rows["branch"], rows["step"], rows["values"])
    }
    mine, *others = [_moved_mass(of, name, case) for name in (case.branch, *case.placebos)]
    calm = tuple(frame for frame in others if len(frame))
    if mine.empty or not calm:
        return top
    k = len(calm)
    source = f"{1 + 1 / k:.3g} × the most of {k} placebos up to that checkpoint"
    return Effects("row_v_sum", "fraction of Σv̂", mine, calm, source, k, 1 + 1 / k, 0.1)


def _moved_mass(of: dict[tuple[str, int], Values], branch: str, case: Case) -> pd.DataFrame:
    """Part of the second moment that lies in other rows than in the reference, at each step."""
    rows = []
    for (name, step), mine in of.items():
        other = of.get((case.to, step))
        if name != branch or other is None or other.shape != mine.shape:
            continue
        if step >= case.quiet_until or not (mine.sum() > 0 and other.sum() > 0):
            continue
        gained = mine / mine.sum() - other / other.sum()
        rows.append({
            "where": f"embedding, most in row {int(np.argmax(gained))}", "module": "embed",
            "layer": None, "head": None, "step": step, "effect": float(np.abs(gained).sum() / 2),
        })  # fmt: skip
    columns = ["where", "module", "layer", "head", "step", "effect"]
    return pd.DataFrame(rows, columns=columns).astype({"effect": "float64"})


def _lasting(case: Case) -> Piece:
    """How far the last matched checkpoint is from the reference, against placebos."""
    needs = "weights, and placebos"
    if not case.placebos:
        return untestable("displacement", "no placebo says how far apart ordinary data leave "
                          "branches", needs)  # fmt: skip
    made = case.effects("displacement", against="partner")
    table = case.table
    there = table[(table["against"] == "partner") & (table["state"] == "weight")]
    if "displacement" not in there or there.empty:
        return untestable("displacement", made.why or "no comparison of the branches", needs)
    there = there[there["step"] < case.quiet_until]
    size = there.assign(square=there["displacement"].astype("float64") ** 2)
    far = size.groupby(["branch", "step"])["square"].sum().pow(0.5)
    mine = far.get(case.branch)
    calm = far[far.index.get_level_values(0).isin(case.placebos)]
    if mine is None or calm.empty:
        return untestable("displacement", "no comparison of branch or placebo", needs)
    last = int(mine.index.max())
    same = calm[calm.index.get_level_values(1) == last]
    if same.empty:
        return untestable("displacement", "no placebo at the last checkpoint", needs)
    if not (mine[last] > 0 and same.max() > 0):
        return untestable("displacement", "branch or placebo does not differ", needs)
    k = len(same)
    value = math.log2(float(mine[last]) / float(same.max()))
    limit = math.log2(1 + 1 / k)
    direction = FOR if value <= limit else AGAINST
    said = (
        f"at the last matched checkpoint, step {last}, it is ×{2**value:.3g} as far from {case.to} "
        f"as the farthest placebo (limit ×{2**limit:.3g})"
    )
    return Piece(direction, said, "displacement", value, limit, "log2 ratio", "all tensors", last,
                 k, "", f"{1 + 1 / k:.3g} × the farthest of {k} placebos", needs)  # fmt: skip
