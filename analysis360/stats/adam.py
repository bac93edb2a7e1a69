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
    "grad_norm_ema", "update", "update_bound", "update_max", "update_rms",
]  # fmt: skip


UNDERFLOW = 1.1e-19
"""Root of the smallest normal float32: a smaller gradient has a second moment of zero."""


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


def constants(step: float, beta1: float, beta2: float) -> tuple[float, float, float, float]:
    """What `adam_sums` needs of them: both corrections as factors, the bound, and a size below it.

    ``m != 0`` with ``v = 0`` is legal: the square underflows long before the gradient does.
    """
    bound = update_bound(step, beta1, beta2) * (1 + 1e-5)
    return 1 / (1 - beta1**step), 1 / (1 - beta2**step), bound, UNDERFLOW


@accumulator(
    {
        "adam_count": "sum", "m_sq": "sum", "v_sum": "sum", "u_sq": "sum", "below_eps": "sum",
        "below_eps10": "sum", "violations": "sum", "negative_v": "sum", "u_max": "max",
    }
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
        return torch.full((9,), math.nan, dtype=torch.float64, device=exp_avg.device)
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


@statistic(degree=None, invariant=("sign", "permutation", "transpose"), low=0)
def update_rms(u_sq: float, adam_count: float) -> float:
    r"""Root mean square of the update, :math:`\sqrt{\overline{u^2}}`.

    0.226 for steady Gaussian noise at :math:`\beta` = (0.9, 0.95), less for sparse or heavy-tailed
    gradients, near 1 when all gradients agree. Read it against the normal branch, not against the
    null alone.
    """
    return float(np.sqrt(u_sq / adam_count))


@statistic(degree=None, invariant=("sign", "permutation", "transpose"), low=0)
def update_max(u_max: float) -> float:
    r"""Largest :math:`|u|`; at most 1.165 for :math:`\beta` = (0.9, 0.95), see `update_bound`."""
    return u_max


@statistic(degree=0, invariant=("sign", "permutation", "transpose"), low=0)
def adam_snr(m_sq: float, v_sum: float) -> float:
    r"""Pooled ratio of the moments, :math:`\rho=\sum\hat m^2/\sum\hat v`.

    Zero-mean noise of steady size gives `adam_snr_null`; gradients that all agree give 1. Valid if
    the gradient's size is steady over the last ~60 steps. NaN if the second moment is all zero.
    """
    return m_sq / v_sum if v_sum > 0 else float("nan")


@statistic(degree=0, invariant=("sign", "permutation", "transpose"), low=0)
def adam_snr_null(step: float, beta1: float, beta2: float, adam_count: float) -> float:
    r"""What `adam_snr` is for independent zero-mean gradients after `step` steps.

    :math:`\frac{1-\beta_1}{1+\beta_1}\cdot\frac{1+\beta_1^t}{1-\beta_1^t}`, which tends to 0.0526
    for :math:`\beta_1` = 0.9.
    """
    if not (adam_count > 0 and step >= 1):
        return float("nan")
    power = beta1**step
    return float((1 - beta1) / (1 + beta1) * (1 + power) / (1 - power))


@statistic(degree=1, invariant=("sign", "permutation", "transpose"), low=0)
def grad_norm_ema(v_sum: float) -> float:
    r"""Moving root mean square of the gradient norm, :math:`\sqrt{\sum\hat v}`.

    It sees clipped gradients, so the global value stays below the clip; in a violent spike it
    saturates there and only the shares of the layers still say something.
    """
    return float(np.sqrt(v_sum)) if v_sum >= 0 else float("nan")


@statistic(degree=None, invariant=("sign", "permutation", "transpose"), low=0, high=1)
def eps_fraction(below_eps: float, adam_count: float) -> float:
    r"""Fraction of coordinates with :math:`\sqrt{\hat v}<\epsilon`, which ε holds back."""
    return below_eps / adam_count


@statistic(degree=None, invariant=("sign", "permutation", "transpose"), low=0, high=1)
def eps10_fraction(below_eps10: float, adam_count: float) -> float:
    r"""Fraction of coordinates with :math:`\sqrt{\hat v}<10\,\epsilon`."""
    return below_eps10 / adam_count


@statistic(degree=None, invariant=("sign", "permutation", "transpose"), low=0)
def bound_violations(violations: float, negative_v: float) -> float:
    r"""Number of coordinates that no sequence of gradients could have produced.

    :math:`|\hat m|>B_t\sqrt{\hat v}` (see `update_bound`) or :math:`v<0`. Anything but 0 means
    wrong betas or step, moments of different checkpoints, or a damaged file.
    """
    return violations + negative_v
