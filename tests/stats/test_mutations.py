"""Every statistic, broken in each simple way there is, is told from what it should be.

Each function of the package that a statistic rests on is changed in one place (`tests.mutants`), all
statistics that rest on it are taken of a few cases, and for at least one case one of them must depart
from the float64 oracle. A change that cannot matter is listed, with the reason; the list fails when it
is no longer true.
"""

import inspect
import math
import signal
import sys
import warnings
from contextlib import contextmanager
from functools import cache
from types import CodeType

import numpy as np
import pytest

from analysis360.stats import accumulators, gather, statistics, wholes
from tests import reference
from tests.cases import CASES, scalars, taken
from tests.edges import EDGES, MORE, UNDEFINED
from tests.measured import close
from tests.mutants import mutants

PACKAGE = "analysis360.stats."
PLUMBING = {"once", "scratch", "sharing"}
"""Where intermediate results are kept: tests/stats/test_tiles.py."""

TOLERANCE = 1e-7
SECONDS = 5
"""A mutant that takes longer does not come to an end."""

NO_DIVISION = "zero over zero is NaN already"
NO_ELEMENTS = "only a tensor without elements would differ, and none is measured"
EITHER_WAY = "both branches give the same number here"

EQUIVALENT = {
    "adam.adam_snr_null: adam_count > 0 -> adam_count >= 0": NO_ELEMENTS,
    "adam.grad_norm_ema: float(np.sqrt(v_sum)) if v_sum >= 0 else float('nan') -> float(np.sqrt(v_sum))":
        "the root of a negative number is NaN already",
    "bins._quantile: total[-1] > 0 -> total[-1] >= 0": NO_ELEMENTS,
    "bins._quantile: 1 -> 2": "if all are in the last bin, that has no end, and it is NaN either way",
    "bins.edges: 1 -> 2": "an edge above the last bin, that none asks for; its doctest counts them",
    "bins.edges: 0.0 -> 1.0": "the first bin is not interpolated: what lies in it counts as zero",
    "change._chord_sq: mine > 0 -> mine >= 0": NO_DIVISION,
    "moments.mean: total / norm_count if norm_count else float('nan') -> total / norm_count": NO_ELEMENTS,
    "moments.kurtosis: 4 -> 5": "a margin for rounding",
    "moments.moment_sums: n * mean ** 2 < 0.25 * second -> n * mean ** 2 <= 0.25 * second": EITHER_WAY,
    "moments.moment_sums: 0.25 -> 0.5": EITHER_WAY,
}  # fmt: skip
"""Changes that cannot matter, and why."""


def entries():
    """Registered things whose values are statistics, or lead to them."""
    for registry in (accumulators, wholes):
        yield from (entry for _, entry in registry.items())


def ours(thing):
    function = inspect.unwrap(thing) if callable(thing) else None
    return (
        inspect.isfunction(function)
        and function.__module__.startswith(PACKAGE)
        and function.__name__ not in PLUMBING
        and not function.__module__.endswith((".base", ".compiled", ".kernels"))
    )


def names(code: CodeType):
    """Global names that a function uses, also within the functions it makes."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names(constant)


@cache
def reached(function):
    """A function of the package and all those that it calls."""
    found, todo = [], [inspect.unwrap(function)]
    while todo:
        here = todo.pop()
        if here not in found:
            found.append(here)
            there = (here.__globals__.get(name) for name in names(here.__code__))
            todo += [inspect.unwrap(thing) for thing in there if ours(thing)]
    return tuple(found)


@cache
def functions():
    """Function → the measures and the statistics that rest on it."""
    found = {}
    for entry in entries():
        for function in reached(entry.function):
            found.setdefault(function, ([], []))[0].append(entry)
    for _, entry in statistics.items():
        for function in reached(entry.function):
            found.setdefault(function, ([], []))[1].append(entry)
    return {
        function: (measures, [
            entry for _, entry in statistics.items()
            if entry in direct or any(m in measures for m in entry.measures)
        ])
        for function, (measures, direct) in found.items() if ours(function)
    }  # fmt: skip


def modules():
    return sorted({function.__module__.removeprefix(PACKAGE) for function in functions()})


class Bench:
    """One case: what each accumulator gives, and what each statistic should be.

    `undefined` names the statistics that are NaN; without it, those are that the oracle says.
    """

    def __init__(self, case, undefined=None):
        self.case = case
        self.fields = {entry: taken(entry, case) for entry in entries()}
        self.scalars = scalars(case)
        self.want = {name: expected(name, case, undefined) for name in statistics}

    def wrong(self, changed, measures, affected):
        """Whether a statistic departs from what it should be, if `changed` gives the functions."""
        fields = dict(self.fields)
        for entry in measures:
            fields[entry] = taken(entry, self.case, changed(entry.function))
        for entry in affected:
            got = self.value(entry, changed(entry.function), fields)
            if not agrees(got, self.want[entry.name], entry):
                return True
        return False

    def value(self, entry, function, fields):
        known = dict(self.scalars)
        for measure in entry.measures:
            known |= fields[measure]
        return float(function(**{name: gather(known, name) for name in entry.inputs}))


def expected(name, case, undefined):
    """What a statistic should be; None: any number."""
    if undefined and name in undefined:
        return math.nan
    if name not in reference.ORACLE:
        return None
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if undefined is None:
            return float(reference.ORACLE[name](case))
        try:
            said = float(reference.ORACLE[name](case))
        except (ArithmeticError, LookupError, ValueError, AssertionError):
            return None  # the oracle itself has no number for it
    return None if math.isnan(said) else said


ROUNDED = {"std": 1e-12, "centred_row_norm": 3e-7, "adam_snr_se": 1e-9}
"""Statistics that are zero on paper for a constant, and what rounding leaves."""


def agrees(got, want, entry):
    if want is None:
        return not math.isnan(got)
    if math.isinf(want):
        return got == want
    slack = ROUNDED.get(entry.name, 1e-12 if entry.degree == 0 and abs(want) > 1e-9 else 0)
    return close(got, want, tolerance=TOLERANCE) or abs(got - want) < slack


@pytest.fixture(scope="module")
def benches():
    plain = {name: Bench(case) for name, case in (CASES | MORE).items()}
    edges = {name: Bench(case, UNDEFINED[name].split()) for name, case in EDGES.items()}
    return plain | edges


@contextmanager
def standing_in(function, mutant):
    """The mutant wherever the package calls the function by its name."""
    places = [
        (module, name)
        for key, module in list(sys.modules.items())
        if key.startswith(PACKAGE)
        for name, thing in vars(module).items()
        if callable(thing) and inspect.unwrap(thing) is function
    ]
    kept = [getattr(module, name) for module, name in places]
    for module, name in places:
        setattr(module, name, mutant)
    try:
        yield
    finally:
        for (module, name), thing in zip(places, kept):
            setattr(module, name, thing)


@contextmanager
def limit(seconds):
    """Raise in what does not end (where the system has such an alarm)."""

    def stop(*_):
        raise TimeoutError

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def is_killed(function, mutant, benches):
    """Whether some statistic of some case departs from the oracle, or cannot be taken."""
    measures, affected = functions()[function]

    def changed(original):
        return mutant if inspect.unwrap(original) is function else original

    try:
        with standing_in(function, mutant), limit(SECONDS), np.errstate(all="ignore"):
            return any(bench.wrong(changed, measures, affected) for bench in benches.values())
    except Exception:
        return True


def test_what_is_not_broken_is_right(benches):
    """Or every mutant would seem to be found; and which statistics are NaN at the edges."""
    wrong = []
    for name, bench in benches.items():
        for _, entry in statistics.items():
            with np.errstate(all="ignore"):
                got = bench.value(entry, entry.function, bench.fields)
            if not agrees(got, bench.want[entry.name], entry):
                wrong.append(f"{name}: {entry.name} is {got}, not {bench.want[entry.name]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", modules())
def test_every_mutant_is_found(module, benches):
    survived, made = [], set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for function in functions():
            if function.__module__ == PACKAGE + module:
                for mutant in mutants(function):
                    name = f"{module}.{mutant.name}"
                    made.add(name)
                    if is_killed(function, mutant.function, benches) == (name in EQUIVALENT):
                        survived.append(name)
    gone = [name for name in EQUIVALENT if name.startswith(f"{module}.") and name not in made]
    print(len(made), "mutants")
    assert not survived + gone, "\n".join(survived + gone)
