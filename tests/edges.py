"""Cases where something is not defined, or lies at an end, and which statistics have no value there.

`MORE` are ordinary cases of another kind: every oracle holds. At the `EDGES` the statistics that are
`UNDEFINED` are NaN; all others are not, and are what the oracle says where that is a finite number.
"""

import math
from dataclasses import replace

import numpy as np
import torch

from tests.cases import CASES, Case, case, normal

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
    lost = bound * np.sqrt(2 * 1.2e-38 / (1 - case.beta2)) * (1 - case.beta1**case.step)
    m[0, :3], v = (0.0, 0.9 * lost, 1.1 * lost), case.v.copy()  # of squares that underflowed
    v[0, :3] = 0.0
    v[1, :3] = -v[1, :3]
    return replace(case, m=m, v=v)


def coarse(array, digits=None):
    """Rounded to the 8 significant bits of bfloat16; but all digits at one place."""
    mantissa, exponent = np.frexp(array)
    rounded = np.ldexp(np.round(mantissa * 256) / 256, exponent)
    if digits is not None:
        rounded.flat[digits] = array.flat[digits]
    return rounded


TALL = CASES["tall"]
ODD = Case(
    *(getattr(PLAIN, name)[:5, :7] for name in ("w", "r", "m", "v", "rm", "rv", "key")),
    PLAIN.gain[:7],
)

MORE = {
    "gains": replace(PLAIN, w=1 + 1e-3 * PLAIN.w, r=1 - 1e-3 * PLAIN.r),
    "shifted": replace(PLAIN, w=0.4 + PLAIN.w, r=PLAIN.r - 0.3),
    "negative": replace(PLAIN, w=-1 - 1e-3 * PLAIN.w),
    "nearly centred": replace(PLAIN, w=PLAIN.w - PLAIN.w.mean() + 1e-4),
    "nearly constant": replace(PLAIN, w=1 + 1e-8 * PLAIN.w),
    "odd": ODD,
    "far": replace(PLAIN, r=-2 * PLAIN.w + 0.1 * PLAIN.r),
    # rounding takes the squared chord of these above 4
    "opposite": replace(PLAIN, w=FIRST, r=-1.91 * FIRST),
    "large": replace(PLAIN, w=4.25e9 * np.tanh(3 * PLAIN.w), r=1e9 * PLAIN.r),
    "mostly small": replace(PLAIN, w=np.where(np.abs(PLAIN.w) < 2, 1e-30, 1.0) * PLAIN.w),
    # as many singular values as a power law is fitted to, and those of one from the smallest on
    "ten values": case(80, rows=10, columns=14),
    "power law": replace(case(81, rows=12, columns=12), w=np.diag(np.arange(1.0, 13) ** -0.5)),
    "few digits": replace(PLAIN, w=coarse(PLAIN.w), r=coarse(PLAIN.r)),
    "few digits but in the last": replace(PLAIN, w=coarse(PLAIN.w, -1), r=coarse(PLAIN.r)),
    "few digits but in the second": replace(TALL, w=coarse(TALL.w, 1), r=coarse(TALL.r)),
    "half precision": some(
        replace(PLAIN, w=(2e-4 * PLAIN.w).astype(np.float16).astype(float), dtype="float16"),
        w={(0, 0): 2.0**-14 * (1 - 2.0**-10), (0, 1): 0.0, (5, 8): 2.0**-12 * (1 + 2.0**-10)},
    ),
    "subnormal": some(PLAIN, w={(0, 0): 1.1e-38, (0, 1): 1e-40, (0, 2): 1.2e-38, (0, 3): 4e-5}),
    "hardly decayed": replace(PLAIN, decay=1 - 4e-5),
    "first step": replace(PLAIN, step=1.0, m=0.1 * PLAIN.w, v=0.05 * PLAIN.w**2),
    "no memory": replace(some(PLAIN, m={(0, 0): 1.0}), beta1=0.0, beta2=0.0, v=1e-6 * PLAIN.w**2),
    "a long and a short memory": at_the_bound(replace(PLAIN, beta1=0.9, beta2=0.85)),
    "one shift for nearly all": replace(
        PLAIN, v=10 * PLAIN.rv * (1 + 1.2e-5 * PLAIN.w), ref_step=50.0
    ),
    "second moments at the end": replace(PLAIN, v=(4.0e9 * np.tanh(3 + PLAIN.w**2)) ** 2),
    "one shift for all": replace(PLAIN, v=1000 * PLAIN.rv, ref_step=50.0),
}


def graded(seed, rows, columns, ratio):
    """A matrix of given singular values: 1, ratio, ratio², …"""
    side = min(rows, columns)
    left, right = (
        np.linalg.qr(normal(seed + k, n, side))[0] for k, n in enumerate((rows, columns))
    )
    return (left * ratio ** np.arange(side)) @ right.T


def matrices(seed, rows, columns, ratio):
    """Two of them as a tensor and its reference."""
    plain = case(seed, rows, columns)
    w, r = (graded(seed + k, rows, columns, ratio) for k in (0, 10))
    return replace(plain, w=w, r=r)


def of_values(seed, rows, columns, sigmas, first=None):
    """A matrix of given singular values; all but the first left vector may be what spans `first`."""
    count = len(sigmas)
    start = normal(seed, rows, count)
    if first is not None:  # the first is orthogonal to it, the second is it
        start[:, 1] = first
        start[:, 0] -= first * (first @ start[:, 0]) / (first @ first)
    left, right = np.linalg.qr(start)[0], np.linalg.qr(normal(seed + 1, columns, count))[0]
    return (left * np.asarray(sigmas)) @ right.T


def lanczos_start(side):
    """The vector from which the package's Lanczos steps begin."""
    generator = torch.Generator().manual_seed(360)
    return torch.randn(side, generator=generator, dtype=torch.float64).numpy()


SQUARE = case(120, 12, 12)
WIDE = CASES["wide"]
SMALLER = {"gram.SLAB": 1000, "gram.PANEL": 64}
STEPS = {"spectrum.EXACT_UP_TO": 4, "subspace.EXACT_UP_TO": 4}
LIMITS = {
    "all steps": (
        case(100, 150, 160),
        SMALLER | {"spectrum.EXACT_UP_TO": 4, "singular.SVD_UP_TO": 4},
        ("steps", 96, "exact", 0),
    ),
    "steps that find all": (
        matrices(60, 160, 150, 0.8), SMALLER | STEPS, ("complete", 0, "complete", 0),
    ),
    "few steps": (
        matrices(70, 160, 150, 0.9),
        SMALLER | {"spectrum.DIRECT": 4, "subspace.EXACT_UP_TO": 4, "gram.BLOCK_STEPS": 5},
        ("proved", 0, "steps", 5),
    ),
    "slow steps": (
        matrices(75, 150, 160, 0.97),
        SMALLER | {"subspace.EXACT_UP_TO": 4, "gram.BLOCK_STEPS": 9},
        ("exact", 0, "steps", 9),
    ),
    "failure less likely": (
        case(105, 150, 160),
        {"spectrum.EXACT_UP_TO": 4, "spectrum.FAILURE": 1e-100},
        ("steps", 96, "exact", 0, 1e-100),
    ),
    "failure of a block less likely": (
        matrices(70, 160, 150, 0.9),
        {"subspace.EXACT_UP_TO": 4, "gram.BLOCK_STEPS": 5, "subspace.FAILURE": 1e-100},
        ("exact", 0, "steps", 5, 1e-100),
    ),
    "low rank": (
        replace(
            case(85, 150, 160),
            w=of_values(86, 150, 160, 0.9 ** np.arange(12)),
            r=of_values(88, 150, 160, 0.8 ** np.arange(12)),
        ),
        SMALLER | STEPS | {"singular.SVD_UP_TO": 4}, ("complete", 0, "complete", 0),
    ),
    "a small one by steps": (
        matrices(80, 32, 40, 0.5), STEPS | {"gram.SLAB": 100}, ("complete", 0, "complete", 0),
    ),
    "a small one by proof": (
        matrices(90, 24, 30, 0.5),
        {"spectrum.DIRECT": 4, "singular.SVD_LENGTH": 4, "gram.SLAB": 100, "gram.PANEL": 7},
        ("proved", 0, "exact", 0),
    ),
    "a small one by proof, in torch alone": (
        matrices(90, 24, 30, 0.5),
        {"spectrum.DIRECT": 4, "singular.SVD_LENGTH": 4, "gram.SLAB": 100, "gram.PANEL": 7,
         "blas.held": lambda square: False},
        ("proved", 0, "exact", 0),
    ),
    "hidden from the start": (
        replace(
            case(92, 24, 30),
            w=of_values(93, 24, 30, [1.2, *(0.5 ** np.arange(23))], lanczos_start(24)),
        ),
        {"spectrum.DIRECT": 4}, ("exact", 0, "exact", 0),
    ),
    "hidden from the start, in torch alone": (
        replace(
            case(92, 24, 30),
            w=of_values(93, 24, 30, [1.2, *(0.5 ** np.arange(23))], lanczos_start(24)),
        ),
        {"spectrum.DIRECT": 4, "blas.held": lambda square: False}, ("exact", 0, "exact", 0),
    ),
    "at the limits": (
        case(110, 16, 20),
        {
            "spectrum.EXACT_UP_TO": 16, "spectrum.DIRECT": 16, "subspace.EXACT_UP_TO": 16,
            "singular.SVD_UP_TO": 16, "singular.SVD_LENGTH": 20,
        },
        ("exact", 0, "exact", 0),
    ),
}  # fmt: skip
"""Case, sizes from which on spectra are found in another way, made small, and the ways that are then
taken for the spectral norm and for the spectrum of the change, each with its number of steps."""

EDGES = {
    "decay alone": replace(PLAIN, decay=0.4, w=0.4 * PLAIN.r),
    "less decay alone": replace(PLAIN, decay=0.6, w=0.6 * PLAIN.r),
    "squares underflow": replace(PLAIN, w=1e-310 * PLAIN.w, r=1e-310 * PLAIN.r),
    "reference of zeros": replace(PLAIN, r=full(0)),
    "zeros": replace(PLAIN, w=full(0)),
    "nothing changed": replace(PLAIN, r=PLAIN.w),
    "zeros, wide": replace(WIDE, w=0 * WIDE.w),
    "not finite, wide": some(WIDE, w={(0, 0): NAN}),
    "of eight rows": case(130, 8, 12),
    "square": SQUARE,
    "a tie at the eighth": replace(SQUARE, w=of_values(121, 12, 12, [2] * 7 + [1] * 5)),
    "of rank eight": replace(SQUARE, w=of_values(123, 12, 12, np.arange(9, 1, -1))),
    "constant": replace(PLAIN, w=full(0.1)),
    "large constant": replace(PLAIN, w=full(1e4 / 3)),
    "one element": Case(
        *(full(x)[:1, :1] for x in (0.3, 0.2, 1e-3, 1e-5, 2e-3, 1e-5, 0.1)), np.ones(1)
    ),
    "two elements": Case(
        *(full(x)[:1, :2] * [1, 2] for x in (0.3, 0.2, 1e-3, 1e-5, 2e-3, 1e-5, 0.1)), np.ones(2)
    ),
    "another dtype": replace(PLAIN, dtype="float8_e4m3fn"),
    "no learning": replace(PLAIN, lr_sum=0.0, lr_sq_sum=0.0),
    "squares of no learning": replace(PLAIN, lr_sq_sum=0.0),
    "schedule not known": replace(PLAIN, lr_sum=NAN, lr_sq_sum=NAN, decay=NAN),
    "no rate": replace(PLAIN, lr=0.0),
    "no weight decay": replace(PLAIN, weight_decay=0.0, decay=1.0),
    "decayed to nothing": replace(PLAIN, decay=0.0),
    "weight growth": replace(PLAIN, decay=2.0, lr=10.0),
    "not finite": some(PLAIN, w={(0, 0): NAN, (0, 1): math.inf}),
    "infinite twice": some(PLAIN, w={(0, 0): math.inf}, r={(0, 0): math.inf}),
    "moments not finite": some(PLAIN, m={(0, 0): NAN}, v={(0, 0): math.inf, (0, 1): NAN}),
    "no gradients": replace(PLAIN, m=full(0), v=full(0)),
    "mostly no gradients": some(
        PLAIN, m=dict.fromkeys(range(4), 0.0), v=dict.fromkeys(range(4), 0.0)
    ),
    "noise alone": replace(PLAIN, beta1=0.5, step=1e5, m=full(1), v=full(3)),
    "gradients that agree": replace(PLAIN, step=1e5, m=full(1), v=full(1)),
    "ten times": replace(PLAIN, v=full(10), rv=full(1), ref_step=50.0),
    "a tenth": replace(PLAIN, v=full(1), rv=full(10), ref_step=50.0),
    "1e10 times": replace(PLAIN, v=full(1e10), rv=full(1)),
    "1e10 times for some": replace(PLAIN, v=np.where(PLAIN.w > 1, 1e10, 1.0) * PLAIN.v),
    "1e-10 times": replace(PLAIN, v=full(1e-10), rv=full(1)),
    "before the first step": replace(PLAIN, step=0.0),
    "damaged": replace(PLAIN, v=-PLAIN.v),
    "damaged in a row": some(PLAIN, v={1: -1e-5}),
    "no clipping": replace(PLAIN, clip=0.0),
    "negative clipping": replace(PLAIN, clip=-1.0),
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

UNSETTLED = (case(140, 150, 160), {"subspace.EXACT_UP_TO": 4, "gram.BLOCK_STEPS": 3})
"""Case and sizes with which the steps are too few to tell the leading subspaces."""

COUNTED = {
    "a tie at the eighth": {"spectral_norm", "stable_rank", "effective_rank"},
    "unsettled": {"spectral_norm", "stable_rank", "effective_rank"},
    "moments not finite": {"moment_nonfinite"},
    "decay alone": {"update_direction_cosine", "momentum_direction_cosine"},
    "less decay alone": {"update_direction_cosine", "momentum_direction_cosine"},
}
"""Edges at which the oracle is held against these only: the others are rounding there, or what they
are of arrays with a NaN is not said."""

UNDEFINED = {
    "decay alone": (
        "momentum_direction_cosine power_law_alpha power_law_alpha_se power_law_distance "
        "power_law_tail power_law_xmin subspace_gap subspace_null_left subspace_null_right "
        "subspace_overlap_left subspace_overlap_right update_direction_cosine"
    ),
    "less decay alone": (
        "momentum_direction_cosine power_law_alpha power_law_alpha_se power_law_distance "
        "power_law_tail power_law_xmin subspace_gap subspace_null_left subspace_null_right "
        "subspace_overlap_left subspace_overlap_right update_direction_cosine"
    ),
    "squares underflow": (
        "angle angle_to_equilibrium channel_max_column channel_max_row cosine "
        "delta_stable_rank delta_top8_energy kurtosis max_over_rms mean_row_share "
        "momentum_direction_cosine norm_growth power_law_alpha power_law_alpha_se "
        "power_law_distance power_law_tail power_law_xmin projection rel_displacement "
        "rounding_error rounding_floor skewness stable_rank subspace_gap subspace_null_left "
        "subspace_null_right subspace_overlap_left subspace_overlap_right "
        "update_direction_cosine update_ratio update_ratio_applied update_to_weight "
        "update_weight_cosine"
    ),
    "reference of zeros": (
        "angle angle_to_equilibrium cosine power_law_alpha power_law_alpha_se "
        "power_law_distance power_law_tail power_law_xmin projection rel_displacement "
        "rounding_floor sign_flips subspace_gap subspace_null_left subspace_null_right "
        "subspace_overlap_left subspace_overlap_right update_ratio"
    ),
    "zeros": (
        "angle angle_to_equilibrium channel_max_column channel_max_row cosine effective_rank "
        "kurtosis max_over_rms mean_row_share norm_growth participation_ratio power_law_alpha "
        "power_law_alpha_se power_law_distance power_law_tail power_law_xmin rounding_error "
        "sign_flips skewness stable_rank subspace_gap subspace_null_left subspace_null_right "
        "subspace_overlap_left subspace_overlap_right update_ratio_applied update_to_weight "
        "update_weight_cosine"
    ),
    "nothing changed": (
        "delta_stable_rank delta_top8_energy power_law_alpha power_law_alpha_se "
        "power_law_distance power_law_tail power_law_xmin subspace_gap subspace_null_left "
        "subspace_null_right subspace_overlap_left subspace_overlap_right"
    ),
    "zeros, wide": (
        "angle angle_to_equilibrium channel_max_column channel_max_row cosine effective_rank "
        "kurtosis max_over_rms mean_row_share norm_growth participation_ratio power_law_alpha "
        "power_law_alpha_se power_law_distance power_law_tail power_law_xmin rounding_error "
        "sign_flips skewness stable_rank subspace_gap subspace_null_left subspace_null_right "
        "subspace_overlap_left subspace_overlap_right update_ratio_applied update_to_weight "
        "update_weight_cosine"
    ),
    "not finite, wide": (
        "abs_p999 angle angle_to_equilibrium centred_row_norm channel_max_column "
        "channel_max_row coherence coherence_ratio cosine decay_balance delta_exact "
        "delta_spectral_norm delta_spectral_norm_error delta_stable_rank delta_top8_energy "
        "diffusion displacement displacement_rms effective_rank gain_max gain_median gain_min "
        "gain_negative kurtosis l1_norm l2_norm max_abs max_change max_over_rms mean "
        "mean_row_norm mean_row_share momentum_direction_cosine norm_growth nuclear_norm "
        "participation_ratio power_law_alpha power_law_alpha_se power_law_distance "
        "power_law_tail power_law_xmin projection qk_logit_bound qk_logit_rms qk_product_norm "
        "rel_displacement rms rms_to_equilibrium rounding_error rounding_floor row_norm_max "
        "row_norm_median row_norm_min row_norm_p1 row_norm_p99 skewness spectral_exact "
        "spectral_norm spectral_norm_error stable_rank std subspace_gap subspace_null_left "
        "subspace_null_right subspace_overlap_left subspace_overlap_right "
        "update_direction_cosine update_ratio update_ratio_applied update_to_weight "
        "update_weight_cosine"
    ),
    "of eight rows": (
        "power_law_alpha power_law_alpha_se power_law_distance power_law_tail power_law_xmin "
        "subspace_gap subspace_null_left subspace_null_right subspace_overlap_left "
        "subspace_overlap_right"
    ),
    "square": "",
    "a tie at the eighth": "subspace_overlap_left subspace_overlap_right",
    "of rank eight": (
        "power_law_alpha power_law_alpha_se power_law_distance power_law_tail power_law_xmin"
    ),
    "constant": (
        "kurtosis power_law_alpha power_law_alpha_se power_law_distance power_law_tail "
        "power_law_xmin skewness subspace_gap subspace_null_left subspace_null_right "
        "subspace_overlap_left subspace_overlap_right"
    ),
    "large constant": (
        "kurtosis power_law_alpha power_law_alpha_se power_law_distance power_law_tail "
        "power_law_xmin skewness subspace_gap subspace_null_left subspace_null_right "
        "subspace_overlap_left subspace_overlap_right"
    ),
    "one element": (
        "adam_snr_se kurtosis noise_scale_se power_law_alpha power_law_alpha_se "
        "power_law_distance power_law_tail power_law_xmin skewness subspace_gap "
        "subspace_null_left subspace_null_right subspace_overlap_left subspace_overlap_right"
    ),
    "two elements": (
        "power_law_alpha power_law_alpha_se power_law_distance power_law_tail power_law_xmin "
        "subspace_gap subspace_null_left subspace_null_right subspace_overlap_left "
        "subspace_overlap_right"
    ),
    "another dtype": (
        "power_law_alpha power_law_alpha_se power_law_distance power_law_tail power_law_xmin "
        "subnormal_fraction subspace_gap subspace_null_left subspace_null_right "
        "subspace_overlap_left subspace_overlap_right"
    ),
    "no learning": (
        "coherence coherence_ratio diffusion power_law_alpha power_law_alpha_se "
        "power_law_distance power_law_tail power_law_xmin subspace_gap subspace_null_left "
        "subspace_null_right subspace_overlap_left subspace_overlap_right update_ratio"
    ),
    "squares of no learning": (
        "coherence_ratio diffusion power_law_alpha power_law_alpha_se power_law_distance "
        "power_law_tail power_law_xmin subspace_gap subspace_null_left subspace_null_right "
        "subspace_overlap_left subspace_overlap_right"
    ),
    "schedule not known": (
        "angle_to_equilibrium coherence coherence_ratio decay_between diffusion lr_between "
        "lr_sq_between momentum_direction_cosine power_law_alpha power_law_alpha_se "
        "power_law_distance power_law_tail power_law_xmin subspace_gap subspace_null_left "
        "subspace_null_right subspace_overlap_left subspace_overlap_right "
        "update_direction_cosine update_ratio"
    ),
    "no rate": (
        "power_law_alpha power_law_alpha_se power_law_distance power_law_tail power_law_xmin "
        "rms_to_equilibrium subspace_gap subspace_null_left subspace_null_right "
        "subspace_overlap_left subspace_overlap_right"
    ),
    "no weight decay": (
        "angle_to_equilibrium power_law_alpha power_law_alpha_se power_law_distance "
        "power_law_tail power_law_xmin rms_to_equilibrium subspace_gap subspace_null_left "
        "subspace_null_right subspace_overlap_left subspace_overlap_right"
    ),
    "decayed to nothing": (
        "angle_to_equilibrium diffusion power_law_alpha power_law_alpha_se power_law_distance "
        "power_law_tail power_law_xmin subspace_gap subspace_null_left subspace_null_right "
        "subspace_overlap_left subspace_overlap_right"
    ),
    "weight growth": (
        "angle_to_equilibrium diffusion power_law_alpha power_law_alpha_se power_law_distance "
        "power_law_tail power_law_xmin subspace_gap subspace_null_left subspace_null_right "
        "subspace_overlap_left subspace_overlap_right"
    ),
    "not finite": (
        "abs_p99 abs_p999 angle angle_to_equilibrium centred_row_norm channel_max_column "
        "channel_max_row coherence coherence_ratio cosine decay_balance delta_exact "
        "delta_spectral_norm delta_spectral_norm_error delta_stable_rank delta_top8_energy "
        "diffusion displacement displacement_rms effective_rank gain_max gain_median gain_min "
        "gain_negative kurtosis l1_norm l2_norm max_abs max_change max_over_rms mean "
        "mean_row_norm mean_row_share momentum_direction_cosine norm_growth nuclear_norm "
        "participation_ratio power_law_alpha power_law_alpha_se power_law_distance "
        "power_law_tail power_law_xmin projection qk_logit_bound qk_logit_rms qk_product_norm "
        "rel_displacement rms rms_to_equilibrium rounding_error rounding_floor row_norm_max "
        "row_norm_median row_norm_min row_norm_p1 row_norm_p99 skewness spectral_exact "
        "spectral_norm spectral_norm_error stable_rank std subspace_gap subspace_null_left "
        "subspace_null_right subspace_overlap_left subspace_overlap_right "
        "update_direction_cosine update_ratio update_ratio_applied update_to_weight "
        "update_weight_cosine"
    ),
    "infinite twice": (
        "abs_p99 abs_p999 angle angle_to_equilibrium centred_row_norm channel_max_column "
        "channel_max_row coherence coherence_ratio cosine delta_exact delta_spectral_norm "
        "delta_spectral_norm_error delta_stable_rank delta_top8_energy diffusion displacement "
        "displacement_rms effective_rank gain_max gain_median gain_min gain_negative kurtosis "
        "max_change max_over_rms mean_row_share momentum_direction_cosine norm_growth "
        "nuclear_norm participation_ratio power_law_alpha power_law_alpha_se "
        "power_law_distance power_law_tail power_law_xmin projection qk_logit_bound "
        "qk_logit_rms qk_product_norm rel_displacement rounding_error rounding_floor "
        "row_norm_max row_norm_median row_norm_min row_norm_p1 row_norm_p99 skewness "
        "spectral_exact spectral_norm spectral_norm_error stable_rank std subspace_gap "
        "subspace_null_left subspace_null_right subspace_overlap_left subspace_overlap_right "
        "update_direction_cosine update_ratio update_ratio_applied update_weight_cosine"
    ),
    "moments not finite": (
        "adam_snr adam_snr_mean adam_snr_se decay_balance effective_lr_max effective_lr_p1 "
        "eps_ratio grad_norm_ema grad_norm_over_clip gradient_snr log_v_std momentum_cosine "
        "momentum_direction_cosine momentum_norm momentum_over_clip noise_scale "
        "noise_scale_se norm_growth power_law_alpha power_law_alpha_se power_law_distance "
        "power_law_tail power_law_xmin subspace_gap subspace_null_left subspace_null_right "
        "subspace_overlap_left subspace_overlap_right update_direction_cosine update_kurtosis "
        "update_max update_mean_abs update_p99 update_p999 update_ratio_applied update_rms "
        "update_to_weight update_weight_cosine v_anisotropy v_column_anisotropy "
        "v_participation v_row_anisotropy v_row_top_share v_row_unseen"
    ),
    "no gradients": (
        "adam_snr adam_snr_mean adam_snr_se decay_balance gradient_snr log_v_std "
        "momentum_cosine momentum_direction_cosine momentum_sign_agreement noise_scale "
        "noise_scale_se power_law_alpha power_law_alpha_se power_law_distance power_law_tail "
        "power_law_xmin subspace_gap subspace_null_left subspace_null_right "
        "subspace_overlap_left subspace_overlap_right update_direction_cosine update_kurtosis "
        "update_weight_cosine v_anisotropy v_column_anisotropy v_participation "
        "v_row_anisotropy v_row_top_share v_shift_down v_shift_median v_shift_p1 v_shift_p10 "
        "v_shift_p90 v_shift_p99 v_shift_std v_shift_up"
    ),
    "mostly no gradients": (
        "power_law_alpha power_law_alpha_se power_law_distance power_law_tail power_law_xmin "
        "subspace_gap subspace_null_left subspace_null_right subspace_overlap_left "
        "subspace_overlap_right v_anisotropy v_row_anisotropy"
    ),
    "noise alone": (
        "gradient_snr noise_scale noise_scale_se power_law_alpha power_law_alpha_se "
        "power_law_distance power_law_tail power_law_xmin subspace_gap subspace_null_left "
        "subspace_null_right subspace_overlap_left subspace_overlap_right"
    ),
    "gradients that agree": (
        "gradient_snr noise_scale noise_scale_se power_law_alpha power_law_alpha_se "
        "power_law_distance power_law_tail power_law_xmin subspace_gap subspace_null_left "
        "subspace_null_right subspace_overlap_left subspace_overlap_right"
    ),
    "ten times": (
        "gradient_snr noise_scale noise_scale_se power_law_alpha power_law_alpha_se "
        "power_law_distance power_law_tail power_law_xmin subspace_gap subspace_null_left "
        "subspace_null_right subspace_overlap_left subspace_overlap_right"
    ),
    "a tenth": (
        "gradient_snr noise_scale noise_scale_se power_law_alpha power_law_alpha_se "
        "power_law_distance power_law_tail power_law_xmin subspace_gap subspace_null_left "
        "subspace_null_right subspace_overlap_left subspace_overlap_right"
    ),
    "1e10 times": (
        "gradient_snr noise_scale noise_scale_se power_law_alpha power_law_alpha_se "
        "power_law_distance power_law_tail power_law_xmin subspace_gap subspace_null_left "
        "subspace_null_right subspace_overlap_left subspace_overlap_right v_shift_median "
        "v_shift_p1 v_shift_p10 v_shift_p90 v_shift_p99"
    ),
    "1e10 times for some": (
        "gradient_snr noise_scale noise_scale_se power_law_alpha power_law_alpha_se "
        "power_law_distance power_law_tail power_law_xmin subspace_gap subspace_null_left "
        "subspace_null_right subspace_overlap_left subspace_overlap_right v_shift_p90 "
        "v_shift_p99"
    ),
    "1e-10 times": (
        "gradient_snr noise_scale noise_scale_se power_law_alpha power_law_alpha_se "
        "power_law_distance power_law_tail power_law_xmin subspace_gap subspace_null_left "
        "subspace_null_right subspace_overlap_left subspace_overlap_right v_shift_median "
        "v_shift_p1 v_shift_p10 v_shift_p90 v_shift_p99"
    ),
    "before the first step": (
        "adam_snr adam_snr_mean adam_snr_null adam_snr_se bound_violations decay_balance "
        "effective_lr_max effective_lr_p1 effective_lr_p50 effective_lr_p99 effective_lr_p999 "
        "eps10_fraction eps_fraction eps_ratio grad_norm_ema grad_norm_over_clip gradient_snr "
        "log_v_std momentum_direction_cosine momentum_norm momentum_over_clip noise_scale "
        "noise_scale_se norm_growth power_law_alpha power_law_alpha_se power_law_distance "
        "power_law_tail power_law_xmin subspace_gap subspace_null_left subspace_null_right "
        "subspace_overlap_left subspace_overlap_right update_direction_cosine update_kurtosis "
        "update_large_fraction update_max update_mean_abs update_p50 update_p90 update_p99 "
        "update_p999 update_ratio_applied update_rms update_to_weight update_weight_cosine "
        "v_anisotropy v_column_anisotropy v_negative v_participation v_row_anisotropy "
        "v_row_top_share v_row_unseen v_shift_down v_shift_masked v_shift_median v_shift_p1 "
        "v_shift_p10 v_shift_p90 v_shift_p99 v_shift_std v_shift_up v_zero_fraction"
    ),
    "damaged": (
        "adam_snr adam_snr_mean adam_snr_se decay_balance effective_lr_max effective_lr_p1 "
        "effective_lr_p50 effective_lr_p99 effective_lr_p999 eps_ratio grad_norm_ema "
        "grad_norm_over_clip gradient_snr log_v_std noise_scale noise_scale_se norm_growth "
        "power_law_alpha power_law_alpha_se power_law_distance power_law_tail power_law_xmin "
        "subspace_gap subspace_null_left subspace_null_right subspace_overlap_left "
        "subspace_overlap_right update_direction_cosine update_kurtosis update_max "
        "update_mean_abs update_p50 update_p90 update_p99 update_p999 update_ratio_applied "
        "update_rms update_to_weight update_weight_cosine v_anisotropy v_column_anisotropy "
        "v_row_anisotropy v_row_top_share v_row_unseen v_shift_down v_shift_median v_shift_p1 "
        "v_shift_p10 v_shift_p90 v_shift_p99 v_shift_std v_shift_up"
    ),
    "damaged in a row": (
        "decay_balance effective_lr_max effective_lr_p1 norm_growth power_law_alpha "
        "power_law_alpha_se power_law_distance power_law_tail power_law_xmin subspace_gap "
        "subspace_null_left subspace_null_right subspace_overlap_left subspace_overlap_right "
        "update_direction_cosine update_kurtosis update_max update_mean_abs update_p90 "
        "update_p99 update_p999 update_ratio_applied update_rms update_to_weight "
        "update_weight_cosine v_anisotropy v_row_top_share v_row_unseen"
    ),
    "no clipping": (
        "grad_norm_over_clip momentum_over_clip power_law_alpha power_law_alpha_se "
        "power_law_distance power_law_tail power_law_xmin subspace_gap subspace_null_left "
        "subspace_null_right subspace_overlap_left subspace_overlap_right"
    ),
    "negative clipping": (
        "grad_norm_over_clip momentum_over_clip power_law_alpha power_law_alpha_se "
        "power_law_distance power_law_tail power_law_xmin subspace_gap subspace_null_left "
        "subspace_null_right subspace_overlap_left subspace_overlap_right"
    ),
    "at the bound": (
        "decay_balance effective_lr_max effective_lr_p1 gradient_snr noise_scale "
        "noise_scale_se norm_growth power_law_alpha power_law_alpha_se power_law_distance "
        "power_law_tail power_law_xmin subspace_gap subspace_null_left subspace_null_right "
        "subspace_overlap_left subspace_overlap_right update_direction_cosine update_kurtosis "
        "update_max update_mean_abs update_p99 update_p999 update_ratio_applied update_rms "
        "update_to_weight update_weight_cosine v_anisotropy"
    ),
    "at an early bound": (
        "decay_balance effective_lr_max effective_lr_p1 gradient_snr noise_scale "
        "noise_scale_se norm_growth power_law_alpha power_law_alpha_se power_law_distance "
        "power_law_tail power_law_xmin subspace_gap subspace_null_left subspace_null_right "
        "subspace_overlap_left subspace_overlap_right update_direction_cosine update_kurtosis "
        "update_max update_mean_abs update_p99 update_p999 update_ratio_applied update_rms "
        "update_to_weight update_weight_cosine v_anisotropy"
    ),
    "no bound": (
        "gradient_snr noise_scale noise_scale_se power_law_alpha power_law_alpha_se "
        "power_law_distance power_law_tail power_law_xmin subspace_gap subspace_null_left "
        "subspace_null_right subspace_overlap_left subspace_overlap_right"
    ),
    "beta1 of one": (
        "adam_snr adam_snr_mean adam_snr_null adam_snr_se bound_violations decay_balance "
        "eps10_fraction eps_fraction eps_ratio grad_norm_ema grad_norm_over_clip gradient_snr "
        "momentum_direction_cosine momentum_norm momentum_over_clip noise_scale "
        "noise_scale_se norm_growth power_law_alpha power_law_alpha_se power_law_distance "
        "power_law_tail power_law_xmin subspace_gap subspace_null_left subspace_null_right "
        "subspace_overlap_left subspace_overlap_right update_direction_cosine update_kurtosis "
        "update_large_fraction update_max update_mean_abs update_p50 update_p90 update_p99 "
        "update_p999 update_ratio_applied update_rms update_to_weight update_weight_cosine "
        "v_negative"
    ),
    "beta2 of one": (
        "adam_snr adam_snr_mean adam_snr_null adam_snr_se bound_violations decay_balance "
        "effective_lr_max effective_lr_p1 effective_lr_p50 effective_lr_p99 effective_lr_p999 "
        "eps10_fraction eps_fraction eps_ratio grad_norm_ema grad_norm_over_clip gradient_snr "
        "log_v_std momentum_direction_cosine momentum_norm momentum_over_clip noise_scale "
        "noise_scale_se norm_growth power_law_alpha power_law_alpha_se power_law_distance "
        "power_law_tail power_law_xmin subspace_gap subspace_null_left subspace_null_right "
        "subspace_overlap_left subspace_overlap_right update_direction_cosine update_kurtosis "
        "update_large_fraction update_max update_mean_abs update_p50 update_p90 update_p99 "
        "update_p999 update_ratio_applied update_rms update_to_weight update_weight_cosine "
        "v_anisotropy v_column_anisotropy v_negative v_participation v_row_anisotropy "
        "v_row_top_share v_row_unseen v_shift_down v_shift_masked v_shift_median v_shift_p1 "
        "v_shift_p10 v_shift_p90 v_shift_p99 v_shift_std v_shift_up v_zero_fraction"
    ),
    "beta1 not known": (
        "adam_snr adam_snr_mean adam_snr_null adam_snr_se bound_violations decay_balance "
        "eps10_fraction eps_fraction eps_ratio grad_norm_ema grad_norm_over_clip gradient_snr "
        "momentum_direction_cosine momentum_norm momentum_over_clip noise_scale "
        "noise_scale_se norm_growth power_law_alpha power_law_alpha_se power_law_distance "
        "power_law_tail power_law_xmin subspace_gap subspace_null_left subspace_null_right "
        "subspace_overlap_left subspace_overlap_right update_direction_cosine update_kurtosis "
        "update_large_fraction update_max update_mean_abs update_p50 update_p90 update_p99 "
        "update_p999 update_ratio_applied update_rms update_to_weight update_weight_cosine "
        "v_negative"
    ),
    "negative epsilon": (
        "adam_snr adam_snr_null adam_snr_se bound_violations decay_balance eps10_fraction "
        "eps_fraction eps_ratio grad_norm_ema grad_norm_over_clip gradient_snr "
        "momentum_direction_cosine momentum_norm momentum_over_clip noise_scale "
        "noise_scale_se norm_growth power_law_alpha power_law_alpha_se power_law_distance "
        "power_law_tail power_law_xmin subspace_gap subspace_null_left subspace_null_right "
        "subspace_overlap_left subspace_overlap_right update_direction_cosine update_kurtosis "
        "update_large_fraction update_max update_mean_abs update_p50 update_p90 update_p99 "
        "update_p999 update_ratio_applied update_rms update_to_weight update_weight_cosine "
        "v_negative"
    ),
    "epsilon of zero": (
        "eps_ratio power_law_alpha power_law_alpha_se power_law_distance power_law_tail "
        "power_law_xmin subspace_gap subspace_null_left subspace_null_right "
        "subspace_overlap_left subspace_overlap_right v_anisotropy"
    ),
    "epsilon and squares of zero": (
        "eps_ratio norm_growth power_law_alpha power_law_alpha_se power_law_distance "
        "power_law_tail power_law_xmin subspace_gap subspace_null_left subspace_null_right "
        "subspace_overlap_left subspace_overlap_right update_direction_cosine update_kurtosis "
        "update_p90 update_p99 update_p999 update_weight_cosine v_anisotropy"
    ),
}
"""Edge → the statistics that are NaN there."""
