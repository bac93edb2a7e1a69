"""One pair of checkpoints of K2's size, from a server on this machine: right, once, within memory.

``python -m benchmarks.k2`` fetches 261 GB and takes a few minutes; ``--layers 2`` is a quick look.
Two branches: ``--run k2-spike-1 --against previous partner --checkpoints
normal_ckpt_162,normal_ckpt_164,spike_ckpt_162,spike_ckpt_164``.
Ends with status 1 if a number is wrong, a byte is fetched twice or the budget is exceeded.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.common import Child, Done, environment, machine
from benchmarks.k2_content import Content, Shape, statistics_of
from benchmarks.k2_server import ServerProcess

RUNS = {"k2": "LLM360/K2", "k2-spike-1": "LLM360/K2-Spike-1", "k2-spike-2": "LLM360/K2-Spike-2"}
TOLERANCE = 1e-6
PAIRED = (
    "displacement", "rel_displacement", "max_change", "cosine", "angle", "unchanged_fraction",
)  # fmt: skip
NATURAL = {"mean": "rms", "cosine": 1.0, "zero_fraction": 1.0, "unchanged_fraction": 1.0,
           "nonfinite": 1.0}  # fmt: skip
"""Scale that an error is measured by, where it is not the value itself."""


def main() -> int:
    given = arguments()
    shape = Shape(layers=given.layers)
    print(f"{machine()}\n")
    options = ["--layers", str(given.layers), "--repo", f"{RUNS[given.run]}={given.checkpoints}"]
    options += ["--rate", str(given.rate), "--latency", str(given.latency)]
    with tempfile.TemporaryDirectory(dir=given.folder) as folder, ServerProcess(*options) as server:
        env = {"HF_ENDPOINT": server.endpoint, "HF_HOME": f"{folder}/hf"}
        with Child("benchmarks.peers", env | environment(given.env)) as child:
            opened = child.call("open_source", source=given.run)
            plan = child.call("make_plan", memory=given.memory, against=given.against)
            print(plan.said["text"], "\n")
            headers = server.tell("report")
            server.tell("clear")
            run = child.call("run_plan", path=f"{folder}/results")
            log = server.tell("report")
            child.call("save_table", path=f"{folder}/table.pickle")
        table = pd.read_pickle(f"{folder}/table.pickle")
    good = [
        times(opened, plan, run, log["cpu"] - headers["cpu"]),
        fetched(plan.said, headers, log),
        numbers(table, shape, plan.said, given.against),
    ]
    return 0 if all(good) else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--run", choices=RUNS, default="k2", help="name in the catalogue")
    parser.add_argument("--checkpoints", default="ckpt_159,ckpt_160", help="branches of it")
    parser.add_argument("--against", nargs="+", default=["previous"])
    parser.add_argument("--memory", default="2 GB")
    parser.add_argument("--rate", type=float, default=0.0, help="cap of the link in bytes/s")
    parser.add_argument("--latency", type=float, default=0.0, help="of each request, in seconds")
    parser.add_argument("--folder", help="where results go, for a while")
    parser.add_argument("--env", action="append", metavar="NAME=VALUE", help="for the client")
    return parser.parse_args()


def times(opened: Done, plan: Done, run: Done, server_cpu: float) -> bool:
    """Print how long it took and how much memory; whether it kept to its budget."""
    size, budget = run.said["nbytes"] / 1e9, plan.said["memory"]
    peak = max(opened.peak, plan.peak, run.peak)
    rows = [
        ("checkpoints × parameters", f"{len(plan.said['revisions'])} × "
         f"{plan.said['parameters']:,} in {plan.said['tensors']} tensors"),
        ("opened, planned", f"{opened.seconds:.2f} s, {plan.seconds:.2f} s"),
        ("measured", f"{size:.1f} GB in {run.seconds:.1f} s: {size / run.seconds:.2f} GB/s"),
        ("CPU s/GB, client and server", f"{run.cpu / size:.2f}, {server_cpu / size:.2f}"),
        ("peak private memory above the baseline, seen from outside",
         f"{peak / 1e6:.0f} MB of {budget / 1e6:.0f} MB given; the plan said "
         f"{plan.said['peak'] / 1e6:.0f} MB; while planning {plan.peak / 1e6:.0f} MB"),
    ]  # fmt: skip
    print_rows(rows)
    return peak <= budget and plan.seconds < 10


def fetched(said: dict[str, Any], headers: dict[str, Any], log: dict[str, Any]) -> bool:
    """Compare what the server sent with what is needed; whether each byte came once."""
    asked = sum(size for *_, size in log["ranges"])
    once = covered(log["ranges"])
    whole = asked + log["cut"] + log["listed"] + headers["listed"]
    whole += sum(size for *_, size in headers["ranges"])
    resolves = {
        key: headers["resolves"].get(key, 0) + log["resolves"].get(key, 0)
        for key in headers["resolves"].keys() | log["resolves"].keys()
        if key.endswith(".safetensors")
    }
    most = max(resolves.values())
    overhead = whole / said["needed"] - 1
    sizes = sorted(size for *_, size in log["ranges"])
    rows = [
        ("sent beyond the tensors' bytes (listings, headers, gaps)", f"{overhead:.4%}"),
        ("bytes of the run sent twice", f"{asked - once:,}, broken off {log['cut']:,}"),
        ("range requests", f"{len(sizes):,}, median {np.median(sizes) / 1e6:.1f} MB, at most "
         f"{log['connections']} at once; headers {len(headers['ranges']):,}"),
        ("addresses resolved, per file and revision at most", f"{len(resolves)}, {most}"),
    ]  # fmt: skip
    print_rows(rows)
    return most == 1 and once == asked >= said["needed"] and overhead < 0.01


def covered(ranges: Iterable[tuple[str, str, int, int]]) -> int:
    """Different bytes among the ranges."""
    total, at = 0, ("", "", 0)
    for revision, file, offset, size in sorted(map(tuple, ranges)):
        begin = max(offset, at[2]) if at[:2] == (revision, file) else offset
        total += max(0, offset + size - begin)
        at = (revision, file, max(begin, offset + size))
    return total


def errors(
    table: pd.DataFrame,
    shape: Shape,
    revisions: Mapping[str, str],
    references: Iterable[tuple[str, str, str]],
    content: Content | None = None,
) -> pd.DataFrame:
    """Largest error of each statistic over all tensors, on its natural scale, and where it is.

    A column or row that is missing, or NaN, counts as an infinite error.

    Parameters
    ----------
    table : DataFrame
        Measured.
    shape : Shape
    revisions : mapping of str to str
        Checkpoint to its value in the column `revision`.
    references : iterable of (str, str, str)
        Checkpoint, role, and the checkpoint that it is compared with in that role.

    Returns
    -------
    DataFrame
        Indexed by statistic, with columns ``error`` and ``where``.
    """
    content = content or Content()
    found: dict[str, tuple[float, str]] = {}
    pairs: list[tuple[str, str, str | None]] = [(name, "", None) for name in revisions]
    for name, against, reference in [*pairs, *references]:
        want = statistics_of(content.expected(shape, name, reference))
        mine = table[(table["revision"] == revisions[name]) & (table["state"] == "weight")]
        rows = mine[mine["against"] == against].set_index("name")
        got = rows.reindex(want.index, columns=want.columns)
        for column in [c for c in want if (c in PAIRED) == bool(against)]:
            scale = NATURAL.get(column, column)
            by = want[scale].abs() if isinstance(scale, str) else scale
            off = (got[column] - want[column]).abs()
            off = (off / by).where(off != 0, 0.0).fillna(np.inf)
            here = (float(off.max()), f"{name} {against} {off.idxmax()}")
            found[column] = max(found.get(column, (-1.0, "")), here)
    return pd.DataFrame.from_dict(found, orient="index", columns=["error", "where"])


def numbers(table: pd.DataFrame, shape: Shape, said: dict[str, Any], against: list[str]) -> bool:
    """Print the worst error of each statistic; whether all are right, and compared as asked."""
    from analysis360.table import statistic_columns

    worst = errors(table, shape, said["revisions"], said["references"])
    print_rows((f"worst error of {row.Index}", f"{row.error:.1e}") for row in worst.itertuples())
    wrong = worst[~(worst["error"] <= TOLERANCE)]
    print_rows((f"WRONG: {row.Index}", row.where) for row in wrong.itertuples())
    left = [c for c in statistic_columns(table) if c not in worst.index and table[c].notna().any()]
    print(f"\nmeasured without a closed form: {', '.join(left) or 'nothing'}")
    missing = set(against) - {role for _, role, _ in said["references"]}
    if missing:
        print(f"nothing was compared with: {', '.join(missing)}")
    return wrong.empty and not missing


def print_rows(rows: Iterable[tuple[str, str]]) -> None:
    for name, value in rows:
        print(f"| {name} | {value} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
