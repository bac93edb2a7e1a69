"""Hyper-parameters of the demo run."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["BRANCHES", "DEMO", "TINY", "DemoConfig"]

#: The branches of the run, in the order in which the logs list them.
BRANCHES = ("normal", "spike", "placebo")


@dataclass(frozen=True)
class DemoConfig:
    """Everything that, with a seed, fixes the demo run.

    The data are cut into chunks of `chunk_steps` steps, numbered from 1 in the order in which
    the `spike` branch trains on them. Chunk ``trunk_chunks + 1`` is the odd one.

    Attributes
    ----------
    hidden, layers, heads, ffn : int
        Width, number of layers, attention heads and SwiGLU width of the model.
    context, batch : int
        Bytes per sequence and sequences per step.
    chunk_steps : int
        Steps per chunk; a checkpoint is written after each chunk.
    trunk_chunks, total_chunks : int
        Chunks before the fork, and in all.
    return_chunk : int
        Place (counted from 1) at which a postponed chunk comes back.
    peak_lr : float
        Highest learning rate, reached after `warmup` steps.
    final_fraction : float
        Learning rate at the last step, as a fraction of `peak_lr`.
    warmup : int
        Steps of linear warm-up.
    beta1, beta2, eps, weight_decay, clip : float
        AdamW and gradient clipping. 1-D parameters are not decayed.
    init_std : float
        Standard deviation of the initial weights.
    odd : str
        Text of the odd chunk: one of the keys of `analysis360.demo.text.ODD`.
    dense : tuple of int
        Steps after the fork at which every branch writes an extra checkpoint.
    heldout_every : int
        Steps between two rows of ``logs/heldout.csv``.
    heldout_windows : int
        Windows in the held-out set of ``logs/heldout.csv``.
    bench_windows : int
        Windows in each of the sets from which the benchmarks are measured.
    """

    hidden: int = 48
    layers: int = 6
    heads: int = 3
    ffn: int = 128
    context: int = 128
    batch: int = 8
    chunk_steps: int = 100
    trunk_chunks: int = 8
    total_chunks: int = 16
    return_chunk: int = 15
    peak_lr: float = 3e-2
    final_fraction: float = 0.1
    warmup: int = 100
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0
    init_std: float = 0.02
    odd: str = "base64"
    dense: tuple[int, ...] = (10, 25, 50, 75, 125)
    heldout_every: int = 25
    heldout_windows: int = 48
    bench_windows: int = 64

    def __post_init__(self) -> None:
        if self.hidden % self.heads or (self.hidden // self.heads) % 2:
            raise ValueError("hidden must be a multiple of heads, with an even head width")
        if not 0 < self.trunk_chunks < self.return_chunk <= self.total_chunks:
            raise ValueError("need 0 < trunk_chunks < return_chunk <= total_chunks")
        if self.total_steps <= self.warmup:
            raise ValueError("warmup must be shorter than the run")

    @property
    def total_steps(self) -> int:
        """Steps of one branch from the start to the end."""
        return self.total_chunks * self.chunk_steps

    @property
    def tokens_per_step(self) -> int:
        """Bytes trained on in one step."""
        return self.batch * self.context

    @property
    def fork_step(self) -> int:
        """Step of the checkpoint from which the branches start."""
        return self.trunk_chunks * self.chunk_steps

    @property
    def odd_chunk(self) -> int:
        """Number of the odd chunk."""
        return self.trunk_chunks + 1

    @property
    def final_lr(self) -> float:
        """Learning rate at the last step."""
        return self.peak_lr * self.final_fraction

    def lr(self, step: int) -> float:
        """Learning rate in force at training step `step`, counted from 1.

        Parameters
        ----------
        step : int
            Training step.

        Returns
        -------
        float
            Linear warm-up from 0, then a cosine to `final_lr` at the last step.
        """
        if step <= self.warmup:
            return self.peak_lr * step / self.warmup
        done = (step - self.warmup) / (self.total_steps - self.warmup)
        return self.final_lr + (self.peak_lr - self.final_lr) * 0.5 * (1 + math.cos(math.pi * done))

    def schedule(self, branch: str) -> tuple[int, ...]:
        """Numbers of the chunks a branch trains on, in order.

        Parameters
        ----------
        branch : {"spike", "normal", "placebo"}
            `spike` takes the chunks in their order. `normal` postpones the odd chunk to place
            `return_chunk`. `placebo` does the same with an ordinary chunk: the one after the
            odd chunk is postponed, and a further ordinary chunk stands in for the odd one, on
            which `placebo` never trains.

        Returns
        -------
        tuple of int
            `total_chunks` chunk numbers.
        """
        odd, back = self.odd_chunk, self.return_chunk
        planned = list(range(1, self.total_chunks + 1))
        if branch == "spike":
            return tuple(planned)
        planned.remove(odd)
        if branch == "normal":
            planned.insert(back - 1, odd)
            return tuple(planned)
        if branch == "placebo":
            planned.remove(odd + 1)
            planned.insert(back - 2, self.total_chunks + 1)
            planned.insert(back - 1, odd + 1)
            return tuple(planned)
        raise ValueError(f"no branch {branch!r}; the branches are {', '.join(BRANCHES)}")


#: The shipped configuration.
DEMO = DemoConfig()

#: A configuration that trains in seconds; it need not spike.
TINY = DemoConfig(
    hidden=16,
    layers=2,
    heads=2,
    ffn=32,
    context=32,
    batch=4,
    chunk_steps=10,
    trunk_chunks=2,
    total_chunks=5,
    return_chunk=4,
    peak_lr=1e-2,
    warmup=5,
    dense=(3, 5),
    heldout_every=5,
    heldout_windows=16,
    bench_windows=16,
)
