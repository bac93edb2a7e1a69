"""M1, M2, M8: what Adam and its learning rate would do."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from analysis360.evidence.case import MATRICES, Case, Effects
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

NEAR_EPS, FAR_FROM_EPS = 10.0, 100.0
"""RMS of the root of the second moment over epsilon: below the first epsilon holds the update
back, above the second it has no part in it."""

LARGEST_LOGGED = 1e-6
"""Relative difference up to which two logged learning rates are one, rounded."""


@mechanism("M1", "preconditioner decoupled from the curvature")
def decoupling(case: Case) -> Iterator[Piece]:
    """Second moments decay before the onset, so that steps grow (Bai et al. 2025)."""
    needs = "exp_avg_sq less than ~58 steps before the onset"
    why = ""
    if case.onset is None:
        why = "no lasting loss spike is known, so there is no before"
    elif case.gap(before=True) > case.memory:
        why = (
            f"the last checkpoint before the onset is {case.gap(before=True):.0f} steps earlier; "
            f"the second moment remembers {case.memory}"
        )
    elif not any(s < (case.onset or 0) for s in case.steps(case.branch)):
        why = "no checkpoint of the branch lies between the fork and the onset"
    lacks = case.lacks("grad_norm_ema") if case.rows("grad_norm_ema").empty else ""
    if why or lacks:
        for name in ("grad_norm_ema", "effective_lr_p99"):
            yield untestable(name, lacks or why, needs, "key")
    else:
        before = (-math.inf, (case.onset or 0) - 1)
        fell = of_modules(*MATRICES)
        yield judge(case.effects("grad_norm_ema").map(fell), case,
                    f"before the onset √Σv̂ stood to {case.to}'s at", sign=-1, window=before,
                    needs=needs, role="key")  # fmt: skip
        yield judge(case.effects("effective_lr_p99").map(fell), case,
                    f"before the onset the tail of effective learning rates stood to {case.to}'s "
                    "at", window=before, needs=needs, role="key")  # fmt: skip
    yield untestable(
        "", "checkpoints hold no curvature: λ of the preconditioned Hessian against 2/η",
        "Hessian-vector products on a fixed batch",
    )  # fmt: skip


@mechanism("M2", "gradients correlated in time, near epsilon")
def correlated(case: Case) -> Iterator[Piece]:
    """Updates all of one sign in a layer whose gradients are as small as epsilon (Molybog 2023)."""
    needs = "both moments less than ~58 steps after the onset"
    late = case.onset is not None and case.gap(before=False) > case.memory
    why = (
        f"the first checkpoint after the onset is {case.gap(before=False):.0f} steps later; "
        f"the moments remember {case.memory}"
    )
    for name, what, sign, role in (
        ("adam_snr", "Σm̂²/Σv̂ stood to {to}'s at", 1, "key"),
        ("update_large_fraction", "the fraction of |u| > 0.5 stood to {to}'s at", 1, ""),
        ("update_kurtosis", "the kurtosis of u (1 if all are ±1) stood to {to}'s at", -1, ""),
    ):  # fmt: skip
        if late and not case.rows(name).empty:
            yield untestable(name, why, needs, "key" if role else "supporting")
            continue
        effects = case.effects(name).map(of_modules(*MATRICES))
        yield judge(effects, case, what.format(to=case.to), sign=sign, needs=needs,
                    role="key" if role else "supporting")  # fmt: skip
    yield _near_eps(case)


def _near_eps(case: Case) -> Piece:
    """The smallest gradients over epsilon, among matrices, up to the onset interval."""
    needs = "exp_avg_sq and epsilon"
    rows = case.rows("eps_ratio")
    rows = rows[(rows["branch"] == case.branch) & (rows["step"] <= case.early)]
    rows = rows[rows["module"].isin(MATRICES) & (rows["eps_ratio"] > 0)]
    if rows.empty:
        return untestable("eps_ratio", case.lacks("eps_ratio"), needs, "key")
    row = rows.iloc[int(rows["eps_ratio"].astype("float64").argmin())]
    value, where, step = float(row["eps_ratio"]), str(row["name"]), int(row["step"])
    direction = FOR if value < NEAR_EPS else AGAINST if value > FAR_FROM_EPS else INCONCLUSIVE
    said = (
        f"the smallest RMS(√v̂) of a matrix is {value:.3g} ε (limit {NEAR_EPS:g}), {where}, "
        f"step {step}; smallest of {len(rows)}"
    )
    return Piece(direction, said, "eps_ratio", value, NEAR_EPS, "epsilon", where,
                 step, len(rows), "",
                 "definition: below 10 ε, epsilon takes a tenth of the step or more",
                 needs, "key")  # fmt: skip


@mechanism("M8", "fault of optimizer or learning rate at the restart")
def restart(case: Case) -> Iterator[Piece]:
    """All tensors go farther from the fork on, by one factor."""
    yield _logged_rate(case)
    yield _beyond_schedule(case)
    kappa = _kappa(case)
    yield judge(kappa.map(_in_all), case,
                f"three quarters of the matrices went this much farther per Σlr than in {case.to}:",
                needs="two checkpoints and the schedule", role="key")  # fmt: skip
    yield _unexplained(case, kappa)
    yield _counters(case)


def _kappa(case: Case) -> Effects:
    for role in ("ancestor", "previous"):
        made = case.effects("coherence", against=role, floor=math.log2(1.25))
        if len(made.mine):
            break
    return made.map(of_modules(*MATRICES)).map(_first_interval)


def _first_interval(frame: pd.DataFrame) -> pd.DataFrame:
    """The checkpoint nearest to the restart."""
    return frame[frame["step"] == frame["step"].min()] if len(frame) else frame


def _in_all(frame: pd.DataFrame) -> pd.DataFrame:
    """What three quarters of the tensors exceed, at each checkpoint."""
    if frame.empty:
        return frame
    quarter = frame.groupby("step")["effect"].quantile(0.25).reset_index()
    return frame.head(0).merge(quarter, how="right", on=["step", "effect"]).assign(
        where="3 of 4 matrices"
    )  # fmt: skip


def _unexplained(case: Case, kappa: Effects) -> Piece:
    """Farther than the size of the updates says: the rate itself, not the gradients."""
    needs = "two checkpoints, the schedule and both moments"
    update = case.effects("update_rms", floor=math.log2(1.25))
    if update.why or kappa.why:
        return untestable("coherence", update.why or kappa.why, needs)

    def less(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
        both = one.merge(other[["where", "step", "effect"]], on=["where", "step"],
                         suffixes=("", " of u"))  # fmt: skip
        both["effect"] = both["effect"] - both["effect of u"]
        return both.drop(columns="effect of u")

    calm = tuple(less(one, other) for one, other in zip(kappa.calm, update.calm))
    made = Effects("coherence / update_rms", "log2 ratio", less(kappa.mine, update.mine), calm,
                   kappa.source, kappa.placebos, kappa.factor, kappa.floor)  # fmt: skip
    said = "and for three quarters of them the size of the update at its end leaves of that"
    return judge(made.map(_in_all), case, said, needs=needs)


def _logged_rate(case: Case) -> Piece:
    """The learning rates that the log says."""
    needs = "learning rate in the log"
    if case.loss is None or "lr" not in case.loss:
        return untestable("lr", "no log with learning rates was given", needs, "decisive")
    rates = {
        b: case.loss.loc[case.loss["branch"] == b].dropna(subset=["lr"]).set_index("step")["lr"]
        for b in (case.branch, case.to)
    }
    both = pd.concat(rates, axis=1, join="inner")
    both = both[(both > 0).all(axis=1)]
    if both.empty:
        return untestable("lr", "no step of the log has the rate of both", needs, "decisive")
    apart = np.log2(both[case.branch]) - np.log2(both[case.to])
    at = int(apart.abs().argmax())
    step, value = int(apart.index[at]), float(apart.iloc[at])
    direction = FOR if abs(value) > LARGEST_LOGGED else AGAINST
    said = f"logged learning rates differ by ×{2**value:.6g} at most ({len(both)} steps)"
    return Piece(direction, said, "lr", value, LARGEST_LOGGED, "log2 ratio", "", step, len(both),
                 "", "rounding of the log", needs, "decisive")  # fmt: skip


def _beyond_schedule(case: Case) -> Piece:
    """Matrices whose farthest element went farther than Adam can at the scheduled rate."""
    needs = "two checkpoints and the schedule"
    far = farther_than_adam(case)
    if far.empty:
        why = case.lacks("max_change") if "max_change" not in case.table else (
            "no schedule of the learning rate, or no comparison along the branch")  # fmt: skip
        return untestable("max_change", why, needs, "decisive")
    share = far.groupby("step")["over"].agg(lambda over: float((over > 1).mean()))
    step = int(share.index[int(share.argmax())])
    value, n = float(share.max()), int((far["step"] == step).sum())
    direction = FOR if value >= 0.5 else INCONCLUSIVE
    said = (
        f"{value:.0%} of {n} matrices hold an element that went farther than Adam can at the "
        f"scheduled rates (limit 50 %), step {step}"
    )
    return Piece(direction, said, "max_change", value, 0.5, "fraction of matrices", "", step, n,
                 "", f"closed form: {case.bound:.4g} Σlr, beside decay and rounding", needs,
                 "decisive")  # fmt: skip


_ULP = {"bfloat16": 2.0**-8, "float16": 2.0**-11}


def farther_than_adam(case: Case) -> pd.DataFrame:
    """Largest change of an element over the most that Adam's steps and decay allow.

    Returns
    -------
    DataFrame
        ``name, step, over`` of each matrix of the branch up to the onset interval: above 1 no
        sequence of gradients can have done it.
    """
    need = ["max_change", "lr_between", "decay_between", "max_abs"]
    empty = pd.DataFrame({"name": [], "step": [], "over": []})
    table = case.table
    if any(column not in table for column in need):
        return empty
    mine = table[(table["branch"] == case.branch) & (table["state"] == "weight")]
    mine = mine[mine["module"].isin(MATRICES) & (mine["step"] <= case.early)]
    alone = mine[mine["against"] == ""].set_index(["name", "step"])["max_abs"]
    moved = mine[mine["against"].isin(["previous", "ancestor"])]
    moved = moved[moved["lr_between"] > 0]
    if moved.empty:
        return empty
    change = moved["max_change"].astype("float64")
    size = pd.Series(
        alone.reindex(pd.MultiIndex.from_frame(moved[["name", "step"]])).to_numpy(np.float64),
        moved.index,
    )
    ulp = moved["dtype"].map(_ULP).fillna(2.0**-24) if "dtype" in moved else 2.0**-8
    decay = 1 - moved["decay_between"].astype("float64").fillna(1.0)
    # the element was at most as large as it is now, and its change, together
    room = (decay + 2 * ulp) * (size + change)
    over = change / (case.bound * moved["lr_between"].astype("float64") + room)
    found = pd.DataFrame({"name": moved["name"], "step": moved["step"].astype(int), "over": over})
    found = found[np.isfinite(found["over"])]
    worst: pd.DataFrame = found.groupby(["name", "step"], as_index=False).max()
    return worst


def _counters(case: Case) -> Piece:
    """Adam's own count of steps, in both branches."""
    made = case.effects("optimizer_step", log=False, floor=0.5)
    if made.mine.empty:
        return untestable("optimizer_step", made.why, "optimizer states")
    mine = made.mine
    row = mine.iloc[int(mine["effect"].abs().argmax())]
    value = float(row["effect"])
    said = f"Adam's count of steps differs from {case.to}'s by {value:g} at most"
    source = "definition: branches at one step have taken as many"
    return Piece(FOR if value else AGAINST, said, "optimizer_step", value, 0.0, "steps",
                 str(row["where"]), int(row["step"]), len(mine), "", source,
                 "optimizer states")  # fmt: skip
