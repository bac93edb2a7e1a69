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
        lost = 2 * 1.2e-38 / (1 - beta2)  # flushed to zero in float32, at most
        return float((np.abs(mh) > bound * (np.sqrt(vh) + lost**0.5)).sum() + (v < 0).sum())


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


def digits_of(w):
    """Significant bits of the narrowest of four formats that holds all values."""
    for digits in (8, 11, 24):
        scaled = np.ldexp(np.frexp(w)[0], digits)
        if np.all(scaled == np.rint(scaled)):
            return digits
    return 53


def steps_of(w):
    """Distance of each value to its neighbour, in the format of `digits_of`."""
    digits = digits_of(w)
    octave = np.where(w == 0, -np.inf, np.floor(np.log2(np.abs(np.where(w == 0, 1, w)))))
    return 2.0 ** (np.maximum(octave, -14 if digits == 11 else -126) + 1 - digits)


def largest_over_median(norms):
    return norms.max() / np.median(norms) if np.median(norms) > 0 else np.nan


def subnormal(w, dtype):
    smallest = {"float32": 2.0**-126, "bfloat16": 2.0**-126, "float16": 2.0**-14}
    return ((np.abs(w) < smallest[dtype]) & (w != 0)).mean() if dtype in smallest else np.nan


WEIGHTS = {
    "max_over_rms": lambda c: np.abs(c.w).max() / np.sqrt((c.w**2).mean()),
    "skewness": lambda c: (
        ((c.w - c.w.mean()) ** 3).mean() / c.w.std() ** 3 if np.ptp(c.w) > 0 else np.nan
    ),
    "l1_norm": lambda c: np.abs(c.w).sum(),
    "subnormal_fraction": lambda c: subnormal(c.w, c.dtype),
    "channel_max_row": lambda c: largest_over_median(np.linalg.norm(c.w, axis=1)),
    "channel_max_column": lambda c: largest_over_median(np.linalg.norm(c.w, axis=0)),
    "gain_min": lambda c: c.w.min(),
    "gain_median": lambda c: np.median(c.w),
    "gain_max": lambda c: c.w.max(),
    "gain_negative": lambda c: (c.w < 0).mean(),
    "rms_to_equilibrium": lambda c: np.sqrt((c.w**2).mean()) / np.sqrt(c.lr / (2 * c.weight_decay)),
    "rounding_error": lambda c: np.sqrt((steps_of(c.w) ** 2 / 12).sum()) / np.linalg.norm(c.w),
}


# --- Change between two checkpoints ---------------------------------------------------------------


def way(c):
    """Displacement without what weight decay did."""
    return c.w - c.decay * c.r


def between_angle(c):
    a, b = unit(c.w), unit(c.r)
    return 2 * np.arctan2(np.linalg.norm(a - b), np.linalg.norm(a + b))


def noise_left(c):
    """Σ η² Π²: of a rate that runs straight in Ση to its last value, by the midpoint rule."""
    x = (np.arange(200_000) + 0.5) / 200_000  # 0 at the end, 1 at the beginning
    rate = c.lr + 2 * (c.lr_sq_sum / c.lr_sum - c.lr) * x
    return c.lr_sum * (rate * c.decay ** (2 * x)).mean()


CHANGES = {
    "displacement_rms": lambda c: np.sqrt(((c.w - c.r) ** 2).mean()),
    "coherence": lambda c: np.sqrt((way(c) ** 2).mean()) / c.lr_sum,
    "coherence_ratio": lambda c: (
        np.sqrt((way(c) ** 2).mean()) / c.lr_sum * np.sqrt(c.lr_sum**2 / c.lr_sq_sum)
    ),
    "diffusion": lambda c: ((c.w**2).mean() - (c.decay**2 * c.r**2).mean()) / noise_left(c),
    "angle_to_equilibrium": lambda c: between_angle(c) / np.arccos(c.decay),
    "sign_flips": lambda c: (np.sign(c.w) != np.sign(c.r))[(abs(c.w) > 0) & (abs(c.r) > 0)].mean(),
    "rounding_floor": lambda c: (
        np.sqrt((steps_of(c.w) ** 2 / 12).sum() + (steps_of(c.r) ** 2 / 12).sum())
        / np.linalg.norm(c.r)
    ),
}

# --- Adam's moments -------------------------------------------------------------------------------


def hats(c):
    return corrected(c.m, c.v, c.step, c.beta1, c.beta2)


def v_hats(c):
    """Both second moments, each corrected by its own step."""
    return c.v / (1 - c.beta2**c.step), c.rv / (1 - c.beta2**c.ref_step)


def u_of(c):
    return adam_update(c.m, c.v, c.step, c.beta1, c.beta2, c.eps)


def rho(c):
    return (hats(c)[0] ** 2).sum() / hats(c)[1].sum()


def c_t(c):
    """Sum of the squared weights that a first moment gives to its gradients."""
    weights = (1 - c.beta1) * c.beta1 ** np.arange(int(min(c.step, 5000)))
    return (weights**2).sum() / (1 - c.beta1**c.step) ** 2


def snr(c):
    return (rho(c) - c_t(c)) / (1 - rho(c)) if c_t(c) < rho(c) < 1 else np.nan


def snr_error(c):
    """Root of the summed squares of what the ratio leaves."""
    (m, v), ratio = hats(c), rho(c)
    return np.sqrt(((m**2 - ratio * v) ** 2).sum()) / v.sum()


def scale_error(c):
    """By the slope of the noise scale, taken numerically."""
    if np.isnan(snr(c)):
        return np.nan
    scale = [(1 - r) / (r - c_t(c)) for r in rho(c) + 1e-7 * np.array([-1, 1])]
    return abs(scale[1] - scale[0]) / 2e-7 * snr_error(c)


def mean_snr(c):
    m, v = hats(c)
    return (m[v > 0] ** 2 / v[v > 0]).mean() if (v > 0).any() else np.nan


def applied(c):
    return u_of(c) + c.weight_decay * c.w


def growth(c):
    after = c.w - c.lr * applied(c)
    return (after**2 - c.w**2).sum() / (c.w**2).sum()


def shifts(c):
    """Decades by which v̂ moved, where both are positive."""
    v, rv = v_hats(c)
    both = (v > 0) & (rv > 0)
    return np.log10(v[both]) - np.log10(rv[both])


def shift_quantile(c, q):
    """In bins of 1/64 decade about the multiples of it, linear within a bin."""
    d = np.sort(shifts(c))
    if not len(d):
        return np.nan
    bins = np.floor(d * 64 + 0.5).astype(int)
    rank, below = q * len(d), 0
    for place in np.unique(bins):
        count = (bins == place).sum()
        if below + count >= rank:
            inside = -512 <= place <= 512
            return (place - 0.5 + (rank - below) / count) / 64 if inside else np.nan
        below += count
    raise AssertionError


def rate_exceeded_by(c, share):
    return c.lr / (binned_quantile(np.sqrt(v_hats(c)[0]), share) + c.eps)


def anisotropy(c):
    low, high = (binned_quantile(np.sqrt(v_hats(c)[0]), q) for q in (0.01, 0.99))
    return np.log10(high / low) if low > 0 else np.nan


def spread(x):
    return x.std() if x.size else np.nan


def worst_channel(c, axis):
    sums = v_hats(c)[0].sum(axis)
    return sums.max() / np.median(sums) if np.median(sums) > 0 else np.nan


def against(c, x):
    """Cosine of x with where the weights came from, less what decay did."""
    return (unit(c.decay * c.r - c.w) * unit(x)).sum()


def signs_agree(c):
    both = (c.m != 0) & (c.rm != 0)
    return (np.sign(c.m) == np.sign(c.rm))[both].mean() if both.any() else np.nan


MOMENTS = {
    "momentum_norm": lambda c: np.linalg.norm(hats(c)[0]),
    "gradient_snr": snr,
    "noise_scale": lambda c: 1 / snr(c),
    "grad_norm_over_clip": lambda c: np.sqrt(hats(c)[1].sum()) / c.clip,
    "momentum_over_clip": lambda c: np.linalg.norm(hats(c)[0]) / c.clip,
    "eps_ratio": lambda c: np.sqrt(np.mean(hats(c)[1])) / c.eps,
    "v_negative": lambda c: float((c.v < 0).sum()),
    "moment_nonfinite": lambda c: float((~np.isfinite(c.m)).sum() + (~np.isfinite(c.v)).sum()),
    "adam_snr_mean": mean_snr,
    "adam_snr_se": snr_error,
    "noise_scale_se": scale_error,
    "update_mean_abs": lambda c: np.abs(u_of(c)).mean(),
    "update_large_fraction": lambda c: (np.abs(u_of(c)) > 0.5).mean(),
    "update_kurtosis": lambda c: (u_of(c) ** 4).mean() / (u_of(c) ** 2).mean() ** 2,
    "update_p50": lambda c: binned_quantile(u_of(c), 0.5),
    "update_p90": lambda c: binned_quantile(u_of(c), 0.9),
    "update_p99": lambda c: binned_quantile(u_of(c), 0.99),
    "update_p999": lambda c: binned_quantile(u_of(c), 0.999),
    "update_to_weight": lambda c: c.lr * np.linalg.norm(u_of(c)) / np.linalg.norm(c.w),
    "update_ratio_applied": lambda c: c.lr * np.linalg.norm(applied(c)) / np.linalg.norm(c.w),
    "decay_balance": lambda c: c.weight_decay * np.linalg.norm(c.w) / np.linalg.norm(u_of(c)),
    "update_weight_cosine": lambda c: (unit(u_of(c)) * unit(c.w)).sum(),
    "norm_growth": growth,
    "update_direction_cosine": lambda c: against(c, u_of(c)),
    "momentum_direction_cosine": lambda c: against(c, c.m),
    "momentum_cosine": lambda c: (unit(c.m) * unit(c.rm)).sum(),
    "momentum_sign_agreement": signs_agree,
    "v_shift_median": lambda c: shift_quantile(c, 0.5),
    "v_shift_p1": lambda c: shift_quantile(c, 0.01),
    "v_shift_p10": lambda c: shift_quantile(c, 0.1),
    "v_shift_p90": lambda c: shift_quantile(c, 0.9),
    "v_shift_p99": lambda c: shift_quantile(c, 0.99),
    "v_shift_std": lambda c: spread(shifts(c)),
    "v_shift_down": lambda c: (shifts(c) < -1).mean(),
    "v_shift_up": lambda c: (shifts(c) > 1).mean(),
    "v_shift_masked": lambda c: 1 - shifts(c).size / c.v.size,
    "effective_lr_p1": lambda c: rate_exceeded_by(c, 0.99),
    "effective_lr_p50": lambda c: rate_exceeded_by(c, 0.5),
    "effective_lr_p99": lambda c: rate_exceeded_by(c, 0.01),
    "effective_lr_p999": lambda c: rate_exceeded_by(c, 0.001),
    "effective_lr_max": lambda c: (c.lr / (np.sqrt(hats(c)[1]) + c.eps)).max(),
    "v_anisotropy": anisotropy,
    "v_participation": lambda c: c.v.sum() ** 2 / (c.v.size * (c.v**2).sum()),
    "log_v_std": lambda c: spread(np.log(v_hats(c)[0][c.v > 0])),
    "v_zero_fraction": lambda c: (c.v <= 0).mean(),
    "v_row_anisotropy": lambda c: worst_channel(c, 1),
    "v_column_anisotropy": lambda c: worst_channel(c, 0),
}


# --- Spectra --------------------------------------------------------------------------------------


def sigmas(w):
    return np.linalg.svd(w, compute_uv=False)


def shares_of(values):
    return values[values > 0] / values.sum()


def power_law(w):
    """Clauset, Shalizi & Newman, one threshold after the other: (alpha, xmin, distance, tail)."""
    values = sigmas(w)
    x = np.sort(values[values > max(w.shape) * 2.2e-16 * values[0]] ** 2)
    best = (np.nan,) * 4
    if len(x) < 10:
        return best
    distance = np.inf
    for xmin in x[:-1]:
        tail = x[x >= xmin]
        n = len(tail)
        alpha = 1 + n / np.log(tail / xmin).sum()
        d = max(abs(1 - (y / xmin) ** (1 - alpha) - k / n) for k, y in enumerate(tail))
        if d < distance:
            best, distance = (alpha, xmin, d, n), d
    return best


def top8(w):
    """Leading left and right vectors, and the gap below them over the largest value."""
    u, s, vt = np.linalg.svd(w)
    return u[:, :8], vt[:8].T, (s[7] - s[8]) / s[0]


def subspaces(c):
    """Overlap left and right, gap, and what chance gives."""
    if min(c.w.shape) <= 8:
        return (np.nan,) * 5
    (u, v, g), (ru, rv, rg) = top8(c.w), top8(c.r)
    left, right = ((sigmas(a.T @ b) ** 2).mean() for a, b in ((u, ru), (v, rv)))
    return left, right, min(g, rg), 8 / c.w.shape[0], 8 / c.w.shape[1]


def head(c):
    """A and B of a head, d and d_h."""
    return c.w * c.gain, c.key * c.gain, c.w.shape[1], c.w.shape[0]


def logit_rms(c):
    """By the covariance of the logit's two factors: E (x'My)² = sum of squares of M."""
    a, b, _, d_h = head(c)
    return np.sqrt(((a.T @ b) ** 2).sum() / d_h)


SPECTRA = {
    "spectral_exact": lambda c: float(min(c.w.shape) <= 1024),
    "nuclear_norm": lambda c: sigmas(c.w).sum(),
    "effective_rank": lambda c: np.prod(
        shares_of(sigmas(c.w)) ** -shares_of(sigmas(c.w)), dtype=np.float64
    ),
    "participation_ratio": lambda c: (sigmas(c.w) ** 2).sum() ** 2 / (sigmas(c.w) ** 4).sum(),
    "power_law_alpha": lambda c: power_law(c.w)[0],
    "power_law_alpha_se": lambda c: (power_law(c.w)[0] - 1) / np.sqrt(power_law(c.w)[3]),
    "power_law_xmin": lambda c: power_law(c.w)[1],
    "power_law_distance": lambda c: power_law(c.w)[2],
    "power_law_tail": lambda c: power_law(c.w)[3],
    "delta_spectral_norm": lambda c: sigmas(c.w - c.r)[0],
    "delta_exact": lambda c: float(min(c.w.shape) <= 1024),
    "delta_stable_rank": lambda c: ((c.w - c.r) ** 2).sum() / sigmas(c.w - c.r)[0] ** 2,
    "delta_top8_energy": lambda c: (sigmas(c.w - c.r)[:8] ** 2).sum() / ((c.w - c.r) ** 2).sum(),
    "subspace_overlap_left": lambda c: subspaces(c)[0],
    "subspace_overlap_right": lambda c: subspaces(c)[1],
    "subspace_gap": lambda c: subspaces(c)[2],
    "subspace_null_left": lambda c: subspaces(c)[3],
    "subspace_null_right": lambda c: subspaces(c)[4],
    "qk_logit_bound": lambda c: (
        head(c)[2] / np.sqrt(head(c)[3]) * sigmas(head(c)[0])[0] * sigmas(head(c)[1])[0]
    ),
    "qk_logit_rms": logit_rms,
    "qk_product_norm": lambda c: sigmas(head(c)[0].T @ head(c)[1])[0],
}

# --- Rows, columns, vocabularies ------------------------------------------------------------------


def row_norms(c):
    return np.linalg.norm(c.w, axis=1)


def row_second_moments(c):
    return (c.v / (1 - c.beta2**c.step)).sum(1)


def unseen(rows):
    """Fraction of rows of which less is left than of the median one after ten times its memory."""
    positive = sorted(x for x in rows if x > 0)
    if not positive:
        return 1.0
    half = len(positive) // 2
    median = positive[half] if len(positive) % 2 else (positive[half - 1] + positive[half]) / 2
    return sum(x < median / np.exp(10) for x in rows) / len(rows)


ROWS = {
    "row_norm_min": lambda c: row_norms(c).min(),
    "row_norm_p1": lambda c: np.percentile(row_norms(c), 1),
    "row_norm_median": lambda c: np.percentile(row_norms(c), 50),
    "row_norm_p99": lambda c: np.percentile(row_norms(c), 99),
    "row_norm_max": lambda c: row_norms(c).max(),
    "mean_row_norm": lambda c: np.linalg.norm(c.w.mean(0)),
    "centred_row_norm": lambda c: np.sqrt(((c.w - c.w.mean(0)) ** 2).sum(1).mean()),
    "mean_row_share": lambda c: np.linalg.norm(c.w.mean(0)) ** 2 / (row_norms(c) ** 2).mean(),
    "v_row_top_share": lambda c: row_second_moments(c).max() / row_second_moments(c).sum(),
    "v_row_unseen": lambda c: unseen(row_second_moments(c)),
    # of pairs, for the geometry of branches
    "projection": lambda c: ((c.w - c.r) * c.r).sum() / (c.r**2).sum(),
    "reference_norm": lambda c: np.linalg.norm(c.r),
    "decay_between": lambda c: c.decay,
    "lr_between": lambda c: c.lr_sum,
    "lr_sq_between": lambda c: c.lr_sq_sum,
    "optimizer_step": lambda c: c.step,
}

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
