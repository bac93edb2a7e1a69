"""The file that describes a run: which keys it may have, and what they must be."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any, NamedTuple

from analysis360.core import Adam, Batch, Event, Fork, LearningRate
from analysis360.errors import FormatError

__all__ = ["check_description", "compile_pattern", "made", "read_description"]


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A template with braces, or a regular expression with named groups."""
    if "(?P<" not in pattern:
        pieces = re.split(r"\{(step|number|branch)\}", pattern)
        values = {
            "step": r"(?P<step>\d+)",
            "number": r"(?P<number>\d+)",
            "branch": r"(?P<branch>\w+?)",
        }
        pattern = "".join(values[p] if i % 2 else re.escape(p) for i, p in enumerate(pieces))
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from error
    if not {"step", "number"} & set(compiled.groupindex):
        raise ValueError(f"pattern {pattern!r} names neither a step nor a number")
    return compiled


class _Key(NamedTuple):
    """What a value of a description must be, in words and as a test, and what is made of it."""

    expected: str
    fits: Callable[[Any], bool]
    make: Callable[[Any], Any] = lambda value: value


def _is_number(value: object) -> bool:
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return real and math.isfinite(value)  # type: ignore[arg-type]


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_steps(value: object) -> bool:
    """Whether it lists steps: numbers, and ranges such as ``"1000:9000:1000"``, ends included."""
    return isinstance(value, list) and all(
        (_is_whole(v) and v >= 0)
        or (isinstance(v, str) and re.fullmatch(r"\d+:\d+:[1-9]\d*", v) is not None)
        for v in value
    )


def _steps(value: list[int | str]) -> tuple[int, ...]:
    found: set[int] = set()
    for entry in value:
        if isinstance(entry, int):
            found.add(entry)
            continue
        start, stop, by = map(int, entry.split(":"))
        found |= set(range(start, stop + 1, by))
    return tuple(sorted(found))


def _are_texts(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(text, str) for text in value)
    )


_TEXT = _Key("a text", lambda v: isinstance(v, str))
_TEXTS = _Key(
    "a text or a list of texts", _are_texts, lambda v: (v,) if isinstance(v, str) else tuple(v)
)
_COUNT = _Key("a whole number from 1 on", lambda v: _is_whole(v) and v >= 1)
_STEP = _Key("a whole number from 0 on", lambda v: _is_whole(v) and v >= 0)
_STEPS = _Key('a list of steps and of ranges such as "1000:9000:1000"', _are_steps, _steps)
_SIZE = _Key("a number from 0 on", lambda v: _is_number(v) and v >= 0, float)
_BETA = _Key("a number from 0 to below 1", lambda v: _is_number(v) and 0 <= v < 1, float)

_UNIT = _Key('"steps" or "samples"', lambda v: v in ("steps", "samples"))
_YES = _Key("true or false", lambda v: isinstance(v, bool))

_KEYS: Mapping[str, Any] = {
    "name": _TEXT, "title": _TEXT, "source": _TEXT, "family": _TEXT, "states": _TEXT,
    "checkpoints": {
        "pattern": _TEXT, "folder": _TEXT, "steps_per_number": _COUNT, "tokens_per_step": _COUNT,
        "unnamed_branch": _TEXT, "unstepped_branches": _TEXTS, "folders": _YES,
        "steps_at_zero": _STEP, "steps_before": {"*": _STEP}, "numbers": {"*": _STEP},
        "steps": _STEPS, "files": _TEXTS, "sequence_length": _COUNT,
        "batch": {"start": _COUNT, "stop": _COUNT, "by": _COUNT, "samples": _COUNT,
                  "length": _COUNT},
    },
    "adam": {
        "beta1": _BETA, "beta2": _BETA, "eps": _SIZE, "weight_decay": _SIZE, "clip": _SIZE,
        "lr": _SIZE, "decay_from": _STEP,
    },
    "learning_rate": {
        "peak": _SIZE, "final": _SIZE, "warmup": _STEP, "total": _COUNT, "kind": _TEXT,
        "floor": _SIZE, "unit": _UNIT,
    },
    "forks": [{"branch": _TEXT, "parent": _TEXT, "number": _STEP, "step": _STEP}],
    "events": [{"branch": _TEXT, "step": _STEP, "label": _TEXT}],
    "sources": {"*": _TEXTS}, "published": {"*": _TEXT},
    "runs": _TEXTS, "rename": {"*": {"*": _TEXT}},
}  # fmt: skip
"""Keys of a description: tables, lists of tables, and values; ``*`` is any other key."""

_NOUNS = {"adam": Adam, "learning_rate": LearningRate, "forks": Fork, "events": Event}


def read_description(text: str, where: str) -> dict[str, Any]:
    """Read what ``analysis360.toml`` says; errors begin with `where`."""
    try:
        said = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FormatError(f"{where}: {error}") from error
    return check_description(said, where)


def check_description(said: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Check what was read, and make the nouns of it; errors begin with `where`."""
    checked: dict[str, Any] = _checked(said, _KEYS, where, "")
    named = checked.get("checkpoints", {})
    try:
        if "pattern" in named:
            named["template"] = named["pattern"]
            named["pattern"] = compile_pattern(named["pattern"])
    except ValueError as error:
        raise FormatError(f"{where}: checkpoints.pattern: {error}") from error
    if "batch" in named:
        named["batch"] = made(Batch, named["batch"], f"{where}: checkpoints.batch")
    rate = checked.get("learning_rate", {})
    if rate.pop("unit", "steps") == "samples":
        if "batch" not in named:
            raise FormatError(f"{where}: learning_rate.unit = 'samples' needs checkpoints.batch")
        rate["batch"] = named["batch"]
    for key, kind in _NOUNS.items():
        if isinstance(checked.get(key), list):
            checked[key] = tuple(made(kind, entry, f"{where}: {key}") for entry in checked[key])
        elif key in checked:
            checked[key] = made(kind, checked[key], f"{where}: {key}")
    return checked


def _checked(value: Any, kind: Any, where: str, at: str) -> Any:
    """Take a value apart along `_KEYS`; `at` is the key it was found under."""
    if isinstance(kind, _Key):
        if not kind.fits(value):
            raise FormatError(f"{where}: {at} = {value!r}: expected {kind.expected}")
        return kind.make(value)
    if isinstance(kind, list):
        if not isinstance(value, list):
            raise FormatError(f"{where}: {at} = {value!r}: expected tables, each under [[{at}]]")
        return [_checked(v, kind[0], where, f"{at}[{i}]") for i, v in enumerate(value)]
    if not isinstance(value, dict):
        raise FormatError(f"{where}: {at} = {value!r}: expected a table, under [{at}]")
    made = {}
    for key, entry in value.items():
        inner = f"{at}.{key}" if at else key
        if key not in kind and "*" not in kind:
            raise FormatError(f"{where}: {inner}: no such key; known are {', '.join(kind)}")
        made[key] = _checked(entry, kind.get(key, kind.get("*")), where, inner)
    return made


def made(kind: type[Any], values: Mapping[str, Any], where: str) -> Any:
    """Make one of the nouns from its keys; a missing key is an error that begins with `where`."""
    missing = [f.name for f in fields(kind) if f.default is MISSING and f.name not in values]
    if missing:
        raise FormatError(f"{where}: {', '.join(missing)} is missing")
    try:
        return kind(**values)
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from error
