"""Naive float64 oracle: each statistic written as its definition reads, one array at a time.

Nothing here is shared with the package. `ORACLE` maps a statistic's name to a function of one
`tests.cases.Case`, which holds numpy arrays and scalars. The older ones are written for single
tensors ``w``, comparisons ``(a, b, lr_sum)``, and moments ``(m, v, step, beta1, beta2, eps)``.
"""

import numpy as np


def as64(tensor):
    """Exact float64 values of a torch tensor."""
    return tensor.double().numpy()


def unit(x):
    return x / np.linalg.norm(x)


def corrected(m, v, step, beta1, beta2):
    return m / (1 - beta1**step), v / (1 - beta2**step)


def adam_update(m, v, step, beta1, beta2, eps):
    mh, vh = corrected(m, v, step, beta1, beta2)
    return np.where(mh == 0, 0.0, mh / (np.sqrt(vh) + eps))


def worst_update(step, beta1, beta2):
    """Largest |m̂|/√v̂, by the extremal gradients of Cauchy–Schwarz, summed term by term."""
    k = np.arange(min(int(step), 4000))
    a = (1 - beta1) * beta1**k / (1 - beta1**step)
    b = (1 - beta2) * beta2**k / (1 - beta2**step)
    return np.sqrt((a[a > 0] ** 2 / b[a > 0]).sum())


def violations(m, v, step, beta1, beta2, eps):
    mh, vh = corrected(m, v, step, beta1, beta2)
    bound = worst_update(step, beta1, beta2) * (1 + 1e-5)
    with np.errstate(invalid="ignore"):
        return float((np.abs(mh) > bound * np.sqrt(vh) + 1.1e-19).sum() + (v < 0).sum())


def binned_quantile(w, q):
    """Of magnitudes in eight equal bins an octave from 2**-96 to 2**32, linear within a bin."""
    edges = [0.0]
    for exponent in range(-96, 32):
        edges += [2.0**exponent * (1 + j / 8) for j in range(8)]
    edges += [2.0**32, np.inf]
    a = np.sort(np.abs(w), axis=None)  # NaN at the end, as if it were above all
    counts = np.diff([*np.searchsorted(a, edges[:-1], side="left"), len(a)])
    rank, below = q * len(a), 0
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        if count and below + count >= rank:
            if low == 0.0:
                return 0.0
            return np.nan if high == np.inf else low + (high - low) * (rank - below) / count
        below += count
    raise AssertionError


ALONE = {
    "abs_median": lambda w: binned_quantile(w, 0.5),
    "abs_p99": lambda w: binned_quantile(w, 0.99),
    "abs_p999": lambda w: binned_quantile(w, 0.999),
    "l2_norm": lambda w: np.sqrt((w**2).sum()),
    "rms": lambda w: np.sqrt((w**2).mean()),
    "mean": lambda w: w.mean(),
    "std": lambda w: np.sqrt(((w - w.mean()) ** 2).mean()),
    "max_abs": lambda w: np.abs(w).max(),
    "zero_fraction": lambda w: (w == 0).mean(),
    "nonfinite": lambda w: float((~np.isfinite(w)).sum()),
    "kurtosis": lambda w: (
        ((w - w.mean()) ** 4).mean() / ((w - w.mean()) ** 2).mean() ** 2
        if np.ptp(w) > 0
        else np.nan
    ),
}

SPECTRAL = {
    "spectral_norm": lambda w: np.linalg.svd(w, compute_uv=False)[0],
    "stable_rank": lambda w: (
        (np.linalg.svd(w, compute_uv=False) ** 2).sum() / np.linalg.svd(w, compute_uv=False)[0] ** 2
    ),
}

PAIR = {
    "displacement": lambda a, b, lr_sum: np.sqrt(((a - b) ** 2).sum()),
    "rel_displacement": lambda a, b, lr_sum: np.sqrt(((a - b) ** 2).sum() / (b**2).sum()),
    "max_change": lambda a, b, lr_sum: np.abs(a - b).max(),
    "cosine": lambda a, b, lr_sum: (unit(a) * unit(b)).sum(),
    "angle": lambda a, b, lr_sum: (
        2 * np.arctan2(np.linalg.norm(unit(a) - unit(b)), np.linalg.norm(unit(a) + unit(b)))
    ),
    "update_ratio": lambda a, b, lr_sum: np.sqrt(((a - b) ** 2).sum() / (b**2).sum()) / lr_sum,
    "unchanged_fraction": lambda a, b, lr_sum: (a == b).mean(),
}

ADAM = {
    "update_rms": lambda *x: np.sqrt((adam_update(*x) ** 2).mean()),
    "update_max": lambda *x: np.abs(adam_update(*x)).max(),
    "adam_snr": lambda m, v, t, b1, b2, eps: (
        (corrected(m, v, t, b1, b2)[0] ** 2).sum() / corrected(m, v, t, b1, b2)[1].sum()
    ),
    "adam_snr_null": lambda m, v, t, b1, b2, eps: (
        (((1 - b1) * b1 ** np.arange(int(t))) ** 2).sum() / (1 - b1**t) ** 2
    ),
    "grad_norm_ema": lambda m, v, t, b1, b2, eps: np.sqrt(corrected(m, v, t, b1, b2)[1].sum()),
    "eps_fraction": lambda m, v, t, b1, b2, eps: (
        np.sqrt(corrected(m, v, t, b1, b2)[1]) < eps
    ).mean(),
    "eps10_fraction": lambda m, v, t, b1, b2, eps: (
        np.sqrt(corrected(m, v, t, b1, b2)[1]) < 10 * eps
    ).mean(),
    "bound_violations": violations,
}

# --- Norms, tails and gains of one tensor -------------------------------------------------------

WEIGHTS = {}

# --- Change between two checkpoints ---------------------------------------------------------------

CHANGES = {}

# --- Adam's moments -------------------------------------------------------------------------------

MOMENTS = {}

# --- Spectra --------------------------------------------------------------------------------------

SPECTRA = {}

# --- Rows, columns, vocabularies ------------------------------------------------------------------

ROWS = {}

# --------------------------------------------------------------------------------------------------


def of_case(table, take):
    return {name: lambda c, f=f: f(*take(c)) for name, f in table.items()}


ORACLE = {
    **of_case({**ALONE, **SPECTRAL}, lambda c: (c.w,)),
    **of_case(PAIR, lambda c: (c.w, c.r, c.lr_sum)),
    **of_case(ADAM, lambda c: (c.m, c.v, c.step, c.beta1, c.beta2, c.eps)),
    **WEIGHTS,
    **CHANGES,
    **MOMENTS,
    **SPECTRA,
    **ROWS,
}
