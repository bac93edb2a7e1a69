"""Branches trained from one trunk, resumable, with their logs and checkpoints."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from analysis360.demo.config import DemoConfig
from analysis360.demo.files import load_checkpoint, make_optimizer, save_checkpoint, write_folder
from analysis360.demo.measures import Measures
from analysis360.demo.model import Llama
from analysis360.demo.text import Corpus, batch_windows

__all__ = ["Course", "Fault", "Moment", "claim", "replace", "train_course"]

_COLUMNS = {
    "train": "branch,step,tokens,loss,grad_norm,lr,chunk",
    "heldout": "branch,step,tokens,loss,stderr,n",
}


@dataclass
class Moment:
    """What a fault may look at and change just before a training step.

    Attributes
    ----------
    step : int
        The step about to be taken, counted from 1 at the start of the trunk.
    since : int
        Steps since the fork, counted from 1.
    model : Llama
        The model.
    optimizer : torch.optim.AdamW
        The optimizer; the learning rate is set from `lr` after the fault.
    windows : Tensor of int64, shape (batch, context + 1)
        The batch; may be replaced by another of the same kind.
    lr : float
        Learning rate of the step.
    clip : float
        Largest norm of the gradient; ``inf`` for no clipping.
    """

    step: int
    since: int
    model: Llama
    optimizer: torch.optim.AdamW
    windows: torch.Tensor
    lr: float
    clip: float


#: A planted cause, called before each step of its branch after the fork.
Fault = Callable[[Moment], None]


@dataclass(frozen=True)
class Course:
    """What the branches of a run train on.

    Attributes
    ----------
    schedules : dict of str to tuple of int
        For each branch, the trunk ``normal`` first, the numbers of its chunks from the start.
    faults : dict of str to callable
        Planted causes, by branch.
    """

    schedules: Mapping[str, tuple[int, ...]]
    faults: Mapping[str, Fault] = field(default_factory=dict)


def train_course(
    root: Path, config: DemoConfig, seed: int, corpus: Corpus, course: Course, bar: tqdm[Any]
) -> None:
    """Train the trunk, then every branch; what is there already is not trained again.

    Parameters
    ----------
    root : Path
        Folder of the run.
    config : DemoConfig
        Hyper-parameters.
    seed : int
        Seed of the initial weights and of the order of the data.
    corpus : Corpus
        The texts.
    course : Course
        What the branches train on.
    bar : tqdm
        Progress over the steps of all branches.
    """
    threads = torch.get_num_threads()
    # One thread a branch: the numbers then do not depend on how many cores there are.
    torch.set_num_threads(1)
    try:
        run = _Run(root, config, seed, corpus, course, bar)
        run.resume()
        run.train("normal", config.trunk_chunks)
        # More threads than these would hold models in memory and gain nothing.
        workers = min(len(course.schedules), max(3, os.cpu_count() or 1))
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            jobs = [
                pool.submit(run.train, name, len(chunks))
                for name, chunks in course.schedules.items()
            ]
            try:
                for job in jobs:
                    job.result()
            except BaseException:
                run.stop.set()
                raise
    finally:
        bar.close()
        torch.set_num_threads(threads)


class _Run:
    """What the branches of a run share."""

    def __init__(
        self,
        root: Path,
        config: DemoConfig,
        seed: int,
        corpus: Corpus,
        course: Course,
        bar: tqdm[Any],
    ) -> None:
        self.root = root
        self.config = config
        self.seed = seed
        self.corpus = corpus
        self.course = course
        self.bar = bar
        self.measures = Measures(corpus, config)
        self.logs = _Logs(root / "logs", course.schedules)
        self.lock = threading.Lock()
        self.stop = threading.Event()

    def resume(self) -> None:
        """Drop what is logged after the last chunk-end checkpoint of each branch."""
        for branch in self.course.schedules:
            done = self.done(branch)
            self.logs.cut(branch, done * self.config.chunk_steps)
            self.bar.update((done - self.first(branch)) * self.config.chunk_steps)

    def first(self, branch: str) -> int:
        return 0 if branch == "normal" else self.config.trunk_chunks

    def done(self, branch: str) -> int:
        """Return the number of the last chunk-end checkpoint of a branch, or of its start."""
        numbers = range(self.first(branch) + 1, len(self.course.schedules[branch]) + 1)
        there = (number for number in numbers if self.folder(branch, number).is_dir())
        return max(there, default=self.first(branch))

    def train(self, branch: str, last: int) -> None:
        """Train a branch from its last chunk-end checkpoint to the end of chunk `last`."""
        config = self.config
        done = self.done(branch)
        if done >= last:
            return
        source = self.folder("normal" if done == self.first(branch) else branch, done)
        if source.is_dir():
            model, optimizer = load_checkpoint(source, config)
        else:
            model = Llama(config, self.seed)
            optimizer = make_optimizer(model, config)
            self.logs.cut(branch, -1)
            self.heldout(branch, 0, model)
            self.checkpoint(branch, 0, model, optimizer)
        for place in range(done, last):
            chunk = self.course.schedules[branch][place]
            windows = torch.from_numpy(batch_windows(self.corpus, config, self.seed, chunk))
            for offset in range(config.chunk_steps):
                if self.stop.is_set():
                    return
                step = place * config.chunk_steps + offset + 1
                self.step(branch, step, chunk, windows[offset], model, optimizer)
                if step % config.heldout_every == 0:
                    self.heldout(branch, step, model)
                if step % config.chunk_steps == 0 or step - config.fork_step in config.dense:
                    self.checkpoint(branch, step, model, optimizer)

    def step(
        self,
        branch: str,
        step: int,
        chunk: int,
        windows: torch.Tensor,
        model: Llama,
        optimizer: torch.optim.AdamW,
    ) -> None:
        """Take one training step and log it."""
        config = self.config
        now = Moment(
            step, step - config.fork_step, model, optimizer, windows, config.lr(step), config.clip
        )
        fault = self.course.faults.get(branch)
        if fault is not None and now.since > 0:
            fault(now)
        lr, windows = now.lr, now.windows
        for group in optimizer.param_groups:
            group["lr"] = lr
        logits = model(windows[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        norm = nn.utils.clip_grad_norm_(model.parameters(), now.clip)
        optimizer.step()
        value, size = loss.item(), norm.item()
        if value != value or size != size:
            raise RuntimeError(
                f"the loss of branch {branch!r} is not finite at step {step}: on this machine "
                "the learning rate is past the edge of divergence; lower DemoConfig.peak_lr"
            )
        tokens = step * config.tokens_per_step
        self.logs.add("train", branch, step, f"{tokens},{value!r},{size!r},{lr!r},{chunk}")
        with self.lock:
            self.bar.update()

    def folder(self, branch: str, number: int) -> Path:
        return self.root / "checkpoints" / f"{branch}_ckpt_{number:03d}"

    def heldout(self, branch: str, step: int, model: Llama) -> None:
        loss, stderr, n = self.measures.heldout(model)
        tokens = step * self.config.tokens_per_step
        self.logs.add("heldout", branch, step, f"{tokens},{loss!r},{stderr!r},{n}")

    def checkpoint(
        self, branch: str, step: int, model: Llama, optimizer: torch.optim.AdamW
    ) -> None:
        """Write a checkpoint, after all that is logged up to it."""
        number, rest = divmod(step, self.config.chunk_steps)
        target = self.folder(branch, number)
        if rest:
            target = target.with_name(f"{branch}_step_{step:06d}")
        result = self.measures.benchmarks(model, target.name)

        def write(folder: Path) -> None:
            text = json.dumps(result, indent=2) + "\n"
            (folder / "results_demo.json").write_text(text, encoding="utf-8")

        write_folder(self.root / "benchmarks" / target.name, write)
        self.logs.flush()
        save_checkpoint(target, model, optimizer, self.config)


class _Logs:
    """Rows of ``train.csv`` and ``heldout.csv``, kept in memory and written whole."""

    def __init__(self, folder: Path, branches: Mapping[str, object]) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._rows: dict[str, dict[str, list[tuple[int, str]]]] = {}
        for kind in _COLUMNS:
            rows = self._rows[kind] = {branch: [] for branch in branches}
            path = folder / f"{kind}.csv"
            if path.exists():
                for line in path.read_text(encoding="utf-8").splitlines()[1:]:
                    branch, step, rest = line.split(",", 2)
                    rows[branch].append((int(step), rest))

    def add(self, kind: str, branch: str, step: int, rest: str) -> None:
        with self._lock:
            self._rows[kind][branch].append((step, rest))

    def cut(self, branch: str, step: int) -> None:
        """Drop the rows of a branch after a step."""
        with self._lock:
            for rows in self._rows.values():
                rows[branch] = [row for row in rows[branch] if row[0] <= step]

    def flush(self) -> None:
        with self._lock:
            self._folder.mkdir(parents=True, exist_ok=True)
            for kind, header in _COLUMNS.items():
                lines = [header]
                for branch, rows in self._rows[kind].items():
                    lines += [f"{branch},{step},{rest}" for step, rest in rows]
                replace(self._folder / f"{kind}.csv", "\n".join(lines) + "\n")


def replace(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def claim(
    root: Path,
    config: DemoConfig,
    seed: int,
    corpus: Corpus,
    more: Mapping[str, object] | None = None,
) -> None:
    """Write down what the folder holds, or check it against what it should."""
    path = root / "demo.json"
    mine = {"seed": seed, "text": corpus.fingerprint, "config": asdict(config), **(more or {})}
    mine = json.loads(json.dumps(mine))
    if path.exists():
        theirs = json.loads(path.read_text(encoding="utf-8"))
        wrong = [key for key in mine if theirs.get(key) != mine[key]]
        if wrong:
            raise ValueError(
                f"{root} holds a demo run with another {' and '.join(wrong)}; "
                "choose another folder, or delete this one"
            )
    elif root.exists() and any(root.iterdir()):
        raise ValueError(f"{root} is not empty and holds no demo run; choose another folder")
    else:
        root.mkdir(parents=True, exist_ok=True)
        replace(path, json.dumps(mine, indent=2) + "\n")
