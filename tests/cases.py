"""One tensor with all that any statistic may be made of, and every statistic of it, by the package.

No file, no engine: accumulators are called on the whole arrays. The engine's own tests show that
tiles, blocks and tables give the same.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from analysis360.stats import Accumulator, accumulators, gather, statistics, terms, wholes

__all__ = ["CASES", "Case", "fields", "termed", "values"]


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


@dataclass(frozen=True)
class Case:
    """A matrix now (`w`) and in the checkpoint it is compared with (`r`), with the moments of both.

    `key` and `gain` are the other tensors of its layer, for steps that take several.
    """

    w: np.ndarray
    r: np.ndarray
    m: np.ndarray
    v: np.ndarray
    rm: np.ndarray
    rv: np.ndarray
    key: np.ndarray
    gain: np.ndarray
    step: float = 50.0
    ref_step: float = 40.0
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    lr: float = 1e-3
    weight_decay: float = 0.1
    clip: float = 1.0
    lr_sum: float = 0.5
    lr_sq_sum: float = 4e-4
    decay: float = 0.95
    dtype: str = "float32"
    ref_dtype: str = "float32"
    numel: float = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "numel", float(self.w.size))

    def scaled(self, c):
        """The case with weights scaled by `c`, and gradients too."""
        return replace(
            self, w=c * self.w, r=c * self.r, m=c * self.m, v=c * c * self.v, rm=c * self.rm,
            rv=c * c * self.rv, key=c * self.key,
        )  # fmt: skip


def case(seed, rows=6, columns=9, size=1.0, apart=1.0, **scalars):
    """Gaussian weights, and moments that gradients of that kind leave."""
    w, d = size * normal(seed, rows, columns), size * normal(seed + 1, rows, columns)
    v, rv = ((0.02 * size * normal(seed + k, rows, columns)) ** 2 + 1e-6 * size**2 for k in (2, 3))
    m, rm = (
        np.sqrt(x) * np.clip(0.3 * normal(seed + k, rows, columns), -0.9, 0.9)
        for x, k in ((v, 4), (rv, 5))
    )
    return Case(
        w, w - apart * d, m, v, rm, rv, size * normal(seed + 6, rows, columns),
        1 + 0.1 * normal(seed + 7, columns), **scalars,
    )  # fmt: skip


def with_zeros(c):
    """Some weights, moments and signs as training leaves them: pruned, never seen, unchanged."""
    arrays = {name: getattr(c, name).copy() for name in ("w", "r", "m", "v", "rm", "rv")}
    for name in ("m", "v"):
        arrays[name][0] = 0.0
    arrays["rv"][0, :4] = arrays["rm"][0, :4] = 0.0
    arrays["w"][1, :3] = 0.0
    arrays["r"][1, 2:5] = 0.0
    arrays["r"][2] = arrays["w"][2]
    return replace(c, **arrays)


CASES = {
    "gaussian": case(0),
    "nearly equal": case(10, size=0.02, apart=1e-3),
    "tall": case(20, rows=40, columns=7, step=3.0, ref_step=2.0, beta2=0.999, decay=0.999),
    "wide": case(30, rows=12, columns=33, size=30.0, eps=1e-3, weight_decay=0.01, lr=3e-4),
    "tiny": case(40, size=1e-5, eps=1e-8, step=1e5, ref_step=99_000.0, lr_sum=0.07, clip=1e-3),
    "with zeros": with_zeros(case(50)),
}
"""Name → case: what the statistics are held against the oracle on."""


def given(c):
    """Arrays and scalars by the names that registered functions use, flat float64."""
    arrays = {
        "tensor": c.w, "reference": c.r, "weight": c.w, "reference_weight": c.r,
        "exp_avg": c.m, "reference_exp_avg": c.rm, "exp_avg_sq": c.v, "reference_exp_avg_sq": c.rv,
        "master": c.w, "reference_master": c.r,
    }  # fmt: skip
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def scalars(c):
    names = ("numel", "step", "beta1", "beta2", "eps", "lr", "weight_decay", "clip", "lr_sum",
             "lr_sq_sum", "decay")  # fmt: skip
    found = {name: np.float64(getattr(c, name)) for name in names}
    shape = "x".join(map(str, c.w.shape))
    return found | {
        "shape": shape, "dtype": c.dtype, "reference_step": np.float64(c.ref_step),
        "reference_dtype": c.ref_dtype,
    }  # fmt: skip


def taken(entry, c, function=None):
    """Results of one accumulator or whole-matrix step; of `function` in its place, if given."""
    arrays, call = given(c), function or entry.function
    known = {n: v if isinstance(v, str) else float(v) for n, v in scalars(c).items()}
    known["shape"] = c.w.shape
    if isinstance(entry, Accumulator):
        mine = {n: arrays[n] if n in arrays else known[n] for n in entry.inputs}
        if entry.axis is None:
            mine = {n: a.reshape(-1) if n in arrays else a for n, a in mine.items()}
        result = call(**mine)
        got = result.numpy() if entry.axis else result.tolist()
        return dict(zip(entry.fields, got, strict=True))
    at = {**arrays, "gain": torch.from_numpy(c.gain), "key": torch.from_numpy(c.key)}
    at |= {"query": arrays["tensor"]}
    if entry.ndim == 1:
        at |= {name: a.reshape(-1) for name, a in arrays.items()}
    result = call(**{n: at[n] if n in at else known[n] for n in entry.inputs})
    found = dict(zip(entry.fields, result.tolist(), strict=not entry.vector))
    if entry.vector:
        found[entry.vector] = result.numpy()[len(entry.fields) :]
    return found


def fields(c):
    """Results of every accumulator and whole-matrix step that takes a matrix."""
    found = {}
    for registry in (accumulators, wholes):
        for _, entry in registry.items():
            found |= taken(entry, c)
    return found


def termed(known):
    """Terms of the fields and scalars that are known."""
    return {
        name: np.float64(entry.function(**{n: known[n] for n in entry.inputs}))
        for name, entry in terms.items()
        if all(n in known for n in entry.inputs)
    }


def values(c, only=None):
    """Every statistic of a case (or those in `only`); NaN where it is not defined."""
    known = {n: np.float64(v) if isinstance(v, float) else v for n, v in fields(c).items()}
    known |= scalars(c)
    with np.errstate(all="ignore"):
        known |= termed(known)
        return {
            name: float(entry.function(**{n: gather(known, n) for n in entry.inputs}))
            for name, entry in statistics.items()
            if only is None or name in only
        }
