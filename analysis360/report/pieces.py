"""Frames that other parts make of the table and the logs: the one place that calls them.

A piece that was given is taken; else it is made, and why it could not be made is noted in words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import pandas as pd

from analysis360.branches import (
    check_branches,
    first_crossings,
    first_departure,
    score_branches,
)
from analysis360.errors import Analysis360Error, TableError
from analysis360.evidence import weigh_evidence
from analysis360.spikes import summarize_gap

if TYPE_CHECKING:
    from analysis360.report.gather import Material

__all__ = ["PIECES", "RANKED", "add_pieces", "placebos"]

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


def placebos(made: Material) -> tuple[str, ...]:
    """Branches that stand for what a restart does by itself, by their name."""
    there = dict.fromkeys(made.table["branch"].dropna().astype(str))
    return tuple(b for b in there if b.startswith("placebo") and b not in (made.branch, made.to))


def _pair(made: Material) -> tuple[str, str]:
    assert made.branch is not None and made.to is not None, "asked before pieces are made"
    return made.branch, made.to


def _gaps(made: Material) -> pd.DataFrame | None:
    if made.loss is None:
        return None
    return summarize_gap(made.loss, *_pair(made), spikes=made.spikes)


def _checks(made: Material) -> pd.DataFrame | None:
    return check_branches(made.table, *_pair(made), run=made.run, loss=made.loss)


def _scores(made: Material) -> pd.DataFrame | None:
    chosen = [s for s in RANKED if s in made.table.columns]
    if not chosen:
        return None
    return score_branches(
        made.table, *_pair(made), placebos=placebos(made), statistics=chosen,
        spikes=made.spikes,
    )  # fmt: skip


def _departures(made: Material) -> pd.DataFrame | None:
    if "scores" not in made.pieces:
        return None
    return first_departure(made.pieces["scores"])


def _crossings(made: Material) -> pd.DataFrame | None:
    if "scores" not in made.pieces:
        return None
    scores = made.benchmarks
    joined = scores if scores is not None and "gap" in scores.columns else None
    branch, to = _pair(made)
    return first_crossings(
        made.pieces["scores"], branch=branch, to=to, placebos=placebos(made),
        loss=made.loss, benchmarks=joined,
    )  # fmt: skip


def _evidence(made: Material) -> pd.DataFrame | None:
    adam = made.run.adam if made.run is not None else None
    betas = (0.9, 0.95)  # what `weigh_evidence` takes where nobody says
    if adam is not None and adam.beta1 is not None and adam.beta2 is not None:
        betas = (adam.beta1, adam.beta2)
    return weigh_evidence(
        made.table, *_pair(made), placebos=placebos(made), loss=made.loss,
        spikes=made.spikes, vectors=made.vectors, betas=betas,
    )  # fmt: skip


_MAKERS: dict[str, Callable[[Material], pd.DataFrame | None]] = {
    "gaps": _gaps, "checks": _checks, "scores": _scores, "departures": _departures,
    "crossings": _crossings, "evidence": _evidence,
}  # fmt: skip
"""In order: departures and crossings are read from scores."""
