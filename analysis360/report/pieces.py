"""Frames that other parts make of the table and the logs: the one place that calls them.

A piece that was given is taken; else it is made, and why it could not be made is noted in words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis360.errors import Analysis360Error, TableError

if TYPE_CHECKING:
    from analysis360.report.gather import Material

__all__ = ["PIECES", "RANKED", "add_pieces", "placebos", "public"]

RANKED = ("rms", "max_abs", "spectral_norm", "stable_rank", "update_rms", "grad_norm_ema")
"""Statistics that branches are ranked and scored by: chosen before any run was looked at."""

PIECES = {
    "gaps": ("period", "n", "gap", "status"),
    "checks": ("check", "result", "value", "limit", "where", "note"),
    "scores": ("statistic", "effect", "z", "label", "status"),
    "departures": ("branch", "to", "threshold", "observed", "label", "status"),
    "crossings": ("kind", "name", "after_tokens", "by_tokens", "status"),
    "evidence": ("mechanism", "name", "direction", "evidence", "statistic", "why", "role"),
}
"""Name of each piece, and columns without which the report could not tell of it."""


def add_pieces(made: Material, given: Mapping[str, pd.DataFrame] | None = None) -> None:
    """Take the pieces that were given, and make the others of what there is.

    Raises
    ------
    TableError
        If a piece that was given is unknown or lacks columns.
    """
    given = {} if given is None else given
    for name, frame in given.items():
        if name not in PIECES:
            raise TableError(f"pieces: unknown piece {name!r}; allowed are {', '.join(PIECES)}")
        lacking = [c for c in PIECES[name] if c not in frame.columns]
        if lacking:
            raise TableError(f"pieces, {name}: columns {lacking} are missing")
        made.pieces[name] = frame
    if made.branch is None or made.to is None:
        return
    for name, make in _MAKERS.items():
        if name in made.pieces:
            continue
        try:
            found = make(made)
        except Analysis360Error as error:
            made.notes[name] = str(error)
            continue
        if found is not None:
            made.pieces[name] = found


def public(name: str) -> Callable[..., Any] | None:
    """A public function of this package, or None where this version has none of that name."""
    import analysis360

    found: Callable[..., Any] | None = getattr(analysis360, name, None)
    return found


def placebos(made: Material) -> tuple[str, ...]:
    """Branches that stand for what a restart does by itself, by their name."""
    there = dict.fromkeys(made.table["branch"].dropna().astype(str))
    return tuple(b for b in there if b.startswith("placebo") and b not in (made.branch, made.to))


def _gaps(made: Material) -> pd.DataFrame | None:
    make = public("summarize_gap")
    if make is None or made.loss is None:
        return None
    frame: pd.DataFrame = make(made.loss, made.branch, made.to, spikes=made.spikes)
    return frame


def _checks(made: Material) -> pd.DataFrame | None:
    make = public("check_branches")
    if make is None:
        return None
    frame: pd.DataFrame = make(made.table, made.branch, made.to, run=made.run, loss=made.loss)
    return frame


def _scores(made: Material) -> pd.DataFrame | None:
    make = public("score_branches")
    if make is None:
        return None
    chosen = [s for s in RANKED if s in made.table.columns]
    if not chosen:
        return None
    frame: pd.DataFrame = make(
        made.table, made.branch, made.to, placebos=placebos(made), statistics=chosen,
        spikes=made.spikes,
    )  # fmt: skip
    return frame


def _departures(made: Material) -> pd.DataFrame | None:
    make = public("first_departure")
    if make is None or "scores" not in made.pieces:
        return None
    frame: pd.DataFrame = make(made.pieces["scores"])
    return frame


def _crossings(made: Material) -> pd.DataFrame | None:
    make = public("first_crossings")
    if make is None or "scores" not in made.pieces:
        return None
    scores = made.benchmarks
    joined = scores if scores is not None and "gap" in scores.columns else None
    frame: pd.DataFrame = make(
        made.pieces["scores"], branch=made.branch, to=made.to, placebos=placebos(made),
        loss=made.loss, benchmarks=joined,
    )  # fmt: skip
    return frame


def _evidence(made: Material) -> pd.DataFrame | None:
    make = public("weigh_evidence")
    if make is None:
        return None
    adam = made.run.adam if made.run is not None else None
    known = adam is not None and None not in (adam.beta1, adam.beta2)
    more = {"betas": (adam.beta1, adam.beta2)} if adam is not None and known else {}
    frame: pd.DataFrame = make(
        made.table, made.branch, made.to, placebos=placebos(made), loss=made.loss,
        spikes=made.spikes, vectors=made.vectors, **more,
    )  # fmt: skip
    return frame


_MAKERS: dict[str, Callable[[Material], pd.DataFrame | None]] = {
    "gaps": _gaps, "checks": _checks, "scores": _scores, "departures": _departures,
    "crossings": _crossings, "evidence": _evidence,
}  # fmt: skip
"""In order: departures and crossings are read from scores."""
