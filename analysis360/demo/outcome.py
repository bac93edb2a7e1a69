"""What came of a demo run."""

from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

__all__ = ["demo_outcome"]

#: Nats per byte above the baseline at which the loss counts as a spike, and as still up.
SPIKE = 1.0
UP = 0.1


def demo_outcome(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Summarise a finished demo run from its logs and checkpoints.

    Parameters
    ----------
    folder : path
        Folder of the run.

    Returns
    -------
    dict
        Losses are on held-out ordinary text, in nats per byte; `baseline` is the loss at the
        fork. "Matched" means between the fork and the return of the postponed chunk. A distance
        is the norm of the difference of two branches' fp32 weights over the norm of the
        weights of `normal`. A run spiked if the loss rose by 1 nat or more above the baseline
        and was 0.1 or more above it at the first two chunk ends after the fork.
    """
    root = Path(folder)
    config = json.loads((root / "demo.json").read_text(encoding="utf-8"))["config"]
    chunk, total = config["chunk_steps"], config["total_chunks"]
    fork, back = config["trunk_chunks"], config["return_chunk"] - 1
    losses: dict[str, dict[int, float]] = {}
    with (root / "logs" / "heldout.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            losses.setdefault(row["branch"], {})[int(row["step"])] = float(row["loss"])
    baseline = losses["normal"][fork * chunk]

    def highest(branch: str, first: int, last: int) -> tuple[float, int]:
        found = losses[branch].items()
        return max((loss, step) for step, loss in found if first < step <= last)

    peak, peak_step = highest("spike", fork * chunk, back * chunk)
    ends = [losses["spike"][number * chunk] - baseline for number in range(fork + 1, total + 1)]
    up = next((place for place, rise in enumerate(ends) if rise < UP), len(ends))
    back_step = next(
        (
            step
            for step, loss in sorted(losses["spike"].items())
            if step > peak_step and loss <= baseline
        ),
        None,
    )
    spiked = peak - baseline >= SPIKE and up >= 2

    def distance(one: str, two: str, number: int) -> float:
        first, second = (
            load_file(root / "checkpoints" / f"{name}_ckpt_{number:03d}" / "optimizer.safetensors")
            for name in (one, two)
        )
        names = [name for name in first if name.endswith(".master")]
        apart = sum(float(torch.sum((first[n] - second[n]).double() ** 2)) for n in names)
        size = sum(float(torch.sum(second[n].double() ** 2)) for n in names)
        return math.sqrt(apart / size)

    normal_rise = highest("normal", fork * chunk, back * chunk)[0] - baseline
    excess = [
        losses["spike"][number * chunk] - losses["normal"][number * chunk]
        for number in range(fork + 1, back + 1)
    ]
    text = (
        f"The held-out loss rose by {peak - baseline:.2f} nats per byte over its value at the "
        f"fork, and was up by {UP} or more at {up} chunk ends in a row; in the restarted branch it "
        f"rose by {max(normal_rise, 0):.2f} at matched tokens. "
    )
    if spiked:
        text += "This run spiked."
    else:
        text += f"This run did not spike: that takes a rise of {SPIKE} and 2 chunk ends."
    return {
        "summary": text,
        "spiked": spiked,
        "baseline": baseline,
        "peak": peak,
        "peak_step": peak_step,
        "rise": peak - baseline,
        "rise_at_chunk_ends": ends,
        "excess_over_normal_at_chunk_ends": excess,
        "chunk_ends_up": up,
        "below_baseline_step": back_step,
        "normal_rise_matched": normal_rise,
        "placebo_rise_matched": highest("placebo", fork * chunk, back * chunk)[0] - baseline,
        "normal_rise_on_return": highest("normal", back * chunk, total * chunk)[0]
        - losses["normal"][back * chunk],
        "placebo_rise_on_return": highest("placebo", back * chunk, total * chunk)[0]
        - losses["placebo"][back * chunk],
        "last_loss": {name: found[total * chunk] for name, found in losses.items()},
        "distance_matched": {name: distance(name, "normal", back) for name in ("spike", "placebo")},
        "distance_last": {name: distance(name, "normal", total) for name in ("spike", "placebo")},
    }
