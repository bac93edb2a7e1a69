"""Statistics of the moments on tensors of a few elements, whose values can be had by hand."""

import math

import numpy as np
import pytest
import torch

from analysis360.stats import accumulators, merge, statistics
from analysis360.stats.adam import OPT_IN
from analysis360.stats.histograms import quantile
from analysis360.stats.preconditioner import SHIFTS, shift_edges
from tests.stats.direct import direct

FIRST = {"step": 1, "beta1": 0.5, "beta2": 0.75, "eps": 0.0}  # m̂ = 2m, v̂ = 4v
M, V = torch.tensor([1.5, -2.0]), torch.tensor([9.0, 16.0])  # m̂ = (3, −4), √v̂ = (6, 8)


def adam(name, m, v, **scalars):
    return direct([name], exp_avg=m, exp_avg_sq=v, **(FIRST | scalars))[name]


def test_update():
    """u = (½, −½)."""
    want = {
        "update_mean_abs": 0.5, "update_large_fraction": 0.0, "update_kurtosis": 1.0,
        "update_rms": 0.5, "update_max": 0.5, "momentum_norm": 5.0, "grad_norm_ema": 10.0,
        "adam_snr": 0.25, "adam_snr_mean": 0.25, "adam_snr_se": 0.0,
    }  # fmt: skip
    got = direct(want, exp_avg=M, exp_avg_sq=V, **FIRST)
    assert got == pytest.approx(want, rel=1e-12)
    for name in ("update_p50", "update_p90", "update_p99", "update_p999"):
        assert adam(name, M, V) == pytest.approx(0.5, rel=0.125)
    assert adam("update_large_fraction", 1.001 * M, V) == 1
    assert adam("update_kurtosis", torch.tensor([1.0, 0, 0, 0]), torch.ones(4)) == 4


def test_quantiles_of_the_update():
    """Of magnitudes 0.01 … 1.00: each within its bin."""
    v = torch.ones(100)
    m = torch.arange(1, 101) / 100 * torch.tensor([1.0, -1.0]).repeat(50)  # m̂/√v̂ = m
    for name, want in {"update_p50": 0.5, "update_p90": 0.9, "update_p99": 0.99}.items():
        assert adam(name, m, v) == pytest.approx(want, rel=0.07)
    m[40:] = math.nan
    assert math.isnan(adam("update_p50", m, v))
    assert adam("update_p50", torch.zeros(3), torch.zeros(3)) == 0


def test_update_beside_the_weights():
    """u = (½, −½) on θ = (1, 1) and (2, −2), with λ = 0.1 and η = 0.5."""
    given = {"exp_avg": M, "exp_avg_sq": V, **FIRST, "lr": 0.5, "weight_decay": 0.1}
    want = {
        "update_to_weight": 0.25, "update_ratio_applied": 0.5 * math.sqrt(0.52 / 2),
        "decay_balance": 0.2, "update_weight_cosine": 0.0,
        "norm_growth": (-2 * 0.5 * 0.2 + 0.25 * 0.52) / 2,
    }  # fmt: skip
    assert direct(want, weight=torch.ones(2), **given) == pytest.approx(want, abs=1e-12)
    along = torch.tensor([2.0, -2.0])  # u + λθ = 0.35 θ: a step leaves 1 − 0.175 of it
    got = direct(want, weight=along, **given)
    assert got["update_weight_cosine"] == pytest.approx(1)
    assert got["norm_growth"] == pytest.approx(0.825**2 - 1)
    none = direct(want, weight=torch.zeros(2), **given)
    assert none.pop("decay_balance") == 0 and all(math.isnan(x) for x in none.values())
    still = direct(want, weight=along, **(given | {"exp_avg": 0 * M}))
    assert math.isnan(still["decay_balance"]) and math.isnan(still["update_weight_cosine"])
    assert still["norm_growth"] == pytest.approx(0.95**2 - 1)  # decay alone


def test_growth_is_that_of_the_next_step_by_the_same_update():
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(50, generator=g, dtype=torch.float64)
    m, v = 0.1 * torch.randn(50, generator=g), torch.rand(50, generator=g) + 0.1
    u = (2 * m / (4 * v).sqrt()).double()
    after = weight - 0.01 * (u + 0.1 * weight)
    given = {"weight": weight, "exp_avg": m, "exp_avg_sq": v, "lr": 0.01, "weight_decay": 0.1}
    got = direct(["norm_growth"], **given, **FIRST)["norm_growth"]
    assert got == pytest.approx((after.norm() ** 2 / weight.norm() ** 2 - 1).item(), rel=1e-6)


def test_signal_and_noise():
    """c₁ = 1, and c∞ = 1/3 at β1 = ½; ρ = ½ is a signal to noise of 1/3, ρ ≤ c and ρ ≥ 1 of none."""
    v = torch.ones(8)

    def both(ratio, step):
        m = math.sqrt(ratio) * torch.ones(8)
        names = ["gradient_snr", "noise_scale", "noise_scale_se"]
        return direct(names, exp_avg=m, exp_avg_sq=v, **(FIRST | {"step": step}))

    got = both(0.5, 1e6)
    assert got == pytest.approx({"gradient_snr": 1 / 3, "noise_scale": 3.0, "noise_scale_se": 0.0})
    for ratio, step in ((0.5, 1), (0.33, 1e6), (1.0, 1e6), (1.2, 1e6)):
        assert all(math.isnan(x) for x in both(ratio, step).values()), (ratio, step)


def test_error_of_the_pooled_ratio():
    """Σ(m̂² − ρv̂)² by hand: m̂² = (1, 0), v̂ = (1, 1), ρ = ½ leaves (½, −½)."""
    got = adam("adam_snr_se", torch.tensor([0.5, 0.0]), torch.tensor([0.25, 0.25]))
    assert got == pytest.approx(math.sqrt(0.5) / 2)
    assert math.isnan(adam("adam_snr_se", torch.ones(1), torch.ones(1)))


def test_coordinates_that_were_never_seen():
    m, v = torch.tensor([1.5, 0.0, 1e-30]), torch.tensor([9.0, 0.0, 0.0])
    assert adam("adam_snr_mean", m, v) == pytest.approx(0.25)
    assert adam("v_zero_fraction", m, v) == pytest.approx(2 / 3)
    assert math.isnan(adam("adam_snr_mean", m[1:], v[1:]))
    assert adam("update_mean_abs", m[:2], v[:2]) == 0.25  # 0/0 is no update


def shifted(names, v, before, step=1e6, reference_step=1e6):
    return direct(
        names, exp_avg_sq=v, reference_exp_avg_sq=before, step=step,
        reference_step=reference_step, beta2=0.95,
    )  # fmt: skip


SHIFT = [name for name in statistics if name.startswith("v_shift")]


def test_shift():
    """Two decades up, none, and two down; the fourth was never seen."""
    v = 1e-13 * torch.tensor([100.0, 1.0, 0.01, 0.0], dtype=torch.float64)
    got = shifted(SHIFT, v, torch.full((4,), 1e-13, dtype=torch.float64))
    assert got["v_shift_median"] == pytest.approx(0, abs=1e-9)
    assert got["v_shift_p1"] == pytest.approx(-2, abs=1 / 64)
    assert got["v_shift_p99"] == pytest.approx(2, abs=1 / 64)
    assert got["v_shift_std"] == pytest.approx(math.sqrt(8 / 3))
    assert got["v_shift_up"] == got["v_shift_down"] == pytest.approx(1 / 3)
    assert got["v_shift_masked"] == 0.25


def test_shift_counts_each_step_of_its_own():
    """The same v after one step and after two: v̂ was 1 − β² over 1 − β = 1.95 times as large."""
    got = shifted(SHIFT, torch.ones(3), torch.ones(3), step=1, reference_step=2)
    assert got["v_shift_median"] == pytest.approx(math.log10(1.95), abs=1 / 128)
    assert got["v_shift_std"] == 0


def test_shift_percentiles_of_a_ramp():
    """Shifts of −0.5 … 0.5: percentiles to a bin."""
    d = torch.linspace(-0.5, 0.5, 10_001, dtype=torch.float64)
    got = shifted(SHIFT, 10**d, torch.ones_like(d))
    for name, want in {"p1": -0.49, "p10": -0.4, "median": 0, "p90": 0.4, "p99": 0.49}.items():
        assert got[f"v_shift_{name}"] == pytest.approx(want, abs=1 / 640)
    assert got["v_shift_std"] == pytest.approx(1 / math.sqrt(12), rel=1e-3)


def test_shift_beyond_its_histogram():
    got = shifted(SHIFT, torch.full((3,), 1e10), torch.ones(3))
    assert math.isnan(got["v_shift_median"]) and got["v_shift_up"] == 1
    nothing = shifted(SHIFT, torch.zeros(3), torch.ones(3))
    assert nothing.pop("v_shift_masked") == 1 and all(math.isnan(x) for x in nothing.values())
    odd = torch.tensor([math.nan, math.inf, -1.0, 1.0])
    assert shifted(SHIFT, odd, torch.ones(4))["v_shift_masked"] == 0.75


def test_shifts_of_parts_add_up():
    g = torch.Generator().manual_seed(1)
    v, before = (torch.rand(1000, generator=g, dtype=torch.float64) for _ in range(2))
    entry = accumulators["v_shift_sums"]

    def sums(one, other):
        return entry.function(one, other, step=9.0, reference_step=7.0, beta2=0.95).numpy()

    parts = np.stack([sums(a, b) for a, b in zip(v.split(300), before.split(300))])
    merged = merge(entry.fields, parts, np.zeros(1, dtype=np.intp))[0]
    np.testing.assert_allclose(merged, sums(v, before), rtol=1e-12)
    assert merged[6:].sum() == 1000 and len(shift_edges()) == SHIFTS + 1


def test_epsilon_and_the_rate():
    """√v̂ = 0 and 2 at ε = 0.5, η = 1: rates of 2 and 0.4."""
    v = torch.tensor([0.0, 1.0])
    given = {"exp_avg": torch.zeros(2), "exp_avg_sq": v, **FIRST, "eps": 0.5, "lr": 1.0}
    got = direct([n for n in statistics if n.startswith(("eps", "effective"))], **given)
    assert got["eps_ratio"] == pytest.approx(math.sqrt(2) / 0.5)
    assert got["effective_lr_max"] == got["effective_lr_p99"] == got["effective_lr_p999"] == 2
    assert got["effective_lr_p1"] == pytest.approx(0.4, rel=0.1)
    assert got["eps_fraction"] == got["eps10_fraction"] / 2 == 0.5
    assert math.isnan(adam("eps_ratio", M, V)) and adam("eps_ratio", M, V, eps=0.1) > 0


def test_rates_fall_as_second_moments_grow():
    """√v̂ = 1 … 100: the rate's percentiles are those of 1/√v̂ to a bin."""
    v = torch.arange(1, 101).double() ** 2 / 4
    names = {"p1": 1 / 99, "p50": 1 / 50, "p99": 1.0}
    got = direct([f"effective_lr_{n}" for n in names], exp_avg_sq=v, **FIRST, lr=1.0)
    for name, want in names.items():
        assert got[f"effective_lr_{name}"] == pytest.approx(want, rel=0.125)


def test_spread_and_channels():
    """√v̂ of 1 and 1000 are three decades apart; one row has 4.5 times the middle one's share."""
    far = torch.tensor([1.0, 1e6])
    assert adam("v_anisotropy", far, far) == pytest.approx(3, abs=0.1)
    assert math.isnan(adam("v_anisotropy", far, 0 * far))
    lone = torch.tensor([5.0, 0, 0, 0])
    assert adam("v_participation", lone, lone) == pytest.approx(0.25)
    assert adam("v_participation", lone, 1e-20 * torch.ones(4)) == pytest.approx(1)
    assert math.isnan(adam("v_participation", lone, 0 * lone))
    assert adam("log_v_std", lone, torch.tensor([1.0, math.e**2, 0])) == pytest.approx(1)
    assert adam("log_v_std", lone, torch.full((1000,), 1e-13)) == 0
    rows = torch.tensor([[1.0, 1], [2, 2], [9, 9]])
    assert adam("v_row_anisotropy", rows, rows) == pytest.approx(4.5)
    assert adam("v_column_anisotropy", rows, rows) == pytest.approx(1)
    assert adam("v_column_anisotropy", rows, rows.T.contiguous()) == pytest.approx(4.5)
    assert math.isnan(adam("v_row_anisotropy", rows, rows * torch.tensor([[1.0], [0], [0]])))
    found = accumulators["row_v_sums"].function(rows.double(), step=1, beta2=0.75)
    assert found.tolist() == [[8.0, 16.0, 72.0]]
    found = accumulators["column_v_sums"].function(rows.double(), step=1, beta2=0.75)
    assert found.tolist() == [[48.0, 48.0]]


def test_directions():
    """From (1, 0) to (½, −1): by decay alone to (½, 0), the rest along −m."""
    names = ["update_direction_cosine", "momentum_direction_cosine"]
    given = {
        "reference_weight": torch.tensor([1.0, 0.0]), "weight": torch.tensor([0.5, -1.0]),
        "exp_avg": torch.tensor([0.0, 3.0]), "exp_avg_sq": torch.ones(2), **FIRST,
    }  # fmt: skip
    ahead = direct(names, **given, decay=0.5)
    assert ahead == pytest.approx(dict.fromkeys(names, 1.0))
    back = direct(names, **(given | {"exp_avg": torch.tensor([0.0, -3.0])}), decay=0.5)
    assert back == pytest.approx(dict.fromkeys(names, -1.0))
    mixed = direct(names, **given, decay=1.0)
    assert mixed == pytest.approx(dict.fromkeys(names, 1 / math.sqrt(1.25)))
    told_apart = direct(names, **(given | {"exp_avg": M, "exp_avg_sq": V}), decay=0.5)
    assert told_apart == pytest.approx(dict(zip(names, (-math.sqrt(0.5), -0.8))))
    for still in ({"decay": math.nan}, {"weight": torch.tensor([0.5, 0.0]), "decay": 0.5}):
        assert all(math.isnan(x) for x in direct(names, **(given | still)).values())


def test_momenta():
    """Of four pairs of signs one has a zero and two of the others agree."""
    names = ["momentum_cosine", "momentum_sign_agreement"]
    m, other = torch.tensor([1.0, 2, 0, -1]), torch.tensor([1.0, -1, 3, -2])
    got = direct(names, exp_avg=m, reference_exp_avg=other)
    assert got == pytest.approx(dict(zip(names, (1 / math.sqrt(6 * 15), 2 / 3))))
    none = direct(names, exp_avg=m, reference_exp_avg=torch.tensor([0.0, 0, 1, 0]))
    assert none["momentum_cosine"] == 0 and math.isnan(none["momentum_sign_agreement"])
    assert all(math.isnan(x) for x in direct(names, exp_avg=m, reference_exp_avg=0 * m).values())


def test_clip():
    """√Σv̂ = 10 and ‖m̂‖ = 5."""
    assert adam("grad_norm_over_clip", M, V, clip=8.0) == pytest.approx(1.25)
    assert adam("momentum_over_clip", M, V, clip=8.0) == pytest.approx(0.625)
    for clip in (0.0, math.nan):
        assert math.isnan(adam("grad_norm_over_clip", M, V, clip=clip))
        assert math.isnan(adam("momentum_over_clip", M, V, clip=clip))


def test_damage_is_counted():
    m, v = torch.tensor([math.nan, 1.0, math.inf, 0.1]), torch.tensor([1.0, math.nan, 1.0, -1.0])
    assert adam("moment_nonfinite", m, v) == 3
    assert adam("moment_nonfinite", M, V, step=math.nan) == 0  # needs no step
    assert adam("v_negative", m, v) == 1 and adam("v_negative", M, V) == 0
    assert adam("bound_violations", M, -V) == 2 and adam("bound_violations", M, V) == 0


ALWAYS = {"moment_nonfinite", "momentum_cosine", "momentum_sign_agreement"}
"""Statistics of the moments that need neither step nor betas."""


@pytest.mark.parametrize(
    "change",
    [{"step": 0}, {"step": math.nan}, {"beta2": math.nan}, {"beta2": 1.0}], ids=str,
)  # fmt: skip
def test_what_is_not_known_is_not_a_number(change):
    every = [
        name for name, entry in statistics.items()
        if any({"exp_avg", "exp_avg_sq"} & set(m.inputs) for m in entry.measures)
        and "reference" not in {n for m in entry.measures for n in m.inputs}
    ]  # fmt: skip
    square = torch.tensor([[1.5, 2.0], [0.5, 1.0]])
    given = {
        "weight": square, "reference_weight": 2 * square, "exp_avg": square,
        "reference_exp_avg": square, "exp_avg_sq": square**2, "reference_exp_avg_sq": square**2,
        **FIRST, "step": 7, "eps": 1e-8, "reference_step": 7, "lr": 1.0, "weight_decay": 0.1,
        "decay": 0.9, "clip": 1.0,
    }  # fmt: skip
    known = direct(every, **given)
    missing = {n for n, x in known.items() if math.isnan(x)}
    assert missing <= {"gradient_snr", "noise_scale", "noise_scale_se"}, missing
    lost = direct(every, **(given | change))
    assert {n for n, x in lost.items() if not math.isnan(x)} == ALWAYS
    assert len(every) > 40


def test_without_decay_only_what_needs_it_is_lost():
    names = ["update_ratio_applied", "decay_balance", "norm_growth"]
    kept = ["update_to_weight", "update_weight_cosine"]
    given = {"weight": M, "exp_avg": M, "exp_avg_sq": V, **FIRST, "lr": 1.0}
    got = direct([*names, *kept], **given)
    assert all(math.isnan(got[n]) for n in names) and not any(math.isnan(got[n]) for n in kept)


def test_the_last_bin_is_open():
    edges = np.array([0.0, 1.0, 2.0, np.inf])
    assert quantile(np.array([1.0, 1.0, 0.0]), edges, 1.0, below=0.0) == 2
    assert math.isnan(quantile(np.array([1.0, 1.0, 1.0]), edges, 0.9, below=0.0))
    assert quantile(np.array([1.0, 1.0, 1.0]), edges, 0.1, below=-7.0) == -7
    assert math.isnan(quantile(np.zeros(3), edges, 0.5, below=0.0))


def test_what_is_measured_unasked():
    from analysis360.stats import DEFAULT

    assert {"momentum_norm", "noise_scale", "eps_ratio"} <= set(DEFAULT)
    assert not set(OPT_IN) & set(DEFAULT) and "update_p50" not in DEFAULT
    own = {m.name for n in DEFAULT for m in statistics[n].measures}
    assert own == {
        "norm_sums", "moment_sums", "value_counts", "difference_sums", "change_counts", "adam_sums"
    }  # fmt: skip
