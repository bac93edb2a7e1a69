"""The section on mechanisms: evidence for, against, and what cannot be tested; no cause named."""

from __future__ import annotations

import pandas as pd

from analysis360.evidence import evidence_matrix
from analysis360.report.gather import Material
from analysis360.report.page import Section, absent, escape, frame_table
from analysis360.report.pieces import placebos

__all__ = ["evidence_lines", "evidence_section"]

COLUMNS = ("for", "against", "inconclusive", "untestable")
INTRODUCTION = (
    "For each mechanism that the literature names for loss spikes: what the measured table holds "
    "for it, what against it, and what cannot be tested from these data, and why. Each cell names "
    "the number it rests on. Evidence for one mechanism is not evidence against another, and a "
    "piece that fits is not a cause that was shown."
)

RULE = (
    "Verdict, by rule: “for” if a decisive piece is for, or if key pieces are and none is "
    "against, open or untestable; “against” if a decisive or key piece is against; "
    "“untestable” if none of them could be had; else “inconclusive”."
)


def evidence_section(made: Material) -> Section:
    """Show the matrix of mechanisms, and below it every piece with its number and limit."""
    section = Section("evidence", "Evidence on mechanisms")
    pieces = made.pieces.get("evidence")
    if pieces is None or pieces.empty:
        why = made.notes.get("evidence", "none was given, and none could be weighed.")
        section.add(absent(f"Evidence on mechanisms: {why}"))
        return section
    section.say(INTRODUCTION)
    section.say(pairs(made), "note")
    verdicts = evidence_matrix(pieces).set_index("mechanism")["verdict"]
    named = _wide(pieces)
    named["verdict"] = named["mechanism"].map(verdicts)
    named["mechanism"] = named["mechanism"] + " " + named["name"]
    shown = named[["mechanism", *COLUMNS, "verdict"]]
    shown = shown.rename(columns={"untestable": "cannot be tested here"})
    section.add(frame_table(
        shown, f"What the table says of {len(shown)} mechanisms, from {len(pieces)} pieces of "
        f"evidence. –: nothing. {RULE}", stacked=True,
    ))  # fmt: skip
    _all(section, pieces)
    return section


def evidence_lines(made: Material) -> list[str]:
    """Sentences for the summary: how much could be tested at all."""
    pieces = made.pieces.get("evidence")
    if pieces is None or pieces.empty:
        return []
    matrix = evidence_matrix(pieces)
    found = {
        way: list(matrix.loc[matrix["verdict"].eq(way), "mechanism"])
        for way in ("for", "against", "untestable", "inconclusive")
    }
    return [
        f"Of {len(matrix)} mechanisms, what the table holds fits {_list(found['for'])}, does "
        f"not fit {_list(found['against'])}, leaves open {_list(found['inconclusive'])}, and "
        f"cannot be tested here for {_list(found['untestable'])}. To fit is not to be the "
        "cause: the table of evidence has the rule, and each piece with its number."
    ]


def pairs(made: Material) -> str:
    """How many pairs of branches all this rests on."""
    n = len(placebos(made))
    beside = {0: "no placebo branch beside it", 1: "one placebo branch beside it"}
    return (
        f"This rests on one pair of branches ({made.branch} and {made.to}; n = 1) with "
        f"{beside.get(n, f'{n} placebo branches beside it')}."
    )


def _list(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names)})" if names else "none"


def _wide(pieces: pd.DataFrame) -> pd.DataFrame:
    """One row a mechanism, each piece on a line of its own."""
    rows = []
    for (mechanism, name), mine in pieces.groupby(["mechanism", "name"], sort=False):
        row = {"mechanism": str(mechanism), "name": str(name)}
        for way in COLUMNS:
            found = mine[mine["direction"].eq(way)]
            texts = found["evidence"].fillna("")
            if way == "untestable":  # what several statistics lack is said once
                texts = found["why"].fillna("").drop_duplicates()
            row[way] = "\n".join(f"{str(t).rstrip('.')}." for t in texts if str(t))
        rows.append(row)
    return pd.DataFrame(rows)


def _all(section: Section, pieces: pd.DataFrame) -> None:
    wanted = [
        "mechanism", "direction", "evidence", "value", "limit", "where", "why", "source",
    ]  # fmt: skip
    shown = pieces[[c for c in wanted if c in pieces.columns]]
    table = frame_table(
        shown, "Every piece: its number, the limit it was held against and where that comes from, "
        "and why a piece could not be tested. The download has also step, unit, n and needs.",
        most=300, stacked=True,
    )  # fmt: skip
    label = escape(f"All {len(pieces)} pieces, with limits, places and sources")
    section.add(f"<details><summary>{label}</summary>{table}</details>")
