"""From which bytes a figure was made, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis360.report.gather import Material

__all__ = ["bytes_of", "file_of"]

STATES = {"weight": "weights", "adam": "Adam's two moments"}


def bytes_of(made: Material, state: str) -> str:
    """Name checkpoints, bytes and revisions that the measurements of a state rest on."""
    what = STATES.get(state, state)
    kept = made.provenance
    if kept is None:
        return f"{what}, in a table that was given; which files it was measured from is not known."
    points = [c for c in kept.get("checkpoints", []) if isinstance(c, Mapping)]
    branches = dict.fromkeys(str(c.get("branch")) for c in points)
    read = kept.get("bytes_read")
    size = f", {_size(float(read))} read in all" if isinstance(read, (int, float)) else ""
    return (
        f"{what} in {len(points):,} checkpoints (branches {', '.join(branches)}){size}; "
        f"{_revisions(points)}. Files, sizes and revisions: under Provenance."
    )


def file_of(made: Material, source: str) -> str:
    """Name the files of a log or of scores, as the run's description does."""
    if made.run is None:
        return "a frame that was given; which file it was read from is not known."
    named = [str(path) for path in made.run.sources.get(source, ())]
    if not named:
        return "a frame that was given; the run's description names no file of it."
    return f"{', '.join(named)} of run {made.run.name}."


def _revisions(points: list[Mapping[str, Any]]) -> str:
    found = list(dict.fromkeys(str(c["revision"]) for c in points if c.get("revision")))
    if not found:
        return "revisions not recorded"
    return f"revision{'s' * (len(found) > 1)} {found[0]}" + (
        f" to {found[-1]} ({len(found)} of them)" if len(found) > 1 else ""
    )


def _size(count: float) -> str:
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} bytes"
