"""A LOSS frame checked, and one branch of it with its ancestors before it."""

from __future__ import annotations

import pandas as pd

from analysis360.errors import LogError

__all__ = ["check_loss", "with_history"]


def check_loss(loss: pd.DataFrame, column: str) -> None:
    """Refuse what is no LOSS frame, or repeats a step."""
    missing = [name for name in ("branch", "step", column) if name not in loss.columns]
    if missing:
        has = list(loss.columns)
        raise LogError(f"not a LOSS frame: columns {missing} are missing; it has {has}")
    if not pd.api.types.is_numeric_dtype(loss[column]):
        raise LogError(f"column {column!r} is not numeric but {loss[column].dtype}")
    if loss["step"].isna().any():
        raise LogError(f"{int(loss['step'].isna().sum())} rows have no step")
    twice = loss.duplicated(["branch", "step"])
    if twice.any():
        first = loss.loc[twice, ["branch", "step"]].iloc[0].to_dict()
        raise LogError(
            f"{int(twice.sum())} rows repeat a step, the first is {first}; read_loss sorts that out"
        )


def with_history(loss: pd.DataFrame, branch: str) -> tuple[pd.DataFrame, int]:
    """Rows of `branch` after those of its ancestors, by step; and how many are the ancestors'."""
    groups = {str(name): rows.sort_values("step") for name, rows in loss.groupby("branch")}
    parts, seen = [groups[branch]], {branch}
    first, rows = parts[0]["step"].iloc[0], parts[0]
    while "parent" in loss.columns:
        parent = rows["parent"].iloc[0]
        if not isinstance(parent, str) or parent in seen or parent not in groups:
            break
        seen.add(parent)
        rows = groups[parent]
        before = rows[rows["step"] < first]  # none, if the parent itself forked later
        if len(before):
            parts.insert(0, before)
            first = before["step"].iloc[0]
    return pd.concat(parts), sum(len(part) for part in parts[:-1])
