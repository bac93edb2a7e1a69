r"""How far a tensor lies from itself in another checkpoint (S2, S5 and T1 of the catalogue).

The reference is the preceding selected checkpoint of the branch, the other branch at the same
tokens, or the fork point; the definition is the same, and the column `against` says which.

`coherence` and `diffusion` ask what kind of walk led from the one to the other. They know the
schedule as three numbers of the steps between: :math:`\sum\eta_t`, :math:`\sum\eta_t^2`, and
:math:`\Pi=\prod(1-\eta_t\lambda)`, which is what weight decay alone leaves of a weight.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from analysis360.stats.base import accumulator, statistic, term
from analysis360.stats.moments import norm_sq
from analysis360.stats.tiles import count_zeros, magnitude, once, scratch

if TYPE_CHECKING:
    import torch

__all__ = [
    "angle", "angle_to_equilibrium", "change_counts", "coherence", "coherence_ratio", "cosine",
    "difference_sums", "diffusion", "displacement", "displacement_rms", "max_change",
    "rel_displacement", "sign_counts", "sign_flips", "unchanged_fraction", "update_ratio",
]  # fmt: skip


@accumulator(
    {"diff_sq": "sum", "cross": "sum", "tensor_sq": "sum", "reference_sq": "sum"}, version=2
)
def difference_sums(tensor: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    r"""Sums of a pair: :math:`\sum d^2`, :math:`\sum d\,(a+b)`, :math:`\sum b^2`, with d = a − b.

    The angle between nearly equal tensors comes from these and never from :math:`\sum ab`, whose
    digits cancel.
    """
    import torch

    d = _difference(tensor, reference)
    diff_sq = torch.dot(d, d)
    cross = torch.add(diff_sq, torch.dot(d, reference), alpha=2)
    return torch.stack([diff_sq, cross, norm_sq(tensor), torch.dot(reference, reference)])


@accumulator({"unchanged": "sum", "pair_count": "sum", "diff_max": "max"})
def change_counts(tensor: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """How many elements are equal (a NaN equals nothing), and the largest change of one."""
    import torch

    d = _difference(tensor, reference)
    largest = magnitude(d)
    if tensor.device.type == "cpu" and math.isfinite(largest.item()):
        unchanged = count_zeros(d)
    else:  # equal infinities have no difference; comparing is slow on a CPU
        unchanged = (tensor == reference).sum().to(torch.float64)
    return torch.stack([unchanged, torch.full_like(largest, d.numel()), largest])


def _difference(tensor: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    import torch

    def make() -> torch.Tensor:
        return torch.sub(tensor, reference, out=scratch(tensor, "difference"))

    return once("difference", (tensor, reference), make)


@accumulator({"sign_flip_count": "sum", "signed_count": "sum"})
def sign_counts(tensor: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """How many signs are opposite, and how many elements have one in both: zero and NaN do not."""
    import torch

    signs = torch.mul(
        torch.sign(tensor, out=scratch(tensor, "sign")),
        torch.sign(reference, out=scratch(tensor, "reference sign")),
        out=scratch(tensor, "sign"),
    )
    agree, signed = signs.sum(), torch.dot(signs, signs)  # agreeing less opposite, and both
    return torch.stack([(signed - agree) / 2, signed])


def _chord_sq(diff_sq: float, cross: float, tensor_sq: float, reference_sq: float) -> float:
    """Squared distance of the two unit vectors; NaN if either is zero."""
    mine, other = np.sqrt(tensor_sq), np.sqrt(reference_sq)
    if not (mine > 0 and other > 0):
        return float("nan")
    gap = cross / (mine + other)  # |a| - |b| without subtracting the norms
    return float(min(max((diff_sq - gap**2) / (mine * other), 0.0), 4.0))


@statistic(
    degree=1, invariant=("sign", "permutation", "transpose", "orthogonal"), low=0,
    code="S2", source="definition", figure="plot_divergence, plot_layers",
    null="√(nΣlr²) beside the decay, for a random walk (closed form, unit diffusion)",
)  # fmt: skip
def displacement(diff_sq: float) -> float:
    r"""Distance from the reference, :math:`\|\theta-\theta_{ref}\|_F`."""
    return float(np.sqrt(diff_sq))


@statistic(
    degree=1, invariant=("sign", "permutation", "transpose", "orthogonal"), low=0,
    code="S2", source="definition", figure="plot_layers",
    null="√Σlr² beside the decay, for a random walk (closed form, unit diffusion): 2.9e-3 over the "
    "941 steps before K2's checkpoint 160",
)  # fmt: skip
def displacement_rms(diff_sq: float, numel: float) -> float:
    r"""Root mean square change of an element, :math:`\|\theta-\theta_{ref}\|_F/\sqrt n`."""
    return float(np.sqrt(diff_sq / numel))


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose", "orthogonal"), low=0,
    code="S2", source="definition", figure="plot_divergence, plot_layers",
    null="√Σlr²/RMS(θ) for a random walk (closed form, unit diffusion): 13 % between neighbours of "
    "K2; from rounding alone see rounding_floor",
    undefined="where the reference is zero",
)  # fmt: skip
def rel_displacement(diff_sq: float, reference_sq: float) -> float:
    r"""Distance over the norm of the reference, :math:`\|\theta-\theta_{ref}\|/\|\theta_{ref}\|`.

    NaN if the reference is zero. Weights exported in bfloat16 put a floor under it: about 0.235 %
    for the difference of two (0.166 % for one). `rounding_floor` gives that of the tensor itself,
    if it is asked for.
    """
    return float(np.sqrt(diff_sq / reference_sq)) if reference_sq > 0 else float("nan")


@statistic(
    degree=1, invariant=("sign", "permutation", "transpose"), low=0,
    code="S2", source="definition", figure="plot_layers",
    null="at most 1.165 Σlr beside the decay, at Adam's betas (0.9, 0.95) (closed form)",
)  # fmt: skip
def max_change(diff_max: float) -> float:
    r"""Largest change of one element, :math:`\max|\theta-\theta_{ref}|`."""
    return diff_max


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose", "orthogonal"), low=-1, high=1,
    code="S2", source="definition", figure="plot_divergence, plot_layers",
    null="in the balance of noise and decay Π = exp(−λΣlr) (closed form); 0 ± 1/√n for independent "
    "tensors",
    undefined="where either tensor is zero",
)  # fmt: skip
def cosine(diff_sq: float, cross: float, tensor_sq: float, reference_sq: float) -> float:
    r"""Cosine of the angle to the reference.

    :math:`1-\tfrac12\|\hat\theta-\hat\theta_{ref}\|^2`, from :math:`\sum d^2` and
    :math:`\sum d(a+b)`. NaN if either tensor is zero. For small angles read `angle`.
    """
    return 1 - _chord_sq(diff_sq, cross, tensor_sq, reference_sq) / 2


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose", "orthogonal"), low=0, high=np.pi,
    code="S2", source="Kahan, How futile are mindless assessments of roundoff, section 12",
    unit="radian", figure="plot_layers",
    null="see angle_to_equilibrium; π/2 for independent tensors",
    undefined="where either tensor is zero",
)  # fmt: skip
def angle(diff_sq: float, cross: float, tensor_sq: float, reference_sq: float) -> float:
    r"""Angle to the reference, in radians.

    :math:`2\,\mathrm{atan2}(\|\hat a-\hat b\|,\|\hat a+\hat b\|)` (Kahan): right for tiny angles,
    where the arc cosine of a float32 loses everything below 1e-4. NaN if either tensor is zero.
    """
    chord = _chord_sq(diff_sq, cross, tensor_sq, reference_sq)
    return float(2 * np.arctan2(np.sqrt(chord), np.sqrt(4 - chord)))


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose", "orthogonal"), low=0,
    code="T1", source="derived; per step Kosson et al. 2024 (arXiv:2305.17212), Table 1",
    figure="plot_layers",
    null="1 in balance, over many more steps than momentum remembers (closed form)",
    undefined="for parameters that are not decayed, where the schedule is not known, where no step "
    "lies between, and for layers that hold decayed and undecayed tensors",
)  # fmt: skip
def angle_to_equilibrium(
    diff_sq: float, cross: float, tensor_sq: float, reference_sq: float, decay: float
) -> float:
    r"""Angle turned, over that which noise and weight decay turn in balance.

    Decay leaves :math:`\Pi\theta_{ref}`, and independent noise is perpendicular to it. In balance
    the norm is the same at both ends, so the cosine is :math:`\Pi`, and the angle
    :math:`\arccos\Pi\approx\sqrt{2\lambda\sum\eta_t}`, whatever the diffusion is: 0.134 between
    neighbours of K2 at checkpoint 160. Above 1 a tensor turns faster than its decay accounts for:
    its norm is below balance, or its updates agree with each other.

    It holds for :math:`1/(1-\beta_1)\ll T` steps; for a single step the angle in balance is
    :math:`\sqrt{2\eta\lambda(1-\beta_1)/(1+\beta_1)}`. NaN for parameters that are not decayed.
    """
    if not 0 < decay < 1:
        return float("nan")
    balance = 2 * np.arcsin(np.sqrt((1 - decay) / 2))  # the arc cosine, right near 1
    return angle(diff_sq, cross, tensor_sq, reference_sq) / float(balance)


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose", "orthogonal"), low=0,
    code="S2", source="definition", figure="plot_layers",
    null="1/(RMS(θ) √T) for a random walk at a constant rate (closed form, unit diffusion)",
    undefined="where the reference is zero, the schedule not known, or no step lies between",
    unit="1/learning rate",
)  # fmt: skip
def update_ratio(diff_sq: float, reference_sq: float, lr_sum: float) -> float:
    r"""Relative displacement per unit of learning rate, :math:`\delta_{rel}/\sum_t\eta_t`.

    The sum runs over the steps between the two checkpoints. NaN if the learning-rate schedule is
    not known, or no step lies between (the other branch at the same step).
    """
    if not (reference_sq > 0 and lr_sum > 0):
        return float("nan")
    return float(np.sqrt(diff_sq / reference_sq) / lr_sum)


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose"), low=0, high=1,
    code="S2", source="definition", figure="plot_layers",
    null="0 in float32; gains near 1 stored in bfloat16 move in steps of 0.4 to 0.8 %, and many "
    "stay",
)  # fmt: skip
def unchanged_fraction(unchanged: float, pair_count: float) -> float:
    """Fraction of elements exactly equal to the reference: rounding, or parameters not trained."""
    return unchanged / pair_count


@statistic(
    degree=0, invariant=("sign", "permutation", "transpose"), low=0, high=1,
    code="S2", source="definition", figure="plot_layers",
    null="arccos(c)/π for Gaussian tensors of cosine c, 0.5 for independent ones (closed form)",
    undefined="where no element has a sign in both",
)  # fmt: skip
def sign_flips(sign_flip_count: float, signed_count: float) -> float:
    r"""Fraction of elements whose sign is opposite to that in the reference.

    Of the elements that are not zero in either: zero and NaN have no sign. NaN if there is none
    such. For Gaussian tensors it is the angle over π (Sheppard 1899); less, where
    large elements turn and small ones do not.
    """
    return sign_flip_count / signed_count if signed_count > 0 else float("nan")


@term()
def undecayed_sq(diff_sq: float, cross: float, reference_sq: float, decay: float) -> float:
    r"""Squared length of :math:`\theta-\Pi\theta_{ref}`: the way without what decay did to it.

    It is :math:`d+(1-\Pi)\theta_{ref}`, so no difference of nearly equal squares is taken. If the
    two cancel, what is left of their squares is rounding, 1e-8 of their lengths.
    """
    lost = 1 - decay
    return max(diff_sq + lost * (cross - diff_sq) + lost**2 * reference_sq, 0.0)


@statistic(
    degree=1, invariant=("sign", "permutation", "transpose", "orthogonal"), low=0,
    code="S5", source="derived", figure="plot_layers",
    null="1/√T_eff for independent gradients: 0.0326 over 941 steps of constant rate (closed form; "
    "simulated 0.0320 at Adam's betas (0.9, 0.95)); a drift of 0.05, 0.2, 1 of the noise's spread "
    "gives 0.059, 0.196, 0.70 there (simulated); at most 1.165 (closed form)",
    undefined="where the schedule or the decay is not known, and where no step lies between",
)  # fmt: skip
def coherence(undecayed_sq: float, numel: float, lr_sum: float) -> float:
    r"""How straight the way was: the mean of Adam's updates, near 1 if they all agree.

    :math:`\kappa=\mathrm{RMS}(\theta-\Pi\theta_{ref})/\sum_t\eta_t`, small if they cancel. Neither
    size, layer nor learning rate enter, so it can be compared across all of them; but the number of
    steps does: for other gaps read `coherence_ratio`. Rounding of stored weights adds to it; where
    the displacement is not well above `rounding_floor`, it is that which is seen.

    NaN without a learning-rate schedule, where the weight decay is not known, and where no step
    lies between (the other branch at the same step).
    """
    return float(np.sqrt(undecayed_sq / numel) / lr_sum) if lr_sum > 0 else float("nan")


@statistic(
    degree=1, invariant=("sign", "permutation", "transpose", "orthogonal"), low=0,
    code="S5", source="derived", figure="plot_layers",
    null="1 for independent gradients, whatever the gap (closed form, for many more steps than "
    "momentum remembers; simulated 0.97 to 0.98 at Adam's betas (0.9, 0.95))",
    undefined="as coherence",
)  # fmt: skip
def coherence_ratio(undecayed_sq: float, numel: float, lr_sq_sum: float) -> float:
    r"""Coherence over that of a random walk of the same steps.

    :math:`\kappa\sqrt{T_{eff}}` with :math:`T_{eff}=(\sum\eta_t)^2/\sum\eta_t^2`, so it is
    :math:`\mathrm{RMS}(\theta-\Pi\theta_{ref})/\sqrt{\sum\eta_t^2}`. A random walk reads the same
    over any gap, a drift grows by the root of the steps.

    Notes
    -----
    That the walk reads 1, though the RMS of an update is 0.226, is momentum's doing. Each gradient
    enters the updates that follow it with weights that sum to 1, over the root of a steady second
    moment, so the sum of updates is that of gradients in units of their spread. Its variance is
    :math:`T`; a single update's is :math:`c=(1-\beta_1)/(1+\beta_1)` = 0.0526, and the correlation
    of neighbours makes up the factor :math:`1/c`. The second moment's own noise takes 2 to 3 % off.
    """
    return float(np.sqrt(undecayed_sq / numel / lr_sq_sum)) if lr_sq_sum > 0 else float("nan")


@statistic(
    degree=2, invariant=("sign", "permutation", "transpose", "orthogonal"),
    code="T1", source="derived", figure="plot_layers",
    null="1 for independent gradients of steady size (closed form); 0.685 for all of K2 up to "
    "checkpoint 123, and 0.75 from there to 279 (from published norms)",
    undefined="as coherence",
)  # fmt: skip
def diffusion(
    cross: float, reference_sq: float, numel: float, decay: float, lr_sum: float, lr_sq_sum: float,
    lr: float,
) -> float:  # fmt: skip
    r"""Diffusion that the growth of the norm implies, D.

    Of :math:`d(\|\theta\|^2/n)/dt=-2\eta\lambda\|\theta\|^2/n+D\eta^2`: what the norm has gained on
    :math:`\Pi\theta_{ref}`, over the noise that was put in and is not yet decayed,
    :math:`D=\frac{\|\theta\|^2-\Pi^2\|\theta_{ref}\|^2}{n\sum_t\eta_t^2\Pi_{>t}^2}`. The norm's
    balance is then at :math:`\sqrt{D\eta/2\lambda}`, see `rms_to_equilibrium`.

    It asks of the updates only that they are perpendicular to the weights on the whole. A loss that
    gains from larger weights adds to D, and one that pulls them in makes it smaller, even negative.

    Notes
    -----
    The sum in the denominator is that of a rate that runs straight, in :math:`\sum\eta`, to its
    value at the checkpoint. K2's cosine is met within 0.2 % over gaps in which the rate changes by
    up to a seventh, and within 3 % where it falls to a quarter.
    """
    if not (lr_sq_sum > 0 and decay > 0):
        return float("nan")
    log = -2 * math.log(decay)
    rise = lr_sq_sum - lr_sum * lr  # half of what the rate was above, at the other end
    left, early = _remaining(log)
    noise = lr_sum * lr * left + 2 * rise * early
    return (cross - math.expm1(-log) * reference_sq) / (numel * noise) if noise > 0 else math.nan


def _remaining(log: float) -> tuple[float, float]:
    r"""Integrals of :math:`e^{-Lx}` and :math:`xe^{-Lx}` over x from 0 to 1."""
    if log < 1e-4:
        return 1 - log / 2, 0.5 - log / 3
    return -math.expm1(-log) / log, (-math.expm1(-log) - log * math.exp(-log)) / log**2
