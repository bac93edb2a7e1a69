"""What `Run.select` takes: scalars, slices and iterables, of Python, numpy or pandas."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any, SupportsIndex

import numpy as np
import pandas as pd

__all__ = ["Selector", "chosen", "frozen"]

Selector = SupportsIndex | str | slice | Iterable[Any] | None
"""What `Run.select` takes: a scalar, a slice or an iterable, also of numpy or pandas."""


def frozen(wanted: Selector) -> Selector:
    """Plain Python values, which can be compared again and again: a generator ends after once.

    Raises
    ------
    TypeError
        If it can't select anything.
    """
    if wanted is None or isinstance(wanted, str):
        return wanted
    if isinstance(wanted, slice):
        if wanted.step is not None:
            raise TypeError(
                f"cannot select by {wanted!r}: a slice has two ends, both included, and no step; "
                "give a range, such as range(160, 195, 2)"
            )
        return slice(_plain(wanted.start), _plain(wanted.stop))
    if (
        isinstance(wanted, Iterable) and getattr(wanted, "ndim", None) != 0
    ):  # numpy has 0-d iterables
        return tuple(_plain(value) for value in wanted)
    value = _plain(wanted)
    if not isinstance(value, Real):
        raise TypeError(f"cannot select by {wanted!r}: give a number, a text, a slice or a list")
    return value  # type: ignore[return-value]  # a fraction equals no number: nothing is left


def _plain(value: Any) -> Any:
    """Give a number of numpy or pandas as an int if it is a whole one; what is missing as None."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if value is None or value is pd.NA:
        return None
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):  # a column with missing values is one of floats
        number = float(value)
        return None if math.isnan(number) else int(number) if number.is_integer() else number
    return value


def chosen(value: object, wanted: Selector) -> bool:
    """Whether `value` is selected; slices include both ends, as ``.loc`` does in pandas."""
    if wanted is None:
        return True
    if isinstance(wanted, slice):
        if value is None or pd.isna(value):  # type: ignore[call-overload]
            return False
        low = wanted.start is None or value >= wanted.start
        high = wanted.stop is None or value <= wanted.stop
        return bool(low and high)
    return value in wanted if isinstance(wanted, tuple) else value == wanted
