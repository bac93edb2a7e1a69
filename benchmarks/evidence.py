"""Plant causes in small runs, weigh the evidence, and print which mechanism is said to fit.

    python benchmarks/evidence.py --seeds 3 --folder planted

Trains a trunk and forks of it for each seed: two placebos, null forks, and one fork for each
planted fault; each fork has ordinary data of its own. The log's learning rates are left out, as
they would tell the fault of the rate at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

import analysis360 as a360
from analysis360.demo import DEMO, Moment, train_forks
from analysis360.evidence import EVIDENCE_STATISTICS, evidence_matrix, weigh_evidence
from analysis360.stats import DEFAULT

CONFIG = dataclasses.replace(
    DEMO, hidden=24, layers=2, heads=2, ffn=48, context=64, batch=8, chunk_steps=40,
    trunk_chunks=4, total_chunks=6, return_chunk=5, peak_lr=1e-2, warmup=40,
    dense=(5, 10, 20, 30), heldout_every=40, heldout_windows=4, bench_windows=4,
)  # fmt: skip
PLACEBOS = {"pa": (8, 9), "pb": (10, 11)}
NULLS = {"na": (12, 13), "nb": (14, 15)}


@torch.no_grad()
def grow_logits(now: Moment) -> None:
    """M3: queries and keys of the first layer grow by 3 % a step, for 40 steps."""
    if now.since <= 40:
        attention = now.model.model.layers[0].self_attn
        for weight in (attention.q_proj.weight, attention.k_proj.weight):
            weight.mul_(1.03)


@torch.no_grad()
def drift_head(now: Moment) -> None:
    """M4: all rows of the head move along one direction, by 0.005 an element and step."""
    weight = now.model.lm_head.weight
    sign = torch.ones(weight.shape[1])
    sign[::2] = -1
    weight.add_(0.005 * sign)


def small_embedding(now: Moment) -> None:
    """M5: the embedding shrinks by 5 % a step, which makes its gradients grow as much."""
    with torch.no_grad():
        now.model.model.embed_tokens.weight.mul_(0.95)


def bad_batch(now: Moment) -> None:
    """M7: for ten steps every window repeats three bytes that text seldom has."""
    if 6 <= now.since <= 15:
        three = torch.tensor([7, 1, 14]).repeat(now.windows.shape[1] // 3 + 1)
        now.windows = three[: now.windows.shape[1]].expand(now.windows.shape).clone()


def high_rate(now: Moment) -> None:
    """M8: four times the learning rate of the schedule."""
    now.lr *= 4


def flipped_bit(now: Moment) -> None:
    """M10: one element of a matrix is 8, once."""
    if now.since == 8:
        with torch.no_grad():
            now.model.model.layers[1].mlp.down_proj.weight.view(-1)[101] = 8.0


FAULTS: dict[str, Callable[[Moment], None]] = {
    "m3": grow_logits, "m4": drift_head, "m5": small_embedding, "m7": bad_batch, "m8": high_rate,
    "m10": flipped_bit,
}  # fmt: skip


def weigh(folder: Path, seed: int) -> pd.DataFrame:
    """Train, measure and weigh one run; one row per fork and mechanism, with the verdict."""
    planted = {name: (16 + 2 * i, 17 + 2 * i) for i, name in enumerate(FAULTS)}
    start = time.process_time()
    train_forks(folder, CONFIG, PLACEBOS | NULLS | planted, seed=seed, faults=FAULTS,
                progress=False)  # fmt: skip
    trained = time.process_time() - start
    run = a360.open_run(folder)
    made = a360.plan(
        run, (*DEFAULT, *EVIDENCE_STATISTICS), against=("previous", "partner", "ancestor")
    )
    measured = folder / "measured"
    made.run(measured, progress=False)
    table = a360.load_table(measured)
    vectors = a360.load_table(measured, kind="vectors")
    loss = a360.read_loss(run).drop(columns="lr")
    rows = []
    for name in (*NULLS, *FAULTS):
        for known, states in (("moments", table), ("weights", table[table["state"] == "weight"])):
            evidence = weigh_evidence(states, name, placebos=list(PLACEBOS), loss=loss,
                                      vectors=vectors if known == "moments" else None)  # fmt: skip
            matrix = evidence_matrix(evidence)
            fork = "null" if name in NULLS else name.upper()
            rows.append(matrix.assign(planted=fork, fork=name, known=known, seed=seed))
            evidence.to_csv(folder / f"evidence_{name}_{known}.csv", index=False)
    peak = loss[loss["step"] > CONFIG.fork_step].groupby("branch")["loss"].max()
    print(f"seed {seed}: training {trained:.0f} CPU-s, all {time.process_time() - start:.0f} CPU-s")
    print("highest loss after the fork:", peak.round(2).to_dict(), flush=True)
    return pd.concat(rows)


def confusion(found: pd.DataFrame) -> str:
    """Planted cause × mechanism: how many forks have which verdict, as text."""
    short = {"for": "F", "against": "a", "inconclusive": "i", "untestable": "u"}
    order = list(dict.fromkeys(found["mechanism"]))
    lines = ["| planted | forks | " + " | ".join(order) + " |", "|---" * (len(order) + 2) + "|"]
    for planted, mine in found.groupby("planted", sort=False):
        forks = len(mine[["seed", "fork"]].drop_duplicates())
        cells = []
        for code in order:
            counts = Counter(mine.loc[mine["mechanism"] == code, "verdict"])
            cells.append(" ".join(f"{counts[v]}{s}" for v, s in short.items() if counts[v]))
        lines.append(f"| {planted} | {forks} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--folder", type=Path, help="kept; by default a temporary one")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as aside:
        root = given.folder or Path(aside)
        seeds = range(given.first, given.first + given.seeds)
        found = pd.concat([weigh(root / f"seed_{seed}", seed) for seed in seeds])
    for known in ("moments", "weights"):
        print(f"\nWith {'weights and moments' if known == 'moments' else 'weights alone'}:\n")
        print(confusion(found[found["known"] == known]))


if __name__ == "__main__":
    main()
