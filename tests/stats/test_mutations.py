"""Every statistic, broken in each simple way there is, is told from what it should be.

Each function of the package that a statistic rests on is changed in one place (`tests.mutants`), all
statistics that rest on it are taken of a few cases, and for at least one case one of them must depart
from the float64 oracle. A change that cannot matter is listed, with the reason; the list fails when it
is no longer true. It takes a minute or two: ``pytest -m slow tests/stats/test_mutations.py``.
"""

import inspect
import math
import signal
import sys
import warnings
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType

import numpy as np
import pytest

from analysis360 import stats
from analysis360.stats import accumulators, gather, statistics, wholes
from tests import reference
from tests.cases import CASES, scalars, taken
from tests.edges import COUNTED, EDGES, LIMITS, MORE, UNDEFINED, UNSETTLED
from tests.measured import close
from tests.mutants import mutants

PACKAGE = "analysis360.stats."
PLUMBING = {"once", "scratch", "sharing"}
"""Where intermediate results are kept: tests/stats/test_tiles.py."""

TOLERANCE = 1e-7
SECONDS = 5
"""A mutant that takes longer does not come to an end."""

NO_DIVISION = "zero over zero is NaN already"
STOP = "when the steps stop: what is left then is far below the tolerance either way"
PIECES = "how large the pieces are, not what they add up to"
POSITIVE = "it is positive"
SEED = "another start finds the same"
ONCE_MORE = "orthogonal already: once more changes nothing"
HOW_OFTEN = "how often it is looked whether the steps may stop"
NO_ELEMENTS = "only a tensor without elements would differ, and none is measured"
EITHER_WAY = "at this size both ways give the same number"
MARGIN = "how wide a margin for rounding is"
AT_THE_MARGIN = "only a number exactly at a margin for rounding would differ"
NAN_ALREADY = "what it guards is NaN there already"
NO_SCALE = "its statistics do not change with the scale of the moments"
ONLY_ROUNDING = "what is clipped is rounding"
OPEN_BIN = "the first and the last bin are open: where they end is not asked"

EQUIVALENT = {
    "adam.adam_snr_null: adam_count > 0 -> adam_count >= 0": NO_ELEMENTS,
    "adam.adam_snr_null: 0 <= beta2 < 1 -> 0 <= beta2 <= 1": NAN_ALREADY,
    "adam.adam_snr_null: 1 -> 2": NAN_ALREADY,
    "adam.noise_alone: step >= 1 and 0 <= beta1 < 1 -> step >= 1 or 0 <= beta1 < 1": NAN_ALREADY,
    "adam.noise_alone: 0 <= beta1 < 1 -> 0 <= beta1 <= 1": NAN_ALREADY,
    "adam.noise_alone: 1 -> 2 #2": NAN_ALREADY,
    "adam.grad_norm_ema: float(np.sqrt(v_sum)) if v_sum >= 0 else float('nan') -> float(np.sqrt(v_sum))":
        "the root of a negative number is NaN already",
    "bins.edges: 1 -> 2": "an edge above the last bin, that none asks for; its doctest counts them",
    "bins.edges: 0.0 -> 1.0": "the first bin is not interpolated: what lies in it counts as zero",
    "change.diffusion: noise > 0 -> noise >= 0": AT_THE_MARGIN,
    "change._remaining: log < 0.0001 -> log <= 0.0001": EITHER_WAY,
    "change._remaining: 0.0001 -> 0.0002": EITHER_WAY,
    **dict.fromkeys((
        "directions.direction_sums: torch.mul(exp_avg, 1 / (1 - beta1 ** step), out=scratch(weight, 'm'))"
        " -> torch.div(exp_avg, 1 / (1 - beta1 ** step), out=scratch(weight, 'm'))",
        "directions.direction_sums: 1 / (1 - beta1 ** step) -> 1 * (1 - beta1 ** step)",
        "directions.direction_sums: 1 -> 2",
        "directions.direction_sums: 1 - beta1 ** step -> 1",
        "directions.direction_sums: 1 - beta1 ** step -> 1 + beta1 ** step",
        "directions.direction_sums: 1 -> 2 #2",
        "directions.direction_sums: beta1 ** step -> beta1",
    ), NO_SCALE),
    "directions.undecayed_way_sq: 32 -> 33": MARGIN,
    "directions.undecayed_way_sq: gone ** 2 -> gone #2": MARGIN,
    "directions.undecayed_way_sq: 2 -> 3 #3": MARGIN,
    "directions.undecayed_way_sq: size_sq <= rounding -> size_sq < rounding": AT_THE_MARGIN,
    "directions._cosine: 1 -> 2": ONLY_ROUNDING,
    "directions._cosine: 1 -> 2 #2": ONLY_ROUNDING,
    "histograms.quantile: total[-1] > 0 -> total[-1] >= 0": NO_ELEMENTS,
    "histograms.quantile: 1 -> 2": "if all are in the last bin, it is NaN either way",
    "logits._triangle: min(matrix.shape) -> max(matrix.shape)": "all is NaN then, in any shape",
    "moments.mean: total / norm_count if norm_count else float('nan') -> total / norm_count": NO_ELEMENTS,
    "moments.max_over_rms: 0 < square_sum < math.inf -> 0 < square_sum <= math.inf": NAN_ALREADY,
    "moments._equal: 4 -> 5": MARGIN,
    "moments.moment_sums: n * mean ** 2 < 0.25 * second -> n * mean ** 2 <= 0.25 * second": EITHER_WAY,
    "moments.moment_sums: 0.25 -> 0.5": EITHER_WAY,
    **dict.fromkeys((
        "preconditioner.v_spread_sums: torch.mul(exp_avg_sq, 1 / (1 - beta2 ** step), out=scratch(exp_avg_sq, 'v'))"
        " -> torch.div(exp_avg_sq, 1 / (1 - beta2 ** step), out=scratch(exp_avg_sq, 'v'))",
        "preconditioner.v_spread_sums: 1 / (1 - beta2 ** step) -> 1 * (1 - beta2 ** step)",
        "preconditioner.v_spread_sums: 1 -> 2",
        "preconditioner.v_spread_sums: 1 - beta2 ** step -> 1",
        "preconditioner.v_spread_sums: 1 - beta2 ** step -> 1 + beta2 ** step",
        "preconditioner.v_spread_sums: 1 -> 2 #2",
        "preconditioner.v_spread_sums: beta2 ** step -> beta2",
    ), NO_SCALE),
    **dict.fromkeys((
        "powerlaw._distances: min(len(starts), first + max(1, CHUNK // (size - begin)))"
        " -> max(len(starts), first + max(1, CHUNK // (size - begin)))",
        "powerlaw._distances: max(1, CHUNK // (size - begin)) -> min(1, CHUNK // (size - begin))",
        "powerlaw._distances: 1 -> 2",
        "powerlaw._distances: CHUNK // (size - begin) -> CHUNK * (size - begin)",
        "powerlaw._distances: size - begin -> size + begin",
    ), "how many thresholds are taken at a time"),
    "powerlaw._distances: 0 -> 1 #2": "what is below the threshold is set to zero afterwards",
    "powerlaw.fit_power_law: logs[0] > EQUAL -> logs[0] >= EQUAL": AT_THE_MARGIN,
    "powerlaw.fit_power_law: 0 -> 1":
        "one number apart from equal ones: found by tests/stats/test_spectra.py",
    "powerlaw.fit_power_law: 1 -> 2": "a tail of two, which never fits best here",
    "powerlaw.fit_power_law: np.diff(logs, prepend=-np.inf) > 0 -> np.diff(logs, prepend=-np.inf) >= 0":
        "equal numbers: found by tests/stats/test_spectra.py",
    "powerlaw._distances: place < 0 -> place <= 0": "at the threshold itself the distance is zero",
    "preconditioner.v_shift_sums: 1 -> 2 #4": "one count more, that is not used",
    "preconditioner.shift_edges: SHIFTS - 1 -> SHIFTS + 1": OPEN_BIN,
    "preconditioner.shift_edges: 1 -> 2": OPEN_BIN,
    "preconditioner.shift_edges: -np.inf -> np.inf": OPEN_BIN,
    "preconditioner._std: left <= 64 * np.finfo(np.float64).eps * square / count"
    " -> left < 64 * np.finfo(np.float64).eps * square / count": AT_THE_MARGIN,
    "preconditioner._std: 64 -> 65": MARGIN,
    "preconditioner._worst: np.median(values) if values.size else math.nan -> np.median(values)": NO_ELEMENTS,
    "rounding.rounding_error: 0 < square_sum < np.inf -> 0 < square_sum <= np.inf": NAN_ALREADY,
    "rounding.rounding_floor: tensor_ulp_sq + reference_ulp_sq -> tensor_ulp_sq - reference_ulp_sq": NAN_ALREADY,
    "rows.centred_row_norm: left > 64 * np.finfo(np.float64).eps * total"
    " -> left >= 64 * np.finfo(np.float64).eps * total": AT_THE_MARGIN,
    "rows.centred_row_norm: 64 -> 65": MARGIN,
    "rows.v_row_unseen: row_v_sum < UNSEEN * np.median(seen) -> row_v_sum <= UNSEEN * np.median(seen)":
        "only a row exactly at the threshold would differ",
    "snr.adam_snr_se: left <= 32 * np.finfo(np.float64).eps * (m_fourth + ratio ** 2 * v_square)"
    " -> left < 32 * np.finfo(np.float64).eps * (m_fourth + ratio ** 2 * v_square)": AT_THE_MARGIN,
    "snr.adam_snr_se: 32 -> 33": MARGIN,
    "snr.adam_snr_se: ratio ** 2 -> ratio #2": MARGIN,
    "snr.adam_snr_se: 2 -> 3 #3": MARGIN,
    "snr.snr_sums: 0.0 -> 1.0": "an epsilon that is possible; none is used",
    "snr.noise_scale_se: null < ratio < 1 -> null <= ratio < 1": NO_DIVISION,
    'singular.singular_spectrum: max(tensor.shape) -> min(tensor.shape)': MARGIN,
    'singular._law: length * np.finfo(np.float64).eps * values[0] -> length * np.finfo(np.float64).eps / values[0]':
        MARGIN,
    'singular._values: len(squares) * torch.finfo(torch.float64).eps * squares[0] -> len(squares) * torch.finfo(torch.float64).eps / squares[0]':
        MARGIN,
    'singular._values: 0 -> 1 #2': MARGIN,
    'subspace._subspace: len(matrix) * torch.finfo(torch.float64).eps * float(values[0]) -> len(matrix) * torch.finfo(torch.float64).eps / float(values[0])':
        MARGIN,
    'subspace._subspace: 0 -> 1 #2': MARGIN,
    'subspace._subspace: 8 * torch.finfo(matrix.dtype).eps * float(values[0]) -> 8 * torch.finfo(matrix.dtype).eps / float(values[0])':
        MARGIN,
    'subspace._subspace: 8 -> 9': MARGIN,
    'subspace._subspace: 0 -> 1 #3': MARGIN,
    'subspace._subspace: ritz.residual + products -> ritz.residual - products':
        MARGIN,
    'subspace._subspace: 1e-30 -> 2e-30': MARGIN,
    'singular._law: values > floor -> values >= floor': AT_THE_MARGIN,
    'singular._values: squares > floor -> squares >= floor': AT_THE_MARGIN,
    'subspace._subspace: residual <= apart * float(values[TOP - 1] - values[TOP]) -> residual < apart * float(values[TOP - 1] - values[TOP])':
        AT_THE_MARGIN,
    'subspace._subspace: values[TOP - 1] > 0 -> values[TOP - 1] >= 0': AT_THE_MARGIN,
    'singular._by_svd: min(shape) <= SVD_UP_TO and max(shape) <= SVD_LENGTH -> min(shape) <= SVD_UP_TO or max(shape) <= SVD_LENGTH':
        EITHER_WAY,
    'singular._by_svd: min(shape) <= SVD_UP_TO -> min(shape) < SVD_UP_TO': EITHER_WAY,
    'singular._by_svd: min(shape) -> max(shape)': EITHER_WAY,
    'singular._by_svd: max(shape) <= SVD_LENGTH -> max(shape) < SVD_LENGTH': EITHER_WAY,
    'singular._by_svd: max(shape) -> min(shape)': EITHER_WAY,
    'subspace._subspace: len(matrix) <= EXACT_UP_TO -> len(matrix) < EXACT_UP_TO':
        EITHER_WAY,
    'singular.participation_ratio: top > 0 -> top >= 0': NO_DIVISION,
    "spectrum.stable_rank: float(np.divide(frobenius_sq, sigma_max ** 2)) if sigma_max > 0 else float('nan') -> float(np.divide(frobenius_sq, sigma_max ** 2))":
        NO_DIVISION,
    'spectrum.stable_rank: sigma_max > 0 -> sigma_max >= 0': NO_DIVISION,
    "subspace.delta_stable_rank: float(np.divide(delta_square, delta_sigma ** 2)) if delta_sigma > 0 else float('nan') -> float(np.divide(delta_square, delta_sigma ** 2))":
        NO_DIVISION,
    'subspace.delta_stable_rank: delta_sigma > 0 -> delta_sigma >= 0': NO_DIVISION,
    'spectrum.largest_singular_value: 0.0 -> 1.0 #3': "nothing is made of the square where the norm is zero",
    'subspace.change_spectrum: 0.0 -> 1.0 #3': "nothing is made of the top where the square is zero",
    'spectrum._lanczos: 0 -> 1 #4': "the largest singular value is at least the largest magnitude, which is 1 here",
    'spectrum._exact: 0 -> 1': "the largest singular value is at least the largest magnitude, which is 1 here",
    'spectrum._lanczos: 2 -> 3': ONCE_MORE,
    'spectrum._top: 2 -> 3': ONCE_MORE,
    'gram.krylov: 2 -> 3': ONCE_MORE,
    'spectrum._lanczos: 0 -> 1': "zeros are written over",
    'spectrum._lanczos: length > 1e-07 * gram[0, 0].abs() -> length >= 1e-07 * gram[0, 0].abs()':
        STOP,
    'spectrum._lanczos: 1e-07 * gram[0, 0].abs() -> 1e-07 / gram[0, 0].abs()':
        STOP,
    'spectrum._lanczos: 1e-07 -> 2e-07': STOP,
    'spectrum._lanczos: 0 -> 1 #2': STOP,
    'spectrum._lanczos: 0 -> 1 #3': STOP,
    'spectrum._top: betas[step] > 1e-12 * alphas[0].abs() -> betas[step] >= 1e-12 * alphas[0].abs()':
        STOP,
    'spectrum._top: 1e-12 * alphas[0].abs() -> 1e-12 / alphas[0].abs()': STOP,
    'spectrum._top: 1e-12 -> 2e-12': STOP,
    'spectrum._top: vectors[-1, -1].abs() -> vectors[-1, -1]': STOP,
    'spectrum._top: residual <= PROVED * values[-1] -> residual < PROVED * values[-1]':
        STOP,
    'spectrum._top: PROVED * values[-1] -> PROVED / values[-1]': STOP,
    'spectrum._top: 1 -> 2 #7': STOP,
    'gram.krylov: image.norm() <= 1e-07 * small[0, 0].abs() -> image.norm() < 1e-07 * small[0, 0].abs()':
        STOP,
    'gram.krylov: 1e-07 * small[0, 0].abs() -> 1e-07 / small[0, 0].abs()': STOP,
    'gram.krylov: 1e-07 -> 2e-07': STOP,
    'gram.krylov: 0 -> 1 #2': STOP,
    'gram.krylov: 0 -> 1 #3': STOP,
    'gram.krylov: 0.0 if complete else float((image @ vectors[-BLOCK:]).norm()) -> float((image @ vectors[-BLOCK:]).norm())':
        STOP,
    'gram.krylov: residual <= apart * (values[count - 1] - values[count]) -> residual < apart * (values[count - 1] - values[count])':
        STOP,
    'gram.krylov: apart * (values[count - 1] - values[count]) -> apart / (values[count - 1] - values[count])':
        STOP,
    'gram.krylov: count - 1 -> count + 1': STOP,
    'gram.krylov: 1 -> 2 #4': STOP,
    'subspace._subspace: APART / 2 -> APART * 2': STOP,
    'subspace._subspace: 2 -> 3': STOP,
    'spectrum._top: step % 8 == 7 -> step % 8 != 7': HOW_OFTEN,
    'spectrum._top: 8 -> 9': HOW_OFTEN,
    'gram.krylov: 4 -> 5': HOW_OFTEN,
    'gram.krylov: 0 -> 1 #4': HOW_OFTEN,
    'spectrum._lanczos: gram[0, 0].abs() -> gram[0, 0]': POSITIVE,
    'spectrum._top: alphas[0].abs() -> alphas[0]': POSITIVE,
    'gram.krylov: small[0, 0].abs() -> small[0, 0]': POSITIVE,
    'spectrum._top: torch.diag(alphas[:step + 1]) + beside + beside.T -> torch.diag(alphas[:step + 1]) + beside - beside.T':
        "eigh reads the triangle below the diagonal",
    'spectrum._top: torch.diag(alphas[:step + 1]) + beside -> torch.diag(alphas[:step + 1]) - beside':
        "eigh reads the triangle below the diagonal",
    'gram.gram: blas.rank_update if blas.held(square) else _strips -> blas.rank_update': EITHER_WAY,
    'gram.gram: blas.rank_update if blas.held(square) else _strips -> _strips': EITHER_WAY,
    'gram._across: min(columns, max(1, SLAB // rows)) -> max(columns, max(1, SLAB // rows))':
        PIECES,
    'gram._across: max(1, SLAB // rows) -> min(1, SLAB // rows)': PIECES,
    'gram._across: 1 -> 2': PIECES,
    'gram._across: SLAB // rows -> SLAB * rows': PIECES,
    'gram.slabs: min(rows, max(1, SLAB // columns)) -> max(rows, max(1, SLAB // columns))':
        PIECES,
    'gram.slabs: max(1, SLAB // columns) -> min(1, SLAB // columns)': PIECES,
    'gram.slabs: 1 -> 2': PIECES,
    'gram.slabs: SLAB // columns -> SLAB * columns': PIECES,
    'gram.krylov: 360 -> 361': SEED,
    'gram.krylov: 1 -> 2 #2': "the last step returns",
    'subspace._overlap: 1.0 -> 2.0': ONLY_ROUNDING,
    'subspace.delta_top8_energy: 1.0 -> 2.0': ONLY_ROUNDING,
    "subspace._subspace: TOP - 1 -> TOP + 1 #2": AT_THE_MARGIN,
    'subspace._subspace: 1 -> 2 #3': "a zero at the eighth has no gap below it, and is not settled already",
    'subspace._subspace: 1 -> 2 #4': "one value more, that is not used",
    'subspace._subspace: _images(matrix, short, scale) / sigmas[:TOP].clamp(min=1e-30) -> _images(matrix, short, scale) * sigmas[:TOP].clamp(min=1e-30)':
        "QR does not see how long the columns are",
    "updates.update_weight_cosine: 1 -> 2": ONLY_ROUNDING,
    "updates.update_weight_cosine: 1 -> 2 #2": ONLY_ROUNDING,
}  # fmt: skip
"""Changes that cannot matter, and why."""

MAY_SHOW = {MARGIN, AT_THE_MARGIN, STOP, ONLY_ROUNDING}
"""Reasons with which rounding, and so the processor, decides whether the change is noticed."""


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
        for made in (entry, *entry.terms):
            for function in reached(made.function):
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

    def __init__(self, case, undefined=None, counted=None, limits=None, ways=None):
        self.case = case
        self.plain = undefined is None
        self.limits = limits or {}
        with made_small(self.limits):
            self.fields = {entry: taken(entry, case) for entry in entries()}
        self.scalars = scalars(case)
        self.want = {name: expected(name, case, undefined) for name in statistics}
        if ways:
            self.want |= by_ways(case, *ways)
            if "singular.SVD_UP_TO" not in self.limits:  # of singular values down to rounding
                self.want |= {n: None for n in self.want if n.startswith("power_law")}
        if counted:
            self.want |= {n: None for n, v in self.want.items() if n not in counted and v == v}

    def wrong(self, changed, measures, affected):
        """Whether a statistic departs from what it should be, if `changed` gives the functions."""
        fields = dict(self.fields)
        for entry in measures:
            with made_small(self.limits):
                fields[entry] = taken(entry, self.case, changed(entry.function))
            if self.wrong_vector(fields[entry]):
                return True
        for entry in affected:
            got = self.value(entry, fields, changed)
            if not agrees(got, self.want[entry.name], entry):
                return True
        return False

    def wrong_vector(self, found):
        """Whether an array that ``load_table(kind="vectors")`` gives is not what it should be."""
        named = [name for name in found if name in VECTORS and (self.plain or name in ALWAYS)]
        return any(
            not alike(found[name], VECTORS[name](self.case), 1e-7 if name in ALWAYS else 0.0)
            for name in named
        )

    def value(self, entry, fields, changed=lambda function: function):
        known = dict(self.scalars)
        for measure in entry.measures:
            known |= fields[measure]
        for term in entry.terms:
            given = {name: np.float64(known[name]) for name in term.inputs}
            known[term.name] = np.float64(changed(term.function)(**given))
        return float(
            changed(entry.function)(**{name: gather(known, name) for name in entry.inputs})
        )


@contextmanager
def made_small(limits):
    """Constants of the package, by ``module.NAME``, for a while."""
    kept = {}
    for place, value in limits.items():
        module, _, name = place.partition(".")
        kept[place] = vars(sys.modules[PACKAGE + module])[name]
        setattr(sys.modules[PACKAGE + module], name, value)
    try:
        yield
    finally:
        for place, value in kept.items():
            module, _, name = place.partition(".")
            setattr(sys.modules[PACKAGE + module], name, value)


def error_of(matrix, way, steps=0, failure=1e-6):
    """What is said to be the error of the largest singular value, found in a certain way."""
    rows, columns = sorted(matrix.shape)
    sigmas, eps = np.linalg.svd(matrix, compute_uv=False), np.finfo(np.float64).eps
    if sigmas[0] == 0:
        return 0.0
    if way in ("exact", "proved"):
        sums = 4 * (rows + columns) * eps * (sigmas**2).sum() / (2 * sigmas[0])
        return sums + (1e-8 * sigmas[0] if way == "proved" else 0.0)
    relative = 0.0
    if way == "steps":
        gap = math.log(1.648 * math.sqrt(rows) / failure) / (2 * steps - 1)
        relative = 1 / math.sqrt(1 - min(gap**2, 0.75)) - 1
    return sigmas[0] * (relative + 32 * math.sqrt(columns) * eps)


def by_ways(case, way, steps, change_way, change_steps, failure=1e-6):
    """What the statistics are that tell how a spectrum was found, and how well."""
    return {
        "spectral_exact": float(way in ("exact", "proved")),
        "spectral_norm_error": error_of(case.w, way, steps, failure),
        "delta_exact": float(change_way == "exact"),
        "delta_spectral_norm_error": error_of(
            case.w - case.r, change_way, change_steps, failure ** (1 / 16)
        ),
    }


ORACLE = reference.ORACLE | {
    "spectral_norm_error": lambda c: error_of(c.w, "exact"),
    "delta_spectral_norm_error": lambda c: error_of(c.w - c.r, "exact"),
}


def expected(name, case, undefined):
    """What a statistic should be; None: any number."""
    if undefined and name in undefined:
        return math.nan
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if undefined is None:
            return float(ORACLE[name](case))
        try:
            said = float(ORACLE[name](case))
        except (ArithmeticError, LookupError, ValueError, AssertionError):
            return None  # the oracle itself has no number for it
    return None if math.isnan(said) else said


def alike(got, want, part):
    """Whether two arrays are equal, but for rounding of a part of the largest element."""
    largest = np.abs(want).max() if part else 0.0
    return np.allclose(
        got, want, 1e-9, 0.0 if np.isnan(largest) else part * largest, equal_nan=True
    )


ALWAYS = {"singular_values"}
"""Vectors that the oracle knows at the edges too. Found from squares, the small ones lose digits."""


def singular_values(c):
    finite = np.isfinite(c.w).all()
    return np.linalg.svd(c.w, compute_uv=False) if finite else np.full(min(c.w.shape), math.nan)


VECTORS = {
    "singular_values": singular_values,
    "row_sum": lambda c: c.w.sum(1),
    "row_square_sum": lambda c: (c.w**2).sum(1),
    "column_sum": lambda c: c.w.sum(0),
    "column_square_sum": lambda c: (c.w**2).sum(0),
    "row_v_sum": lambda c: c.v.sum(1) / (1 - c.beta2**c.step),
    "column_v_sum": lambda c: c.v.sum(0) / (1 - c.beta2**c.step),
}

SPECTRA = {"spectrum", "subspace", "gram", "singular"}
"""Modules that are taken through `LIMITS` too."""

ROUNDED = {
    "std": 1e-12, "centred_row_norm": 3e-7, "adam_snr_se": 1e-9, "v_shift_std": 1e-9,
    "log_v_std": 1e-12, "spectral_norm_error": 1e-300, "delta_spectral_norm_error": 1e-300,
}  # fmt: skip
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
    edges = {
        name: Bench(case, UNDEFINED[name].split(), COUNTED.get(name))
        for name, case in EDGES.items()
    }
    limits = {
        name: Bench(case, limits=limits, ways=ways) for name, (case, limits, ways) in LIMITS.items()
    }
    unsettled = Bench(
        UNSETTLED[0], ["subspace_overlap_left", "subspace_overlap_right"], COUNTED["unsettled"],
        UNSETTLED[1],
    )  # fmt: skip
    return limits | {"unsettled": unsettled} | plain | edges


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
            spectra = function.__module__.removeprefix(PACKAGE) in SPECTRA
            return any(
                bench.wrong(changed, measures, affected)
                for bench in benches.values()
                if spectra or not bench.limits
            )
    except Exception:
        return True


@pytest.mark.slow
def test_what_is_not_broken_is_right(benches):
    """Or every mutant would seem to be found; and which statistics are NaN at the edges."""
    wrong = []
    for name, bench in benches.items():
        for _, entry in statistics.items():
            with np.errstate(all="ignore"):
                got = bench.value(entry, bench.fields)
            if not agrees(got, bench.want[entry.name], entry):
                wrong.append(f"{name}: {entry.name} is {got}, not {bench.want[entry.name]}")
        for entry in entries():
            if bench.wrong_vector(bench.fields[entry]):
                wrong.append(f"{name}: an array of {entry.name}")
    assert not wrong, "\n".join(wrong)


MODULES = sorted(path.stem for path in Path(stats.__file__).parent.glob("[a-z]*.py"))
NO_STATISTICS = {"base", "blas", "compiled", "kernels"}


@pytest.mark.slow
@pytest.mark.parametrize("module", sorted({*MODULES} - NO_STATISTICS))
def test_every_mutant_is_found(module, benches):
    assert module in modules()
    survived, made = [], set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for function in functions():
            if function.__module__ == PACKAGE + module:
                for mutant in mutants(function):
                    name = f"{module}.{mutant.name}"
                    made.add(name)
                    if EQUIVALENT.get(name) in MAY_SHOW:
                        continue
                    if is_killed(function, mutant.function, benches) == (name in EQUIVALENT):
                        survived.append(name)
    gone = [name for name in EQUIVALENT if name.startswith(f"{module}.") and name not in made]
    assert not survived + gone, "\n".join(survived + gone)
