"""Which checkpoint each one is compared with: the previous one, the other branch's, the fork."""

from __future__ import annotations

from collections.abc import Sequence

from analysis360.core import Checkpoint, Fork, Run

__all__ = ["find_references"]


def find_references(
    run: Run,
    entries: Sequence[Checkpoint],
    against: Sequence[str],
    skipped: list[tuple[str, str]],
) -> dict[tuple[int, str], int]:
    """Position and role of each checkpoint → position of the one that it is compared with.

    Why there is none, where one could be expected, is added to `skipped`.
    """
    found: dict[tuple[int, str], int] = {}
    lookups = {"previous": _previous, "partner": _partner, "ancestor": _ancestor}
    for role in against:
        for position, checkpoint in enumerate(entries):
            reference, why = lookups[role](run, entries, position)
            if reference is not None:
                found[position, role] = reference
            elif why:
                skipped.append((f"{checkpoint.name} against {role}", why))
    return found


def _previous(run: Run, entries: Sequence[Checkpoint], position: int) -> tuple[int | None, str]:
    mine = entries[position]
    before = [i for i in range(position) if entries[i].branch == mine.branch]
    return (before[-1], "") if before else (None, "it is the first selected one of its branch")


def _partner(run: Run, entries: Sequence[Checkpoint], position: int) -> tuple[int | None, str]:
    mine = entries[position]
    parents = [f.parent for f in run.forks if f.branch == mine.branch]
    if not parents:
        return None, ""
    for i, other in enumerate(entries):
        same = other.tokens == mine.tokens if mine.tokens is not None else other.order == mine.order
        if other.branch == parents[0] and same:
            return i, ""
    return None, f"branch {parents[0]!r} has no selected checkpoint at the same tokens"


def _ancestor(run: Run, entries: Sequence[Checkpoint], position: int) -> tuple[int | None, str]:
    """The fork that made this branch; on a parent, the latest fork before this checkpoint.

    Where a parent has branches that left it at different points, the table's column
    ``reference_step`` says which it was.
    """
    mine = entries[position]
    forks = [f for f in run.forks if f.branch == mine.branch]
    forks = forks or [f for f in run.forks if f.parent == mine.branch and _after(mine, f)]
    places = [i for f in forks if (i := _fork_point(entries, f)) is not None]
    there = [i for i in places if i < position]
    if there:
        return max(there), ""
    if position in places or not forks:
        return None, ""
    said = ", ".join(str(f.number if f.number is not None else f"step {f.step}") for f in forks)
    return None, f"the fork point (checkpoint {said}) is not selected or not available"


def _after(checkpoint: Checkpoint, fork: Fork) -> bool:
    """Whether a checkpoint of the parent comes after the fork, as far as is known."""
    if fork.number is not None and checkpoint.number is not None:
        return checkpoint.number > fork.number
    if fork.step is not None and checkpoint.step is not None:
        return checkpoint.step > fork.step
    return True


def _fork_point(entries: Sequence[Checkpoint], fork: Fork) -> int | None:
    """Published under either branch's name, as K2's spike repositories do."""
    for name in (fork.parent, fork.branch):
        for i, c in enumerate(entries):
            same = c.number == fork.number if fork.number is not None else c.step == fork.step
            if c.branch == name and same:
                return i
    return None
