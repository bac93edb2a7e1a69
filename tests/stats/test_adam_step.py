"""PyTorch's own AdamW step, from our update of the moments that it leaves (not with amsgrad)."""

import pytest
import torch

from analysis360.stats.adam import update

BETA1, BETA2, EPS, DECAY = 0.9, 0.95, 1e-8, 0.1


def stepped(lr, steps, seed, foreach, largest=1.0, dtype=torch.float32, size=5000):
    """Weights before and after the last step, and how far ours goes between them, in float64.

    For the last step weights are drawn again, 0.02 and at most `largest`.
    """
    g = torch.Generator().manual_seed(seed)
    weight = torch.nn.Parameter(torch.zeros(size, dtype=dtype))
    optimizer = torch.optim.AdamW(
        [weight], lr=lr, betas=(BETA1, BETA2), eps=EPS, weight_decay=DECAY, foreach=foreach
    )
    sizes = torch.logspace(-9, 0, size)  # from gradients below epsilon to large ones
    for step in range(steps):
        weight.grad = (torch.randn(size, generator=g) * sizes).to(dtype)
        if step == steps - 1:
            fresh = 0.02 * torch.randn(size, generator=g)
            weight.data.copy_(fresh.clamp(-largest, largest))
            before = weight.detach().clone().double()
        optimizer.step()
    state = optimizer.state[weight]
    moments = (state["exp_avg"].double(), state["exp_avg_sq"].double())
    u = update(*moments, float(state["step"]), BETA1, BETA2, EPS)
    return before, weight.detach().double(), -lr * (u + DECAY * before)


VARIANTS = pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "for-loop"])
STEPS = pytest.mark.parametrize("steps", [1, 2, pytest.param(500, marks=pytest.mark.slow)])


@VARIANTS
@STEPS
@pytest.mark.parametrize("lr", [1e-3, 1e-2])
def test_large_steps(lr, steps, foreach):
    """To 1e-5 of the largest change, for weights up to 0.06.

    At a rate of 1e-3 that is 7e-9, about a unit in the last place of 0.0625: of larger weights
    float32 does not keep as much, whatever the update.
    """
    for seed in range(5):
        before, after, ours = stepped(lr, steps, seed, foreach, largest=0.06)
        theirs = after - before
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max(), seed


@VARIANTS
@STEPS
@pytest.mark.parametrize("lr", [9.5e-5, 1e-3])
def test_in_double_precision_nothing_is_left(lr, steps, foreach):
    before, after, ours = stepped(lr, steps, 0, foreach, dtype=torch.float64)
    theirs = after - before
    assert (ours - theirs).abs().max() <= 1e-11 * theirs.abs().max()


@VARIANTS
@STEPS
def test_steps_as_small_as_those_of_k2(steps, foreach):
    """At a rate of 9.5e-5 rounding of the weights is what is left: four units of the last place."""
    for seed in range(5):
        before, after, ours = stepped(9.5e-5, steps, seed, foreach)
        largest = before.abs().max().float()
        ulp = (torch.nextafter(largest, largest.new_tensor(1.0)) - largest).double()
        assert (ours - (after - before)).abs().max() <= 4 * ulp, seed


def test_a_step_without_its_bias_correction_would_show():
    """What is proved above would not hold for the raw moments."""
    g = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(0.02 * torch.randn(100, generator=g))
    optimizer = torch.optim.AdamW([weight], lr=1e-3, betas=(BETA1, BETA2), weight_decay=DECAY)
    before = weight.detach().double()
    weight.grad = torch.randn(100, generator=g)
    optimizer.step()
    state = optimizer.state[weight]
    late = update(state["exp_avg"].double(), state["exp_avg_sq"].double(), 1e6, BETA1, BETA2, EPS)
    theirs = weight.detach().double() - before
    assert (-1e-3 * (late + DECAY * before) - theirs).abs().max() > 0.1 * theirs.abs().max()
