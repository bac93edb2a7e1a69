"""Statistics beside naive torch and beside the memory's read limit.

``python -m benchmarks.statistics`` takes turns on tensors in memory: reading alone (a sum of the
bytes as integers); torch as one writes it, each operation on the whole tensor; the package's sums
in torch; the package's sums compiled. GB/s is the bytes of the stored tensors, once, over wall
time. Errors are against float64 numpy. All in one process: memory is not the question here.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import analysis360.stats as stats
from analysis360.engine import compute
from analysis360.stats import Accumulator, accumulators, compiled, merge
from analysis360.stats.tiles import TILE, exact, sharing
from benchmarks.common import machine, progress, spread

Arrays = Mapping[str, torch.Tensor]
Numbers = dict[str, float]

SCALARS = {"step": 150_560.0, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "lr_sum": math.nan}
DEFAULT = ("norm_sums", "moment_sums", "value_counts", "difference_sums", "change_counts")
SCALE = {"mean": "rms", "cosine": None, "angle": None}
"""What an error is relative to, where it is not the value itself (None: 1)."""


def gaussian(n: int, seed: int, dtype: torch.dtype, scale: float = 0.02) -> torch.Tensor:
    """Made piece by piece, as it would not fit in float32 otherwise."""
    found = torch.empty(n, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, n, 1 << 22):
        piece = found[start : start + (1 << 22)]
        piece.copy_(torch.randn(len(piece), generator=generator).mul_(scale))
    return found


def bf16_pair(n: int) -> dict[str, torch.Tensor]:
    """A tensor, and what it was some steps before."""
    reference = gaussian(n, 0, torch.bfloat16)
    tensor = gaussian(n, 1, torch.bfloat16, 0.002)
    for start in range(0, n, 1 << 22):
        piece = slice(start, start + (1 << 22))
        tensor[piece] = (tensor[piece].float() + reference[piece].float()).bfloat16()
    return {"tensor": tensor, "reference": reference}


def adam_pair(n: int) -> dict[str, torch.Tensor]:
    """Both moments, in float32."""
    second = gaussian(n, 3, torch.float32, 1e-4)
    return {"exp_avg": gaussian(n, 2, torch.float32, 2e-5), "exp_avg_sq": second.square_()}


def read_limit() -> Callable[[Arrays, ThreadPoolExecutor], Numbers]:
    """Sum the bytes as 64-bit integers, compiled where numba is there."""
    try:
        import numba
    except ImportError:

        def total(words: torch.Tensor) -> int:
            return int(words.sum())
    else:

        @numba.njit(nogil=True)
        def loop(words: Any) -> int:
            found = 0
            for i in range(len(words)):
                found += words[i]
            return found

        def total(words: torch.Tensor) -> int:
            return int(loop(words.numpy()))

    def way(arrays: Arrays, pool: ThreadPoolExecutor) -> Numbers:
        words = [array.view(torch.int64) for array in arrays.values()]
        size = (1 << 22) // 8
        pieces = [w[i : i + size] for w in words for i in range(0, len(w), size)]
        list(pool.map(total, pieces))
        return {}

    return way


def naive_six(arrays: Arrays, pool: ThreadPoolExecutor) -> Numbers:
    """As one writes it."""
    a, b = arrays["tensor"].float(), arrays["reference"].float()
    norm, other = a.norm().item(), b.norm().item()
    return {
        "l2_norm": norm, "displacement": (a - b).norm().item(), "mean": a.mean().item(),
        "max_abs": a.abs().max().item(), "cosine": torch.dot(a, b).item() / (norm * other),
        "rel_displacement": (a - b).norm().item() / other,
    }  # fmt: skip


def naive_default(arrays: Arrays, pool: ThreadPoolExecutor) -> Numbers:
    """As one writes it."""
    a, b = arrays["tensor"].float(), arrays["reference"].float()
    d = a - a.mean()
    return naive_six(arrays, pool) | {
        "rms": a.square().mean().sqrt().item(), "std": a.std(correction=0).item(),
        "kurtosis": ((d**4).mean() / (d**2).mean() ** 2).item(),
        "zero_fraction": (a == 0).float().mean().item(),
        "nonfinite": (~torch.isfinite(a)).sum().item(), "max_change": (a - b).abs().max().item(),
        "unchanged_fraction": (a == b).float().mean().item(),
    }  # fmt: skip


QUANTILES = {"abs_median": 0.5, "abs_p99": 0.99, "abs_p999": 0.999}


def naive_quantiles(arrays: Arrays, pool: ThreadPoolExecutor) -> Numbers:
    """As one writes it, where ``torch.quantile`` refuses tensors of more than 16 million."""
    ordered = torch.sort(arrays["tensor"].abs()).values
    return {n: ordered[int(q * len(ordered))].item() for n, q in QUANTILES.items()}


def naive_adam(arrays: Arrays, pool: ThreadPoolExecutor) -> Numbers:
    """As one writes it."""
    step, beta1, beta2, eps = (SCALARS[n] for n in ("step", "beta1", "beta2", "eps"))
    m, v = arrays["exp_avg"] / (1 - beta1**step), arrays["exp_avg_sq"] / (1 - beta2**step)
    u = m / (v.sqrt() + eps)
    return {
        "update_rms": u.square().mean().sqrt().item(), "update_max": u.abs().max().item(),
        "adam_snr": (m.norm() ** 2 / v.sum()).item(), "grad_norm_ema": v.sum().sqrt().item(),
        "eps_fraction": (v.sqrt() < eps).float().mean().item(),
        "eps10_fraction": (v.sqrt() < 10 * eps).float().mean().item(),
        "bound_violations": float((m.abs() > 1.165 * v.sqrt()).sum().item()),
    }  # fmt: skip


def ours(
    measures: Sequence[Accumulator], size: int, take: Callable[..., Any]
) -> Callable[..., Numbers]:
    """The sums of pieces of `size`, in the pool, merged, and the statistics made of them."""

    def way(arrays: Arrays, pool: ThreadPoolExecutor) -> Numbers:
        n = len(next(iter(arrays.values())))

        def piece(start: int) -> list[Any]:
            cut = {name: array[start : start + size] for name, array in arrays.items()}
            return take(measures, cut)

        parts = list(pool.map(piece, range(0, n, size)))
        return numbers(measures, [np.concatenate(rows) for rows in zip(*parts)])

    return way


def by_torch(measures: Sequence[Accumulator], arrays: Arrays) -> list[Any]:
    """Tile by tile, as the engine does without a compiler."""
    found: list[list[torch.Tensor]] = [[] for _ in measures]
    for start in range(0, len(next(iter(arrays.values()))), TILE):
        tile = {
            name: exact(array[start : start + TILE], slot=f"tile {i}")
            for i, (name, array) in enumerate(arrays.items())
        }
        with sharing():
            for rows, measure in zip(found, measures):
                rows.append(measure.function(**{n: (tile | SCALARS)[n] for n in measure.inputs}))
    return [torch.stack(rows).numpy() for rows in found]


def by_compiled(measures: Sequence[Accumulator], arrays: Arrays) -> list[Any]:
    """In one call, as the engine does."""
    return [values[np.newaxis] for values in compiled.run(measures, arrays, SCALARS)]


def numbers(measures: Sequence[Accumulator], rows: Sequence[Any]) -> Numbers:
    """Merge rows of sums and make every statistic that they suffice for."""
    known = dict(SCALARS)
    with np.errstate(all="ignore"):
        for measure, values in zip(measures, rows):
            merged = merge(measure.fields, values, np.zeros(1, dtype=np.intp))[0]
            known |= dict(zip(measure.fields, merged))
        return {
            name: float(entry.function(**{n: stats.gather(known, n) for n in entry.inputs}))
            for name, entry in stats.statistics.items()
            if all(n in known or f"{n}[0]" in known for n in entry.inputs)
            and name != "update_ratio"
        }


def oracle(arrays: Arrays, measures: Sequence[Accumulator]) -> Numbers:
    """Float64 numpy, piece by piece with exact sums across pieces, from the definitions."""
    names = list(arrays)
    n = len(arrays[names[0]])
    pieces = [slice(i, i + (1 << 22)) for i in range(0, n, 1 << 22)]

    def both(where: slice) -> Any:
        return (arrays[name][where].double().numpy() for name in names)

    def total(function: Callable[..., Any]) -> float:
        return math.fsum(float(np.sum(function(*both(p)))) for p in pieces)

    def largest(function: Callable[..., Any]) -> float:
        return max(float(np.max(np.abs(function(*both(p))))) for p in pieces)

    if names == ["tensor"]:
        magnitudes = arrays["tensor"].float().abs_().numpy()
        places = {name: int(q * n) for name, q in QUANTILES.items()}
        ordered = np.partition(magnitudes, list(places.values()))
        return {name: float(ordered[place]) for name, place in places.items()}
    if "exp_avg" in arrays:
        t, b1, b2, eps = (SCALARS[k] for k in ("step", "beta1", "beta2", "eps"))
        c1, c2 = 1 - b1**t, 1 - b2**t

        def u(m: Any, v: Any) -> Any:
            return m / c1 / (np.sqrt(v / c2) + eps)

        v_sum = total(lambda m, v: v / c2)
        return {
            "update_rms": math.sqrt(total(lambda m, v: u(m, v) ** 2) / n), "update_max": largest(u),
            "adam_snr": total(lambda m, v: (m / c1) ** 2) / v_sum,
            "grad_norm_ema": math.sqrt(v_sum),
            "eps_fraction": total(lambda m, v: np.sqrt(v / c2) < eps) / n,
            "eps10_fraction": total(lambda m, v: np.sqrt(v / c2) < 10 * eps) / n,
        }  # fmt: skip
    aa, bb, dd = (
        total(f) for f in (lambda a, b: a * a, lambda a, b: b * b, lambda a, b: (a - b) ** 2)
    )
    na, nb, mean = math.sqrt(aa), math.sqrt(bb), total(lambda a, b: a) / n
    m2 = total(lambda a, b: (a - mean) ** 2)
    chord = math.sqrt(total(lambda a, b: (a / na - b / nb) ** 2))
    sum_ = math.sqrt(total(lambda a, b: (a / na + b / nb) ** 2))
    return {
        "l2_norm": na, "rms": na / math.sqrt(n), "mean": mean, "max_abs": largest(lambda a, b: a),
        "displacement": math.sqrt(dd), "rel_displacement": math.sqrt(dd / bb),
        "cosine": total(lambda a, b: a * b) / (na * nb), "angle": 2 * math.atan2(chord, sum_),
        "std": math.sqrt(m2 / n), "kurtosis": n * total(lambda a, b: (a - mean) ** 4) / m2**2,
        "zero_fraction": total(lambda a, b: a == 0) / n, "max_change": largest(lambda a, b: a - b),
        "nonfinite": total(lambda a, b: ~np.isfinite(a)),
        "unchanged_fraction": total(lambda a, b: a == b) / n,
    }  # fmt: skip


def worst(found: Numbers, want: Numbers) -> str:
    """The largest error on the natural scale, and whose it is."""
    errors = {}
    for name in found.keys() & want.keys():
        by = SCALE.get(name, name)
        scale = 1.0 if by is None else abs(want[by])
        errors[name] = abs(found[name] - want[name]) / (scale or 1.0)
    if not errors:
        return "–"
    name = max(errors, key=errors.__getitem__)
    return f"{errors[name]:.0e} ({name})"


@dataclass
class Way:
    """One of the ways, with what each round took."""

    name: str
    function: Callable[[Arrays, ThreadPoolExecutor], Numbers]
    own_threads: bool = True  # threads of the pool, one of torch's; else torch's own
    walls: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)
    said: Numbers = field(default_factory=dict)

    def go(self, arrays: Arrays, threads: int) -> None:
        torch.set_num_threads(1 if self.own_threads else threads)
        with ThreadPoolExecutor(threads) as pool:
            wall, cpu = time.perf_counter(), time.process_time()
            self.said = self.function(arrays, pool)
            self.cpus.append(time.process_time() - cpu)
            self.walls.append(time.perf_counter() - wall)


def compare(
    title: str, arrays: Arrays, ways: Sequence[Way], threads: int, rounds: int, want: Numbers
) -> None:
    """Take turns, after one round to warm up, and print a table."""
    nbytes = sum(array.nbytes for array in arrays.values())
    for way in ways:
        way.walls, way.cpus = [], []
    for number in range(rounds + 1):
        for way in ways:
            way.go(arrays, threads)
        progress(f"{title}, {threads} threads: round {number}")
    print(f"\n**{title}**, {nbytes / 1e9:.2f} GB, {threads} thread{'s' * (threads > 1)}\n")
    print(
        "| what | GB/s, median (min–max) | % of read limit | times naive | CPU s/GB | worst error |"
    )
    print("|---|---|---|---|---|---|")
    for way in ways:
        rates = [nbytes / wall / 1e9 for wall in way.walls[1:]]
        against = [
            statistics.median(a / b for a, b in zip(other.walls[1:], way.walls[1:]))  # same round
            for other in ways[:2]
        ]
        cpu = statistics.median(way.cpus[1:]) / nbytes * 1e9
        print(
            f"| {way.name} | {spread(rates)} | {100 * against[0]:.0f} | {against[1]:.1f} "
            f"| {cpu:.2f} | {worst(way.said, want)} |"
        )


def main() -> None:
    given = arguments()
    print(machine())
    n = 1 << given.log2
    pair, moments = bf16_pair(n), adam_pair(n // 2)
    six = [accumulators[name] for name in ("norm_sums", "difference_sums")]
    default, adam = [accumulators[name] for name in DEFAULT], [accumulators["adam_sums"]]
    binned = [accumulators["magnitude_bins"]]
    sets: list[tuple[str, Arrays, list[Accumulator], Any]] = [
        ("six sums of a bf16 pair", pair, six, naive_six),
        ("default statistics of a bf16 pair", pair, default, naive_default),
        ("Adam moments, float32", moments, adam, naive_adam),
        ("quantiles of a bf16 tensor", {"tensor": pair["tensor"]}, binned, naive_quantiles),
    ]
    sets = [entry for entry in sets if given.only in entry[0]]
    for title, arrays, measures, naive in sets:
        ways = [Way("read limit", read_limit()), Way("naive torch", naive, own_threads=False)]
        ways.append(Way("analysis360, torch", ours(measures, compute.CHUNK, by_torch)))
        if compiled.available():
            ways.append(Way("analysis360, compiled", ours(measures, compute.CHUNK, by_compiled)))
        want = oracle(arrays, measures)
        for threads in given.threads:
            compare(title, arrays, ways, threads, given.rounds, want)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--log2", type=int, default=26, help="elements of a bf16 tensor, as a power"
    )
    parser.add_argument("--rounds", type=int, default=5, help="besides one to warm up")
    parser.add_argument("--only", default="", help="cases with this in their title")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    return parser.parse_args()


if __name__ == "__main__":
    main()
