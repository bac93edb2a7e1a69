"""Cases where something is not defined, or lies at an end, and which statistics have no value there.

`MORE` are ordinary cases of another kind: every oracle holds. At the `EDGES` the statistics that are
`UNDEFINED` are NaN; all others are not, and are what the oracle says where that is a finite number.
"""

import math
from dataclasses import replace

import numpy as np

from tests.cases import CASES, Case

NAN = math.nan
PLAIN = CASES["gaussian"]
SHAPE = PLAIN.w.shape


FIRST = np.zeros(SHAPE)
FIRST[0, 0] = 1.0


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
    "negative": replace(PLAIN, w=-1 - 1e-3 * PLAIN.w),
    "nearly centred": replace(PLAIN, w=PLAIN.w - PLAIN.w.mean() + 1e-4),
    "nearly constant": replace(PLAIN, w=1 + 1e-8 * PLAIN.w),
    "far": replace(PLAIN, r=-2 * PLAIN.w + 0.1 * PLAIN.r),
    # rounding takes the squared chord of these above 4
    "opposite": replace(PLAIN, w=FIRST, r=-1.91 * FIRST),
    "large": replace(PLAIN, w=4.25e9 * np.tanh(3 * PLAIN.w), r=1e9 * PLAIN.r),
    "mostly small": replace(PLAIN, w=np.where(np.abs(PLAIN.w) < 2, 1e-30, 1.0) * PLAIN.w),
    "first step": replace(PLAIN, step=1.0, m=0.1 * PLAIN.w, v=0.05 * PLAIN.w**2),
    "no memory": replace(some(PLAIN, m={(0, 0): 1.0}), beta1=0.0, beta2=0.0, v=1e-6 * PLAIN.w**2),
    "a long and a short memory": at_the_bound(replace(PLAIN, beta1=0.9, beta2=0.85, eps=1e-8)),
}

EDGES = {
    "reference of zeros": replace(PLAIN, r=full(0)),
    "zeros": replace(PLAIN, w=full(0)),
    "constant": replace(PLAIN, w=full(0.1)),
    "large constant": replace(PLAIN, w=full(1e4 / 3)),
    "one element": Case(
        *(full(x)[:1, :1] for x in (0.3, 0.2, 1e-3, 1e-5, 2e-3, 1e-5, 0.1)), full(1.0)[0, :1]
    ),
    "no learning": replace(PLAIN, lr_sum=0.0, lr_sq_sum=0.0),
    "schedule not known": replace(PLAIN, lr_sum=NAN, lr_sq_sum=NAN, decay=NAN),
    "not finite": some(PLAIN, w={(0, 0): NAN, (0, 1): math.inf}),
    "infinite twice": some(PLAIN, w={(0, 0): math.inf}, r={(0, 0): math.inf}),
    "no gradients": replace(PLAIN, m=full(0), v=full(0)),
    "before the first step": replace(PLAIN, step=0.0),
    "damaged": replace(PLAIN, v=-PLAIN.v),
    "at the bound": at_the_bound(PLAIN),
    "at an early bound": at_the_bound(replace(PLAIN, step=3.0, beta2=0.999)),
    "no bound": replace(PLAIN, beta1=0.9, beta2=0.78, step=1e5, m=1e3 * np.sqrt(PLAIN.v)),
    "beta1 of one": replace(PLAIN, beta1=1.0),
    "beta2 of one": replace(PLAIN, beta2=1.0),
    "beta1 not known": replace(PLAIN, beta1=NAN),
    "negative epsilon": replace(PLAIN, eps=-1.0),
    "epsilon of zero": replace(some(PLAIN, m={0: 0.0}, v={0: 0.0}), eps=0.0),
    "epsilon and squares of zero": replace(some(PLAIN, v={0: 0.0}), eps=0.0),
}

UNDEFINED = {
    "reference of zeros": "angle cosine rel_displacement update_ratio",
    "zeros": "angle cosine kurtosis stable_rank",
    "constant": "kurtosis",
    "large constant": "kurtosis",
    "one element": "kurtosis",
    "no learning": "update_ratio",
    "schedule not known": "update_ratio",
    "not finite": (
        "abs_p99 abs_p999 angle cosine displacement kurtosis l2_norm max_abs max_change mean "
        "rel_displacement rms spectral_norm spectral_norm_error stable_rank std update_ratio"
    ),
    "infinite twice": (
        "abs_p99 abs_p999 angle cosine displacement kurtosis max_change rel_displacement "
        "spectral_norm spectral_norm_error stable_rank std update_ratio"
    ),
    "no gradients": "adam_snr",
    "before the first step": (
        "adam_snr adam_snr_null bound_violations eps10_fraction eps_fraction grad_norm_ema "
        "update_max update_rms"
    ),
    "damaged": "adam_snr grad_norm_ema update_max update_rms",
    "at the bound": "update_max update_rms",
    "at an early bound": "update_max update_rms",
    "no bound": "",
    "beta1 of one": (
        "adam_snr adam_snr_null bound_violations eps10_fraction eps_fraction grad_norm_ema "
        "update_max update_rms"
    ),
    "beta2 of one": (
        "adam_snr adam_snr_null bound_violations eps10_fraction eps_fraction grad_norm_ema "
        "update_max update_rms"
    ),
    "beta1 not known": (
        "adam_snr adam_snr_null bound_violations eps10_fraction eps_fraction grad_norm_ema "
        "update_max update_rms"
    ),
    "negative epsilon": (
        "adam_snr adam_snr_null bound_violations eps10_fraction eps_fraction grad_norm_ema "
        "update_max update_rms"
    ),
    "epsilon of zero": "",
    "epsilon and squares of zero": "",
}
"""Edge → the statistics that are NaN there."""
