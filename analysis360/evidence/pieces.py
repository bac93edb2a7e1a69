"""Pieces of evidence: how one is judged, and the list of mechanisms they belong to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from analysis360.evidence.case import Case, Effects

__all__ = ["MECHANISMS", "Mechanism", "Piece", "judge", "mechanism", "untestable"]

Role = Literal["decisive", "key", "supporting"]

FOR, AGAINST, UNTESTABLE, INCONCLUSIVE = "for", "against", "untestable", "inconclusive"


@dataclass(frozen=True)
class Piece:
    """One piece of evidence; the fields are columns of the EVIDENCE frame."""

    direction: str
    evidence: str
    statistic: str = ""
    value: float = math.nan
    limit: float = math.nan
    unit: str = ""
    where: str = ""
    step: int | None = None
    n: int = 0
    why: str = ""
    source: str = ""
    needs: str = ""
    role: Role = "supporting"


@dataclass(frozen=True)
class Mechanism:
    """A mechanism, and the function from a case to its pieces."""

    code: str
    name: str
    weigh: Callable[[Case], Iterable[Piece]]


MECHANISMS: dict[str, Mechanism] = {}
"""All that are registered, by code."""

_Weigh = Callable[[Case], Iterable[Piece]]


def mechanism(code: str, name: str) -> Callable[[_Weigh], _Weigh]:
    """Register the function that weighs a mechanism."""

    def register(function: _Weigh) -> _Weigh:
        MECHANISMS[code] = Mechanism(code, name, function)
        return function

    return register


def untestable(statistic: str, why: str, needs: str, role: Role = "supporting") -> Piece:
    """A piece that cannot be had here."""
    return Piece(UNTESTABLE, "", statistic, why=why, needs=needs, role=role)


def judge(
    effects: Effects,
    case: Case,
    what: str,
    *,
    sign: int = 1,
    window: tuple[float, float] | None = None,
    needs: str = "",
    role: Role = "supporting",
    only_for: bool = False,
) -> Piece:
    """Read the farthest effect against its limit.

    Above the limit it is for, below half of it against, between inconclusive.

    Parameters
    ----------
    effects : Effects
    case : Case
    what : str
        What the effect is of, for the sentence.
    sign : {-1, 0, 1}
        Which way the mechanism would have it; 0 for either.
    window : tuple of float, optional
        First and last step that are looked at; by default all up to the onset interval.
    needs : str
        What the piece rests on.
    role : {"decisive", "key", "supporting"}
    only_for : bool
        A small effect says nothing against the mechanism.
    """
    needs = needs or effects.statistic
    low, high = window or (-math.inf, case.early)
    mine = effects.mine
    mine = mine[(mine["step"] >= low) & (mine["step"] <= high)]
    why = effects.why or (
        "" if len(mine) else "no matched checkpoint lies in the interval looked at"
    )
    if why:
        return untestable(effects.statistic, why, needs, role)
    limits = mine["step"].map(effects.limits(mine["step"].tolist(), sign)).astype("float64")
    signed = mine["effect"].abs() if sign == 0 else sign * mine["effect"]
    at = int((signed / limits).argmax())
    row = mine.iloc[at]
    value, limit, step = float(row["effect"]), float(limits.iloc[at]), int(row["step"])
    far = float(signed.iloc[at])
    direction = FOR if far > limit else AGAINST if far < limit / 2 else INCONCLUSIVE
    if only_for and direction == AGAINST:
        direction = INCONCLUSIVE
    where = str(row["where"])
    shown = math.copysign(limit, sign or value)
    said = f"{what} {_said(value, effects.unit)} (limit {_said(shown, effects.unit)}), {where}, "
    said += f"step {step}; largest of {len(mine)}"
    return Piece(direction, said, effects.statistic, value, shown, effects.unit, where, step,
                 len(mine), "", effects.source, needs, role)  # fmt: skip


def _said(value: float, unit: str) -> str:
    return f"×{2.0**value:.3g}" if unit == "log2 ratio" else f"{value:+.3g}"


def of_modules(*modules: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Keep effects of these modules."""
    return lambda frame: frame[frame["module"].isin(modules)].reset_index(drop=True)


def beyond_others(*modules: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Effects of these modules less the largest of any other module at the same checkpoint.

    What all tensors do together, as after a change of the learning rate, is not theirs.
    """

    def change(frame: pd.DataFrame) -> pd.DataFrame:
        inside = frame["module"].isin(modules)
        others = frame[~inside].groupby("step")["effect"].max()
        mine = frame[inside]
        rest = mine["step"].map(others).astype("float64")
        mine = mine.assign(effect=mine["effect"] - rest.clip(lower=0))
        return mine[mine["effect"].notna()].reset_index(drop=True)

    return change
