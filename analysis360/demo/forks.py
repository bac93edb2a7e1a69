"""A small run with any number of forks, each with its own data and, if asked, a planted cause."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from analysis360.demo.catalogue import catalogue
from analysis360.demo.config import DemoConfig
from analysis360.demo.loop import Course, Fault, claim, replace, train_course
from analysis360.demo.text import load_corpus

__all__ = ["train_forks"]


def train_forks(
    folder: str | os.PathLike[str],
    config: DemoConfig,
    forks: Mapping[str, Sequence[int]],
    *,
    seed: int = 0,
    faults: Mapping[str, Fault] | None = None,
    progress: bool = True,
) -> Path:
    """Train a trunk and forks of it that differ in their data, or in a fault planted in one.

    Forks that hold ordinary chunks in other orders are placebos: what sets them apart is what
    the order of the data does. The trunk ``normal`` goes on over the chunks as they are
    numbered, without the odd one. Every branch starts from the trunk's last checkpoint, its
    moments included, and writes checkpoints at its chunk ends and at `config.dense`.

    A folder in which a run was cut short is continued from its last complete checkpoints, with
    the same result if the faults look at nothing but the moment they are given.

    Parameters
    ----------
    folder : path
        Where the run is written. Made if it is not there.
    config : DemoConfig
        Hyper-parameters. `config.odd_chunk` numbers the chunk of odd text; every other number
        from ``trunk_chunks + 1`` on is a chunk of ordinary text, each another one.
    forks : dict of str to sequence of int
        Name of each fork, and the numbers of its chunks after the trunk; at most
        ``total_chunks - trunk_chunks`` of them.
    seed : int
        Seed of the initial weights and of the order of the data.
    faults : dict of str to callable, optional
        By fork (or ``"normal"``): called with a `Moment` before each step after the fork, which
        it may change.
    progress : bool
        Whether to show a progress bar over the steps of all branches.

    Returns
    -------
    Path
        `folder`.

    Raises
    ------
    ValueError
        If a name is not lower-case letters and digits, if chunks are too many, or of the trunk,
        if a fault is for a branch that is not there, or if `folder` holds something else.
    RuntimeError
        If this Python comes with too little source text, or if a loss is not finite.
    """
    faults = dict(faults or {})
    later = [n for n in range(config.trunk_chunks + 1, config.total_chunks + 2)]
    later.remove(config.odd_chunk)
    after = {"normal": tuple(later), **{name: tuple(chunks) for name, chunks in forks.items()}}
    _check(config, after, forks, faults)
    root = Path(folder)
    # The text has to reach to the last chunk that any fork asks for.
    last = max(max(chunks) for chunks in after.values())
    corpus = load_corpus(config, chunks=last)
    more = {"forks": {n: list(c) for n, c in forks.items()}, "faults": sorted(faults)}
    claim(root, config, seed, corpus, more)
    title = "analysis360 demo: forks of one trunk"
    replace(root / "analysis360.toml", catalogue(config, forks, title=title))
    trunk = tuple(range(1, config.trunk_chunks + 1))
    course = Course({name: trunk + chunks for name, chunks in after.items()}, faults)
    steps = (config.trunk_chunks + sum(map(len, after.values()))) * config.chunk_steps
    bar = tqdm(total=steps, unit="step", desc="demo forks", disable=not progress)
    train_course(root, config, seed, corpus, course, bar)
    return root


def _check(
    config: DemoConfig,
    after: Mapping[str, tuple[int, ...]],
    forks: Mapping[str, object],
    faults: Mapping[str, Fault],
) -> None:
    room = config.total_chunks - config.trunk_chunks
    for name, chunks in after.items():
        if not re.fullmatch("[a-z0-9]+", name) or "normal" in forks:
            raise ValueError(
                f"{name!r} cannot name a fork: names are lower-case letters and digits, and "
                "'normal' is the trunk"
            )
        if not 1 <= len(chunks) <= room or min(chunks) <= config.trunk_chunks:
            raise ValueError(
                f"fork {name!r} trains on chunks {list(chunks)}; allowed are 1 to {room} chunks "
                f"with numbers from {config.trunk_chunks + 1}"
            )
    stray = sorted(set(faults) - set(after))
    if stray:
        raise ValueError(f"faults for {', '.join(stray)}; the branches are {', '.join(after)}")
