"""The measured table: its key columns, their dtypes, and the checks that guard them.

This is the waist of the library. Everything that reads bytes ends in this frame; everything that
detects, compares, pairs, draws or reports starts from it and needs pandas only.

One row is one tensor (`name`) in one checkpoint (`run`, `branch`, `number`, `step`, `tokens`), in
one stored or derived `state`, measured alone (`against` is empty) or against another checkpoint
(``"previous"``, ``"partner"``: the other branch at the same tokens, ``"ancestor"``: the fork
point). After the key and what is known of the stored tensor comes one column per statistic.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import pandas as pd

from analysis360.errors import TableError

__all__ = ["AGAINST", "INFO", "KEY", "as_keyed", "check_table", "statistic_columns"]

KEY: dict[str, str] = {
    "run": "str", "branch": "str", "number": "Int64", "step": "Int64", "tokens": "Int64",
    "name": "str", "layer": "Int64", "module": "str", "param": "str",
    "expert": "Int64", "head": "Int64", "state": "str", "against": "str",
}  # fmt: skip
"""Key columns and their pandas dtypes; together they are unique."""

INFO: dict[str, str] = {
    "key": "str", "revision": "str", "dtype": "str", "shape": "str", "numel": "Int64",
    "reference": "str", "reference_step": "Int64",
}  # fmt: skip
"""Columns that describe the stored tensor, and the checkpoint that it is compared with."""

AGAINST = ("previous", "partner", "ancestor")
"""The roles in which another checkpoint may be compared."""


def statistic_columns(table: pd.DataFrame) -> list[str]:
    """Names of the statistic columns of a measured table."""
    return [column for column in table.columns if column not in KEY and column not in INFO]


def as_keyed(frame: pd.DataFrame) -> pd.DataFrame:
    """The same rows; key and information columns cast to the dtypes of `KEY` and `INFO`."""
    cast = frame.astype({c: t for c, t in (KEY | INFO).items() if c in frame.columns})
    return cast.copy()  # a cast leaves a block a column: pandas warns of each that is added to 100


def _near(absent: Sequence[str], table: pd.DataFrame) -> str:
    """What may have been meant by columns that are not there."""
    has = statistic_columns(table)
    found = dict.fromkeys(n for name in absent for n in difflib.get_close_matches(name, has))
    if found:
        return f"did you mean {' or '.join(found)}?"
    some = f"{', '.join(has[:12])} and {len(has) - 12} more" if len(has) > 12 else f"{has}"
    return f"its statistics are {some}"


def check_table(table: pd.DataFrame, need: Sequence[str] = ()) -> pd.DataFrame:
    """Check that a frame is a measured table, and give its key columns their dtypes.

    Parameters
    ----------
    table : DataFrame
    need : sequence of str
        Statistic columns that the caller is going to use.

    Returns
    -------
    DataFrame
        The same rows; key columns cast to the dtypes of `KEY`.

    Raises
    ------
    TableError
        If key columns or needed statistics are missing, or keys are repeated.
    """
    missing = [column for column in KEY if column not in table.columns]
    if missing:
        raise TableError(
            f"not a measured table: columns {missing} are missing; expected {list(KEY)}"
        )
    absent = [column for column in need if column not in table.columns]
    if absent:
        raise TableError(f"the table has no column {absent}; {_near(absent, table)}")
    table = as_keyed(table)
    twice = table.duplicated(list(KEY))
    if twice.any():
        first = table.loc[twice, list(KEY)].iloc[0].to_dict()
        raise TableError(f"{int(twice.sum())} rows repeat a key, the first is {first}")
    return table
