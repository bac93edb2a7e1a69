"""Held-out measures of a checkpoint."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from analysis360.demo.config import DemoConfig
from analysis360.demo.text import END, Corpus, docstrings

__all__ = ["Measures"]

#: Bytes of a window whose prediction is not scored: they have too little context.
_LEAD = 32

_TASKS = {
    "demo_brackets": "which of ) ] } closes, wherever held-out code closes one (chance 1/3)",
    "demo_code": "next byte of held-out code",
    "demo_digits": "which digit comes, wherever held-out code has two in a row (chance 1/10)",
    "demo_docstrings": "next byte of held-out docstrings",
}


class Measures:
    """Fixed held-out texts, and the measures taken on them.

    The texts depend on the configuration and on the standard library, not on the seed. A file
    gives at most one window to a set, so that windows are about as independent as files are.

    Parameters
    ----------
    corpus : Corpus
        The texts.
    config : DemoConfig
        The configuration.
    """

    def __init__(self, corpus: Corpus, config: DemoConfig) -> None:
        self._config = config
        size = config.context + 1
        files = [text for text in corpus.held.values() if len(text) >= 2 * size]
        files = files[: max(config.heldout_windows, config.bench_windows)]
        # Windows from the middle of the files: their heads are licences and imports.
        self._small = _stack((text[len(text) // 2 :] for text in files), size)[
            : config.heldout_windows
        ]
        self._code = _stack((text[len(text) // 3 :] for text in files), size)
        docs = (max(docstrings(text), key=len, default=b"") for text in files)
        self._docs = _stack((doc for doc in docs if len(doc) >= size), size)
        self._digits = _stack((_densest(text, rb"[0-9](?=[0-9])", size) for text in files), size)
        self._brackets = _stack((_densest(text, rb"[)\]}]", size) for text in files), size)
        limit = config.bench_windows
        self._code, self._docs = self._code[:limit], self._docs[:limit]
        self._digits, self._brackets = self._digits[:limit], self._brackets[:limit]

    def heldout(self, model: Callable[[Tensor], Tensor]) -> tuple[float, float, int]:
        """Loss on the small set of ordinary text.

        Parameters
        ----------
        model : callable
            Maps token ids to logits.

        Returns
        -------
        loss, stderr : float
            Mean over windows of the loss in nats per byte, and its standard error.
        n : int
            Number of windows.
        """
        logits = _logits(model, self._small)
        loss = _losses(logits, self._small).mean(1).double()
        n = len(loss)
        return float(loss.mean()), float(loss.std()) / math.sqrt(n), n

    def benchmarks(self, model: Callable[[Tensor], Tensor], name: str) -> dict[str, Any]:
        """Measures in the result format of lm-evaluation-harness.

        Parameters
        ----------
        model : callable
            Maps token ids to logits.
        name : str
            Name of the checkpoint.

        Returns
        -------
        dict
            Ready for JSON. Standard errors take windows, not bytes, as independent.
        """
        code, docs = _logits(model, self._code), _logits(model, self._docs)
        scored: dict[str, tuple[Tensor, Tensor]] = {
            "demo_code": _right(code, self._code),
            "demo_docstrings": _right(docs, self._docs),
        }
        for task, windows, signs in (
            ("demo_digits", self._digits, b"0123456789"),
            ("demo_brackets", self._brackets, b")]}"),
        ):
            scored[task] = _choice(_logits(model, windows), windows, signs)

        results: dict[str, dict[str, Any]] = {}
        counts: dict[str, int] = {}
        for task in _TASKS:
            mean, stderr, n = _cluster(*scored[task])
            results[task] = {"alias": task, "acc,none": mean, "acc_stderr,none": stderr}
            counts[task] = n
        nats = _losses(code, self._code)[:, _lead(self._config.context) :].mean(1).double()
        bits = nats / math.log(2)
        results["demo_code"]["bits_per_byte,none"] = float(bits.mean())
        results["demo_code"]["bits_per_byte_stderr,none"] = float(bits.std()) / math.sqrt(len(bits))
        better: dict[str, dict[str, bool]] = {task: {"acc": True} for task in _TASKS}
        better["demo_code"]["bits_per_byte"] = False
        return {
            "results": results,
            "configs": {
                task: {
                    "task": task,
                    "description": text,
                    "num_fewshot": 0,
                    "metadata": {"version": 1.0},
                }
                for task, text in _TASKS.items()
            },
            "versions": dict.fromkeys(_TASKS, 1.0),
            "n-shot": dict.fromkeys(_TASKS, 0),
            "higher_is_better": better,
            "n-samples": {task: {"original": n, "effective": n} for task, n in counts.items()},
            "config": {"model": "analysis360.demo", "model_args": f"pretrained={name}"},
        }


def _stack(texts: Iterable[bytes], size: int) -> Tensor:
    rows = [np.frombuffer(text[:size], np.uint8) for text in texts if len(text) >= size]
    table: npt.NDArray[Any] = np.array(rows, np.int64).reshape(-1, size)
    return torch.from_numpy(table)


def _densest(text: bytes, pattern: bytes, size: int) -> bytes:
    """Return the window of `text`, on a grid of half windows, with most matches."""
    spots = np.zeros(len(text) + 1, np.int64)
    spots[[match.start() + 1 for match in re.finditer(pattern, text)]] = 1
    total = np.cumsum(spots)
    starts = np.arange(0, len(text) - size + 1, size // 2)
    best = int(starts[np.argmax(total[starts + size] - total[starts + _lead(size)])])
    return text[best : best + size]


def _lead(length: int) -> int:
    return min(_LEAD, length // 2)


def _logits(model: Callable[[Tensor], Tensor], windows: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(part) for part in torch.split(windows[:, :-1], 16)])


def _losses(logits: Tensor, windows: Tensor) -> Tensor:
    return F.cross_entropy(logits.transpose(1, 2), windows[:, 1:], reduction="none")


def _right(logits: Tensor, windows: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each next byte is predicted, and which of them count."""
    right = logits[..., :END].argmax(-1) == windows[:, 1:]
    kept = torch.ones_like(right)
    kept[:, : _lead(right.shape[1])] = False
    return right, kept


def _choice(logits: Tensor, windows: Tensor, signs: bytes) -> tuple[Tensor, Tensor]:
    """As `_right`, among `signs` alone; a digit counts only after a digit."""
    choices = torch.tensor(list(signs))
    _, kept = _right(logits, windows)
    right = choices[logits[..., choices].argmax(-1)] == windows[:, 1:]
    kept &= torch.isin(windows[:, 1:], choices)
    if signs.isdigit():
        kept &= torch.isin(windows[:, :-1], choices)
    return right, kept


def _cluster(right: Tensor, counted: Tensor) -> tuple[float, float, int]:
    """Mean over bytes, its standard error over windows, and the number of windows."""
    hits = (right & counted).sum(1).double()
    sizes = counted.sum(1).double()
    hits, sizes = hits[sizes > 0], sizes[sizes > 0]
    n = len(sizes)
    mean = float(hits.sum() / sizes.sum())
    spread = float(((hits - mean * sizes) ** 2).sum()) * n / max(n - 1, 1)
    return mean, math.sqrt(spread) / float(sizes.sum()), n
