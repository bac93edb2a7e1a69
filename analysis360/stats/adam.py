r"""What the two Adam moments say (S3, S4, S6, S8, S9 of the catalogue).

:math:`\hat m=m/(1-\beta_1^t)`, :math:`\hat v=v/(1-\beta_2^t)`,
:math:`u=\hat m/(\sqrt{\hat v}+\epsilon)` (Kingma & Ba 2015). `t` is the parameter's own step where
the optimizer stores one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from analysis360.stats.base import accumulator, state, statistic
from analysis360.stats.tiles import magnitude, scratch

if TYPE_CHECKING:
    import torch

__all__ = [
    "adam_snr", "adam_snr_null", "adam_sums", "bound_violations", "eps10_fraction", "eps_fraction",
    "eps_ratio", "grad_norm_ema", "grad_norm_over_clip", "gradient_snr", "moment_guard",
    "moment_nonfinite", "momentum_norm", "momentum_over_clip", "noise_scale", "update",
    "update_bound", "update_max", "update_rms", "v_negative",
]  # fmt: skip


UNDERFLOW = 1.1e-19
"""Root of the smallest normal float32: what is smaller, fused optimizers flush to zero."""


@state()
def update(
    exp_avg: torch.Tensor, exp_avg_sq: torch.Tensor,
    step: float, beta1: float, beta2: float, eps: float,
) -> torch.Tensor:  # fmt: skip
    r"""Adam's direction :math:`\hat m/(\sqrt{\hat v}+\epsilon)`; 0 where both moments are zero.

    NaN before the first step, and where the step is not known.
    """
    if not step >= 1:  # no step taken, or not known
        return exp_avg * math.nan
    root = (exp_avg_sq / (1 - beta2**step)).sqrt_().add_(eps)
    u: torch.Tensor = (exp_avg / (1 - beta1**step)).div_(root)
    return u if eps > 0 else u.masked_fill_((root == 0) & (exp_avg == 0), 0.0)


def update_bound(step: float, beta1: float, beta2: float) -> float:
    r"""Largest possible :math:`|\hat m|/\sqrt{\hat v}` after `step` steps, by Cauchy–Schwarz.

    Examples
    --------
    >>> round(update_bound(1e6, 0.9, 0.95), 5), update_bound(1, 0.9, 0.95)
    (1.16496, 1.0)

    Notes
    -----
    :math:`\frac{1-\beta_1}{\sqrt{1-\beta_2}}\sqrt{\frac{1-r^t}{1-r}}\,
    \frac{\sqrt{1-\beta_2^t}}{1-\beta_1^t}` with :math:`r=\beta_1^2/\beta_2<1`. It holds for any
    sequence of gradients as long as the betas never changed.
    """
    if beta1**2 >= beta2:  # without memory of its square, a gradient of long ago is unbounded
        return math.inf if beta1 > 0 else 1.0
    r = beta1**2 / beta2
    geometric: float = math.sqrt((1 - r**step) / (1 - r))
    correction: float = math.sqrt(1 - beta2**step) / (1 - beta1**step)
    return (1 - beta1) / math.sqrt(1 - beta2) * geometric * correction


def known(step: float, beta1: float, beta2: float, eps: float) -> bool:
    """Whether a step was taken and every hyper-parameter is known and possible."""
    return step >= 1 and 0 <= beta1 < 1 and 0 <= beta2 < 1 and eps >= 0


def unknown(size: int, like: torch.Tensor) -> torch.Tensor:
    """Sums where a step or hyper-parameter is not known: all NaN, since 0/0 is not 0."""
    import torch

    return torch.full((size,), math.nan, dtype=torch.float64, device=like.device)


def noise_alone(step: float, beta1: float) -> float:
    """Ratio of the moments for independent zero-mean gradients; NaN before the first step."""
    if not (step >= 1 and 0 <= beta1 < 1):
        return math.nan
    power: float = beta1**step
    return (1 - beta1) / (1 + beta1) * (1 + power) / (1 - power)


def constants(step: float, beta1: float, beta2: float) -> tuple[float, float, float, float]:
    """What `adam_sums` needs of them: both corrections as factors, the bound, and a size below it.

    ``m != 0`` with ``v = 0`` is legal: the square underflows long before the gradient does. What a
    step adds to v is (1 − β2) g², and is lost below the smallest normal number; so is v itself, at
    most once a step. Both together are less than 2/(1 − β2) of such numbers in the corrected v.
    """
    bound = update_bound(step, beta1, beta2) * (1 + 1e-5)
    least = bound * UNDERFLOW * math.sqrt(2 / (1 - beta2))
    return 1 / (1 - beta1**step), 1 / (1 - beta2**step), bound, least


@accumulator(
    {
        "adam_count": "sum", "m_sq": "sum", "v_sum": "sum", "u_sq": "sum", "below_eps": "sum",
        "below_eps10": "sum", "violations": "sum", "negative_v": "sum", "u_max": "max",
    },
    version=2,
)  # fmt: skip
def adam_sums(
    exp_avg: torch.Tensor, exp_avg_sq: torch.Tensor,
    step: float, beta1: float, beta2: float, eps: float,
) -> torch.Tensor:  # fmt: skip
    """Sums of the bias-corrected moments and of the update, and the counts that guard them.

    All NaN before the first step, and where the step or a hyper-parameter is not known: 0/0 is
    not 0.
    """
    import torch

    if not known(step, beta1, beta2, eps):
        return unknown(9, exp_avg)
    m_factor, v_factor, bound, least = constants(step, beta1, beta2)
    v = torch.mul(exp_avg_sq, v_factor, out=scratch(exp_avg, "v"))
    v_sum = v.sum()
    root = v.sqrt_()
    m = torch.mul(exp_avg, m_factor, out=scratch(exp_avg, "m"))
    limit = torch.mul(root, bound, out=scratch(exp_avg, "limit")).add_(least)
    size = torch.abs(m, out=scratch(exp_avg, "size"))
    truth = scratch(exp_avg, "truth", torch.bool)
    counts = [
        torch.count_nonzero(torch.lt(one, other, out=truth))
        for one, other in ((root, eps), (root, 10 * eps), (limit, size), (exp_avg_sq, 0))
    ]
    u = torch.div(m, torch.add(root, eps, out=limit), out=limit)
    if eps == 0:
        u.masked_fill_((root == 0) & (m == 0), 0.0)
    values = (
        torch.full_like(v_sum, m.numel()), torch.dot(m, m), v_sum, torch.dot(u, u), *counts,
        magnitude(u),
    )  # fmt: skip
    return torch.stack([value.to(torch.float64) for value in values])


@accumulator({"m_nonfinite": "sum", "v_nonfinite": "sum"})
def moment_guard(exp_avg: torch.Tensor, exp_avg_sq: torch.Tensor) -> torch.Tensor:
    """How many elements of each moment are NaN or infinite."""
    import torch

    counts = [x.numel() - torch.isfinite(x).sum() for x in (exp_avg, exp_avg_sq)]
    return torch.stack(counts).to(torch.float64)


@statistic(
    invariant=("sign", "permutation", "transpose"), low=0,
    code="S3", source="Kingma & Ba 2015, algorithm 1 (the update)",
    null="0.226 for steady independent Gaussian gradients at β = (0.9, 0.95), 0.218 for Student's "
    "t with 3 degrees, 0.132 if 2 % of them are not zero, 0.076 if 0.5 %; simulated",
    undefined="before the first step; step or a hyper-parameter not known",
    figure="plot_moments, plot_anatomy",
)  # fmt: skip
def update_rms(u_sq: float, adam_count: float) -> float:
    r"""Root mean square of the update, :math:`\sqrt{\overline{u^2}}`.

    Near 1 when all gradients agree. Read it against the normal branch, not against the null alone:
    that depends on the gradients' distribution and holds if their size was steady over ~60 steps.
    One step of ten times the noise gives 0.37, the steps after clipping lets go 0.38. NaN before
    the first step, and where the step or a hyper-parameter is not known.
    """
    return float(np.sqrt(u_sq / adam_count))


@statistic(
    invariant=("sign", "permutation", "transpose"), low=0,
    code="S3", source="Cauchy–Schwarz; derived, see update_bound",
    null="0.87 in 2e5 coordinates of steady Gaussian noise at β = (0.9, 0.95), simulated; "
    "never above 1.165, closed form",
    undefined="before the first step; step or a hyper-parameter not known", figure="plot_layers",
)  # fmt: skip
def update_max(u_max: float) -> float:
    r"""Largest :math:`|u|`; at most 1.165 for :math:`\beta` = (0.9, 0.95), see `update_bound`.

    NaN before the first step, and where the step or a hyper-parameter is not known.
    """
    return u_max


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose"), low=0,
    code="S4", source="pooled form of the ratio of Kingma & Ba 2015, section 2.1; derived",
    null="adam_snr_null, for zero-mean noise of any distribution (closed form, of the ratio of "
    "expectations)",
    undefined="second moments all zero; before the first step; step or betas not known",
    figure="plot_moments, plot_noise",
)  # fmt: skip
def adam_snr(m_sq: float, v_sum: float) -> float:
    r"""Pooled ratio of the moments, :math:`\rho=\sum\hat m^2/\sum\hat v`.

    Zero-mean noise of steady size gives `adam_snr_null`; gradients that all agree give 1. Valid if
    the gradient's size is steady over the last ~60 steps: one step of ten times the noise reads
    0.176 at once and 0.024 twenty steps later. NaN if the second moment is all zero, before the
    first step, and where the step or a beta is not known.
    """
    return m_sq / v_sum if v_sum > 0 else float("nan")


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose"), low=0,
    code="S4", source="derived",
    null="0.0526 for β1 = 0.9 after many steps; closed form",
    undefined="before the first step; step or betas not known", figure="plot_moments, plot_noise",
)  # fmt: skip
def adam_snr_null(step: float, beta1: float, beta2: float, adam_count: float) -> float:
    r"""What `adam_snr` is for independent zero-mean gradients after `step` steps.

    :math:`c_t=\frac{1-\beta_1}{1+\beta_1}\cdot\frac{1+\beta_1^t}{1-\beta_1^t}`, which tends to
    0.0526 for :math:`\beta_1` = 0.9, and is 1 after one step. NaN before the first step, and where
    the step or a beta is not known.
    """
    if not (adam_count > 0 and 0 <= beta2 < 1):
        return float("nan")
    return noise_alone(step, beta1)


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose"), low=0,
    code="S4", source="derived",
    null="undefined half of the time under pure noise (ρ scatters about c_t); μ²/σ² for a steady "
    "drift μ in noise σ, closed form",
    undefined="ρ ≤ c_t, ρ ≥ 1, or adam_snr not defined", figure="plot_layers",
)  # fmt: skip
def gradient_snr(m_sq: float, v_sum: float, step: float, beta1: float) -> float:
    r"""Signal to noise of one step's gradient, :math:`(\rho-c_t)/(1-\rho)`.

    :math:`|G|^2/\mathrm{tr}\,\Sigma` of the whole tensor: squared length of the mean gradient over
    the summed variance of one batch. For gradients that are stationary and independent over the
    last ~60 steps. NaN, not 0, where :math:`\rho\le c_t`, the value of pure noise: read it with
    `adam_snr_se`. NaN too where :math:`\rho\ge1`, and where `adam_snr` is not defined.
    """
    ratio, null = adam_snr(m_sq, v_sum), noise_alone(step, beta1)
    return (ratio - null) / (1 - ratio) if null < ratio < 1 else math.nan


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose"), low=0,
    code="S4", source="McCandlish et al. 2018 (arXiv 1812.06162), the simple noise scale; from the "
    "moments: derived",
    null="undefined half of the time under pure noise; σ²/μ² for a steady drift, closed form",
    undefined="ρ ≤ c_t, ρ ≥ 1, or adam_snr not defined", unit="batches",
    figure="plot_layers, plot_noise",
)  # fmt: skip
def noise_scale(m_sq: float, v_sum: float, step: float, beta1: float) -> float:
    r"""Simple noise scale in units of the run's batch, :math:`(1-\rho)/(\rho-c_t)`.

    :math:`\mathrm{tr}\,\Sigma/|G|^2` of one tensor, the inverse of `gradient_snr`, with the same
    conditions; times the batch size it is in sequences or tokens. `noise_scale_se` is its standard
    error. NaN, and not infinite, where :math:`\rho\le c_t`: then the noise scale is too large to
    be seen. NaN too where :math:`\rho\ge1`, and where `adam_snr` is not defined.
    """
    ratio, null = adam_snr(m_sq, v_sum), noise_alone(step, beta1)
    return (1 - ratio) / (ratio - null) if null < ratio < 1 else math.nan


@statistic(
    degree=1, invariant=("sign", "permutation", "transpose"), low=0,
    code="S6", source="derived",
    null="none; at most the clip for all parameters together (closed form, conditions in the text)",
    undefined="before the first step; step or betas not known",
    figure="plot_moments, plot_anatomy",
)  # fmt: skip
def grad_norm_ema(v_sum: float) -> float:
    r"""Moving root mean square of the gradient norm, :math:`\sqrt{\sum\hat v}`.

    It sees clipped gradients, so the global value stays below the clip (if that is one global norm
    over the summed parameters, constant for ~100 steps); in a violent spike it saturates there and
    only the shares of the layers still say something, see `analysis360.shares`. NaN before the
    first step, and where the step or a hyper-parameter is not known.
    """
    return float(np.sqrt(v_sum)) if v_sum >= 0 else float("nan")


@statistic(
    degree=1, invariant=("sign", "permutation", "transpose"), low=0,
    code="S9", source="derived",
    null="√c_t of grad_norm_ema for zero-mean noise; closed form",
    undefined="before the first step; step or betas not known", figure="plot_layers",
)  # fmt: skip
def momentum_norm(m_sq: float) -> float:
    r"""Norm of the bias-corrected first moment, :math:`\|\hat m\|`.

    An average of clipped gradients, so at most the clip under the conditions of `grad_norm_ema`.
    NaN before the first step, and where the step or a hyper-parameter is not known.
    """
    return float(np.sqrt(m_sq))


def _over_clip(square: float, clip: float) -> float:
    return float(np.sqrt(square) / clip) if clip > 0 else math.nan


@statistic(
    degree=1, invariant=("sign", "permutation", "transpose"), low=0,
    code="S9", source="derived",
    null="at most 1 for all parameters together; closed form",
    undefined="clip not known; where grad_norm_ema is",
)  # fmt: skip
def grad_norm_over_clip(v_sum: float, clip: float) -> float:
    r"""`grad_norm_ema` over the norm to which gradients are clipped, :math:`\sqrt{\sum\hat v}/\mathrm{clip}`.

    Above 1 for all parameters together it proves wrong moments, steps or betas, if clipping is by
    one global norm over exactly these parameters, each counted once, and was constant for ~100
    steps. Of a single tensor 1 is no bound that tells much. NaN where the clip is not known or
    not positive (no clipping), before the first step, and where step or betas are not known.
    """  # noqa: E501
    return _over_clip(v_sum, clip)


@statistic(
    degree=1, invariant=("sign", "permutation", "transpose"), low=0,
    code="S9", source="derived",
    null="at most 1 for all parameters together; closed form",
    undefined="clip not known; where momentum_norm is",
)  # fmt: skip
def momentum_over_clip(m_sq: float, clip: float) -> float:
    r"""`momentum_norm` over the norm to which gradients are clipped, :math:`\|\hat m\|/\mathrm{clip}`.

    Conditions as for `grad_norm_over_clip`. NaN where the clip is not known or not positive (no
    clipping), before the first step, and where step or betas are not known.
    """  # noqa: E501
    return _over_clip(m_sq, clip)


@statistic(
    invariant=("sign", "permutation", "transpose"), low=0, high=1,
    code="S8", source="motive: Wortsman et al. 2023 (arXiv 2309.14322), section on ε",
    null="none; 0 wherever gradients are far above ε",
    undefined="before the first step; step or a hyper-parameter not known", figure="plot_moments",
)  # fmt: skip
def eps_fraction(below_eps: float, adam_count: float) -> float:
    r"""Fraction of coordinates with :math:`\sqrt{\hat v}<\epsilon`, which ε holds back.

    NaN before the first step, and where the step or a hyper-parameter is not known.
    """
    return below_eps / adam_count


@statistic(
    invariant=("sign", "permutation", "transpose"), low=0, high=1,
    code="S8", source="as eps_fraction",
    null="none; 0 wherever gradients are far above ε",
    undefined="before the first step; step or a hyper-parameter not known", figure="plot_layers",
)  # fmt: skip
def eps10_fraction(below_eps10: float, adam_count: float) -> float:
    r"""Fraction of coordinates with :math:`\sqrt{\hat v}<10\,\epsilon`.

    NaN before the first step, and where the step or a hyper-parameter is not known.
    """
    return below_eps10 / adam_count


@statistic(
    degree=1, invariant=("sign", "permutation", "transpose"), low=0,
    code="S8", source="derived; compare Wortsman et al. 2023 (arXiv 2309.14322)",
    null="at most clip/(ε√N) for all N parameters: 390 for K2; closed form",
    undefined="ε = 0; before the first step; step or a hyper-parameter not known",
    figure="plot_layers",
)  # fmt: skip
def eps_ratio(v_sum: float, adam_count: float, eps: float) -> float:
    r"""How far gradients lie above ε, :math:`\mathrm{RMS}(\sqrt{\hat v})/\epsilon`.

    Below ~10 updates shrink, and a layer may stop. NaN if ε is 0, before the first step, and where
    the step or a hyper-parameter is not known.
    """
    return float(np.sqrt(v_sum / adam_count) / eps) if v_sum >= 0 and eps > 0 else math.nan


@statistic(
    invariant=("sign", "permutation", "transpose"), low=0,
    code="S9", source="Cauchy–Schwarz; derived, see update_bound",
    null="0 for any gradients (closed form)",
    undefined="before the first step; step or a hyper-parameter not known",
)  # fmt: skip
def bound_violations(violations: float, negative_v: float) -> float:
    r"""Number of coordinates that no sequence of gradients could have produced.

    :math:`|\hat m|>B_t\sqrt{\hat v}` (see `update_bound`) or :math:`v<0`. Anything but 0 means
    wrong betas or step, moments of different checkpoints, or a damaged file; but moments that are
    stored in 16 bits are cut off where v is small, and then legal coordinates are counted. A NaN
    violates nothing: see `moment_nonfinite`. NaN before the first step, and where the step or a
    hyper-parameter is not known.
    """
    return violations + negative_v


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose"), low=0,
    code="S9", source="derived",
    null="0 (closed form)",
    undefined="before the first step; step or a hyper-parameter not known",
)  # fmt: skip
def v_negative(negative_v: float) -> float:
    """Number of coordinates whose second moment is negative: a damaged file, or not that moment.

    They are among `bound_violations`. NaN before the first step, and where the step or a
    hyper-parameter is not known.
    """
    return negative_v


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose"), low=0,
    code="S9", source="derived",
    null="0 (closed form)",
    undefined="never",
)  # fmt: skip
def moment_nonfinite(m_nonfinite: float, v_nonfinite: float) -> float:
    """Number of NaN and infinite elements in the two moments together."""
    return m_nonfinite + v_nonfinite
