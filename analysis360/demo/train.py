"""Train the demo run."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tqdm import tqdm

from analysis360.demo.catalogue import catalogue
from analysis360.demo.config import BRANCHES, DEMO, DemoConfig
from analysis360.demo.loop import Course, claim, replace, train_course
from analysis360.demo.outcome import demo_outcome
from analysis360.demo.text import load_corpus

__all__ = ["train_demo"]


def train_demo(
    folder: str | os.PathLike[str],
    config: DemoConfig = DEMO,
    *,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Train a small model through a loss spike, and again without it.

    A folder in which a run was cut short is continued from its last complete checkpoints, with
    the same result; one that holds a finished run is left as it is.

    Parameters
    ----------
    folder : path
        Where the run is written. Made if it is not there.
    config : DemoConfig
        Hyper-parameters.
    seed : int
        Seed of the initial weights and of the order of the data.
    progress : bool
        Whether to show a progress bar over the steps of all branches.

    Returns
    -------
    Path
        `folder`.

    Raises
    ------
    ValueError
        If `folder` holds a run with another configuration, seed or text.
    RuntimeError
        If this Python comes with too little source text, or if a loss is not finite.
    """
    root = Path(folder)
    corpus = load_corpus(config)
    claim(root, config, seed, corpus)
    if (root / "outcome.json").exists():
        return root
    replace(
        root / "analysis360.toml",
        catalogue(
            config,
            [branch for branch in BRANCHES if branch != "normal"],
            _events(config),
            title="analysis360 demo: a byte-level Llama that meets an odd chunk",
        ),
    )
    steps = config.total_steps + 2 * (config.total_steps - config.fork_step)
    bar = tqdm(total=steps, unit="step", desc="demo run", disable=not progress)
    course = Course({branch: config.schedule(branch) for branch in BRANCHES})
    train_course(root, config, seed, corpus, course, bar)
    replace(root / "outcome.json", json.dumps(demo_outcome(root), indent=2) + "\n")
    return root


def _events(config: DemoConfig) -> list[tuple[str, int, str]]:
    back = (config.return_chunk - 1) * config.chunk_steps + 1
    first = config.fork_step + 1
    return [
        ("spike", first, "odd chunk begins"),
        ("spike", first + config.chunk_steps, "odd chunk ends"),
        ("normal", back, "postponed odd chunk begins"),
        ("placebo", back, "postponed ordinary chunk begins"),
    ]
