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
    "no learning": (
        "coherence coherence_ratio diffusion power_law_alpha power_law_alpha_se "
        "power_law_distance power_law_tail power_law_xmin subspace_gap subspace_null_left "
        "subspace_null_right subspace_overlap_left subspace_overlap_right update_ratio"
    ),
    "schedule not known": (
        "angle_to_equilibrium coherence coherence_ratio decay_between diffusion lr_between "
        "lr_sq_between momentum_direction_cosine power_law_alpha power_law_alpha_se "
        "power_law_distance power_law_tail power_law_xmin subspace_gap subspace_null_left "
        "subspace_null_right subspace_overlap_left subspace_overlap_right "
        "update_direction_cosine update_ratio"
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
