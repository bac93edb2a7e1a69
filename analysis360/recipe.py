"""How a run was trained, as numbers: Adam's hyper-parameters, the batch, the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from analysis360.errors import FormatError

__all__ = ["Adam", "Batch", "LearningRate"]


@dataclass(frozen=True, slots=True)
class Adam:
    """Hyper-parameters of Adam or AdamW; None where the run does not tell.

    `weight_decay` is that of the tensors with at least `decay_from` dimensions. Where that is not
    told it is 2: one-dimensional tensors are taken as not decayed, as in Megatron, GPT-NeoX and the
    demo. An optimizer with one group of parameters tells 0: all decay.
    """

    beta1: float | None = None
    beta2: float | None = None
    eps: float | None = None
    weight_decay: float | None = None
    clip: float | None = None
    lr: float | None = None
    decay_from: int | None = None

    def decays(self, ndim: int) -> bool:
        """Whether tensors of so many dimensions decay.

        Examples
        --------
        >>> Adam(weight_decay=0.1).decays(1), Adam(weight_decay=0.1, decay_from=0).decays(1)
        (False, True)
        """
        return ndim >= (2 if self.decay_from is None else self.decay_from)

    def filled(self, other: Adam | None) -> Adam:
        """Take from `other` what is None here."""
        if other is None:
            return self
        mine = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Adam(**{k: getattr(other, k) if v is None else v for k, v in mine.items()})


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences a step that rise from `start` to `stop` while the first `samples` are seen.

    They rise by `by` whenever another equal share of the samples was seen, as in Megatron.

    Attributes
    ----------
    start, stop, by : int
        Sequences.
    samples : int
        Sequences seen when `stop` is reached.
    length : int
        Tokens of a sequence.

    Raises
    ------
    FormatError
        If `stop` is not reached from `start`.

    Examples
    --------
    >>> lucie = Batch(start=256, stop=1024, by=64, samples=10_000_000, length=4096)
    >>> lucie.seen(753_851)  # the model card says 762,144,586
    762144064
    """

    start: int
    stop: int
    by: int
    samples: int
    length: int

    def __post_init__(self) -> None:
        if self.stop <= self.start or (self.stop - self.start) % self.by:
            raise FormatError(f"a batch of {self.start} does not rise to {self.stop} by {self.by}")

    def seen(self, step: int) -> int:
        """Sequences seen after a number of steps."""
        return int(self.counts(np.asarray([step], dtype=np.float64))[0])

    def tokens(self, step: int) -> int:
        """Tokens seen after a number of steps."""
        return self.seen(step) * self.length

    def counts(self, steps: np.ndarray) -> np.ndarray:
        """Sequences seen after each of several numbers of steps."""
        sizes = np.arange(self.start, self.stop + self.by, self.by, dtype=np.float64)
        share = self.samples / (len(sizes) - 1)
        began, seen = [0], [0]  # of each size: steps and sequences before it
        for stage, size in enumerate(range(self.start, self.stop, self.by), start=1):
            done = max(0, math.ceil((stage * share - seen[-1]) / size))
            began.append(began[-1] + done)
            seen.append(seen[-1] + done * size)
        now = np.searchsorted(began, steps, side="right") - 1
        found: np.ndarray = np.asarray(seen)[now] + (steps - np.asarray(began)[now]) * sizes[now]
        return found


@dataclass(frozen=True, slots=True)
class LearningRate:
    """Linear warm-up from zero to `peak`, then a way down to `final`, reached at step `total`.

    Training step ``s`` (the first is 1) runs at ``at(s)``.

    Attributes
    ----------
    peak, final : float
    warmup, total : int
        Steps. After `total` the rate stays at `final`.
    kind : {"cosine", "linear", "constant"}
        The way down; a constant one stays at `peak`, whatever `final` says.
    floor : float
        After the warm-up the rate is never less. So trainers are described whose cosine goes to
        zero, but is cut off where it reaches a least rate.
    batch : Batch or None
        Where it was a function of sequences seen, and their number a step rose: `warmup` and
        `total` are then sequences.

    Raises
    ------
    FormatError
        If there is no such kind.

    Examples
    --------
    >>> k2 = LearningRate(peak=1.5e-4, final=1.5e-5, warmup=2000, total=338760)
    >>> f"{k2.at(150560):.3e}", f"{k2.sum(150560 - 941, 150560):.3e}"
    ('9.491e-05', '8.958e-02')
    >>> LearningRate(peak=1.0, final=0.0, warmup=0, total=100, kind="linear", floor=0.1).at(95)
    0.1
    """

    peak: float
    final: float
    warmup: int
    total: int
    kind: str = "cosine"
    floor: float = 0.0
    batch: Batch | None = None

    def __post_init__(self) -> None:
        if self.kind not in _WAYS_DOWN:
            known = ", ".join(_WAYS_DOWN)
            raise FormatError(f"learning rate of kind {self.kind!r}; allowed: {known}")

    def at(self, step: float) -> float:
        """Learning rate in force at training step `step`."""
        return float(self._values(np.asarray([step], dtype=np.float64))[0])

    def sum(self, start: int, stop: int) -> float:
        """Sum of the learning rate over the steps ``start + 1 … stop``."""
        if stop < start:
            return math.nan
        return float(self._values(np.arange(start + 1, stop + 1, dtype=np.float64)).sum())

    def between(
        self, start: int, stop: int, weight_decay: float = math.nan
    ) -> tuple[float, float, float]:
        """Of the steps ``start + 1 … stop``: sum of the rate, of its square, and what decay leaves.

        Parameters
        ----------
        start, stop : int
        weight_decay : float
            Decoupled, as AdamW's: each step leaves 1 − rate · weight_decay of a weight.

        Returns
        -------
        tuple of float
            NaN where `stop` is before `start`; the last where the decay is not known.

        Examples
        --------
        >>> k2 = LearningRate(peak=1.5e-4, final=1.5e-5, warmup=2000, total=338760)
        >>> rate, square, left = k2.between(150560 - 941, 150560, weight_decay=0.1)
        >>> f"{rate:.3e}", f"{rate**2 / square:.1f}", f"{left:.5f}"
        ('8.958e-02', '941.0', '0.99108')
        """
        if stop < start:
            return math.nan, math.nan, math.nan
        rates = self._values(np.arange(start + 1, stop + 1, dtype=np.float64))
        left = float(np.exp(np.log1p(-rates * weight_decay).sum()))
        return float(rates.sum()), float((rates**2).sum()), left

    def _values(self, step: np.ndarray) -> np.ndarray:
        at = step if self.batch is None else self.batch.counts(step)
        rising = self.peak * at / max(self.warmup, 1)
        done = np.clip((at - self.warmup) / max(self.total - self.warmup, 1), 0.0, 1.0)
        falling = self.final + (self.peak - self.final) * _WAYS_DOWN[self.kind](done)
        return np.where(at < self.warmup, rising, np.maximum(falling, self.floor))


_WAYS_DOWN: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "cosine": lambda done: 0.5 * (1.0 + np.cos(np.pi * done)),
    "linear": lambda done: 1.0 - done,
    "constant": np.ones_like,
}
"""Kinds of learning rate: share of the way from `final` to `peak` that is left when a share of the
steps after the warm-up is done."""
