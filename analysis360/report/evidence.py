"""The section on mechanisms: evidence for, against, and what cannot be tested; no cause named."""

from __future__ import annotations

import pandas as pd

from analysis360.report.gather import Material
from analysis360.report.page import Section, absent, escape, frame_table
from analysis360.report.pieces import public

__all__ = ["evidence_lines", "evidence_section"]

COLUMNS = ("for", "against", "inconclusive", "untestable")
INTRODUCTION = (
    "For each mechanism that the literature names for loss spikes: what the measured table holds "
    "for it, what against it, and what cannot be tested from these data, and why. Each cell names "
    "the number it rests on. Evidence for one mechanism is not evidence against another, and a "
    "piece that fits is not a cause that was shown."
)

RULE = (
    " Verdict, by rule: “for” if a decisive piece is for, or if key pieces are and none is "
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
    matrix = _matrix(pieces)
    _draw(section, made, matrix)
    named = _wide(pieces)
    if "verdict" in matrix.columns:
        named["verdict"] = named["mechanism"].map(dict(matrix[["mechanism", "verdict"]].to_numpy()))
    named["mechanism"] = named["mechanism"] + " " + named["name"]
    shown = named[["mechanism", *COLUMNS, *(["verdict"] if "verdict" in named else [])]]
    shown = shown.rename(columns={"untestable": "cannot be tested here"})
    section.add(frame_table(
        shown, f"What the table says of {len(shown)} mechanisms, from {len(pieces)} pieces of "
        "evidence. –: nothing." + (RULE if "verdict" in shown else ""), stacked=True,
    ))  # fmt: skip
    _all(section, pieces)
    return section


def evidence_lines(made: Material) -> list[str]:
    """Sentences for the summary: how much could be tested at all."""
    pieces = made.pieces.get("evidence")
    if pieces is None or pieces.empty:
        return []
    matrix = _matrix(pieces)
    if "verdict" in matrix.columns:
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
    ways = {w: _names(pieces[pieces["direction"].eq(w)]) for w in ("for", "against")}
    total = _names(pieces)
    silent = [name for name in total if name not in {*ways["for"], *ways["against"]}]
    lines = [
        f"Of {len(total)} mechanisms, the table holds evidence for {_list(ways['for'])}, and "
        f"evidence against {_list(ways['against'])}; a mechanism can have both."
    ]
    if silent:
        lines.append(f"On {_list(silent)} these data say nothing either way.")
    return lines


def pairs(made: Material) -> str:
    """How many pairs of branches all this rests on."""
    from analysis360.report.pieces import placebos

    n = len(placebos(made))
    beside = {0: "no placebo branch beside it", 1: "one placebo branch beside it"}
    return (
        f"This rests on one pair of branches ({made.branch} and {made.to}; n = 1) with "
        f"{beside.get(n, f'{n} placebo branches beside it')}."
    )


def _names(pieces: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(pieces["mechanism"].astype(str)))


def _list(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names)})" if names else "none"


def _matrix(pieces: pd.DataFrame) -> pd.DataFrame:
    """Wide form: by the library where it has one, else the sentences of each direction."""
    make = public("evidence_matrix")
    if make is not None:
        frame: pd.DataFrame = make(pieces)
        return frame
    return _wide(pieces)


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


def _draw(section: Section, made: Material, matrix: pd.DataFrame) -> None:
    from analysis360 import plots
    from analysis360.report.source import bytes_of

    plot = getattr(plots, "plot_evidence", None)
    if plot is None:
        return
    caption = (
        f"Evidence on {len(matrix)} mechanisms in the comparison of {made.branch} with {made.to}, "
        "each cell with the number it rests on, as in the table below."
    )
    section.attempt(
        lambda: plot(matrix), caption, "Evidence by mechanism", bytes_of(made, "weight")
    )


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
