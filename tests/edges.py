"""Cases where something is not defined, or lies at an end, and which statistics have no value there.

`MORE` are ordinary cases of another kind: every oracle holds. In `EDGES` each case comes with the
names of the statistics that are NaN; all others are not, and are what the oracle says where that is
a finite number.
"""

import math
from dataclasses import replace

import numpy as np

from tests.cases import CASES

PLAIN = CASES["gaussian"]
SHAPE = PLAIN.w.shape


def full(value):
    return np.full(SHAPE, float(value))


def some(case, **parts):
    """The case with a few numbers of its arrays replaced: name → {place: value}."""
    arrays = {name: getattr(case, name).copy() for name in parts}
    for name, values in parts.items():
        for place, value in values.items():
            arrays[name][place] = value
    return replace(case, **arrays)


def at_the_bound(case):
    """First moments just inside and just outside of what any gradients give, and some damage."""
    k = np.arange(min(int(case.step), 4000))
    a = (1 - case.beta1) * case.beta1**k / (1 - case.beta1**case.step)
    b = (1 - case.beta2) * case.beta2**k / (1 - case.beta2**case.step)
    bound = np.sqrt((a**2 / b).sum())
    corrected = np.sqrt(case.v / (1 - case.beta2**case.step)) * (1 - case.beta1**case.step)
    near = np.linspace(-3e-5, 3e-5, 54).reshape(SHAPE)  # 1e-5 is allowed for rounding
    m = bound * (1 + near) * corrected * np.sign(case.m)
    m[0, :3], v = (0.0, 1e-20, 1e-18), case.v.copy()
    v[0, :3] = 0.0
    v[1, :3] = -v[1, :3]
    return replace(case, m=m, v=v)


MORE = {
    "gains": replace(PLAIN, w=1 + 1e-3 * PLAIN.w, r=1 - 1e-3 * PLAIN.r),
    "shifted": replace(PLAIN, w=0.4 + PLAIN.w, r=PLAIN.r - 0.3),
    "far": replace(PLAIN, r=-2 * PLAIN.w + 0.1 * PLAIN.r),
    "first step": replace(PLAIN, step=1.0, m=0.1 * PLAIN.w, v=0.05 * PLAIN.w**2),
    "no memory": replace(PLAIN, beta1=0.0, beta2=0.0, m=1e-3 * PLAIN.w, v=1e-6 * PLAIN.w**2),
}

EDGES = {
    "reference of zeros": (replace(PLAIN, r=full(0)), "rel_displacement cosine angle update_ratio"),
    "zeros": (replace(PLAIN, w=full(0)), "cosine angle kurtosis stable_rank"),
    "constant": (replace(PLAIN, w=full(0.1)), "kurtosis"),
    "no learning": (replace(PLAIN, lr_sum=0.0), "update_ratio"),
    "not finite": (some(PLAIN, w={(0, 0): math.nan, (0, 1): math.inf}), ""),
    "infinite twice": (some(PLAIN, w={(0, 0): math.inf}, r={(0, 0): math.inf}), ""),
    "no gradients": (replace(PLAIN, m=full(0), v=full(0)), "adam_snr"),
    "no gradients nor epsilon": (some(PLAIN, m={0: 0.0, (1, 0): 0.0}, v={0: 0.0}), ""),
    "before the first step": (replace(PLAIN, step=0.0), ""),
    "damaged": (replace(PLAIN, v=-PLAIN.v), ""),
    "at the bound": (at_the_bound(PLAIN), ""),
    "at an early bound": (at_the_bound(replace(PLAIN, step=3.0, beta2=0.999)), ""),
    "no bound": (replace(PLAIN, beta1=0.95, beta2=0.9), ""),
    "beta1 of one": (replace(PLAIN, beta1=1.0), ""),
    "beta2 of one": (replace(PLAIN, beta2=1.0), ""),
    "beta1 not known": (replace(PLAIN, beta1=math.nan), ""),
    "negative epsilon": (replace(PLAIN, eps=-1.0), ""),
    "epsilon of zero": (replace(some(PLAIN, m={0: 0.0}, v={0: 0.0}), eps=0.0), ""),
}
