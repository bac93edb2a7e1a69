"""What statistics of the moments read under stated models of the gradient, and where that ends.

Independent gradients, 600 steps at β = (0.9, 0.95) without bias correction, ε = 0, unless said.
"""

import math

import numpy as np
import pytest
import torch

from analysis360.stats.adam import update_bound
from tests.measured import moments as through_measure
from tests.stats.direct import direct
from tests.stats.simulated import BETA1, BETA2, STEPS, Gradients, moments, walk

LATE = {"step": 1e6, "beta1": BETA1, "beta2": BETA2, "eps": 0.0}  # correction is done with
NULL = (1 - BETA1) / (1 + BETA1)
SIZE = 200_000

pytestmark = pytest.mark.slow


def read(names, m, v, **more):
    return direct(names, exp_avg=m, exp_avg_sq=v, **(LATE | more))


GAUSSIAN = {  # value and tolerance at a million coordinates
    "update_rms": (0.226, 0.002), "adam_snr": (0.0526, 0.0005), "log_v_std": (0.225, 0.003),
    "update_mean_abs": (0.1825, 0.001), "update_large_fraction": (0.0224, 0.001),
    "update_kurtosis": (2.72, 0.02), "adam_snr_mean": (0.0511, 0.0005),
    "v_participation": (0.951, 0.001), "update_p50": (0.1575, 0.002),
    "update_p90": (0.372, 0.002), "update_p99": (0.555, 0.005), "update_p999": (0.676, 0.01),
    "v_anisotropy": (0.238, 0.005), "update_max": (0.88, 0.06),
}  # fmt: skip


@pytest.mark.parametrize("size", [50_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_gaussian(size):
    """Tolerances are those of a million coordinates; with fewer they are wider by the root."""
    m, v = moments(size, Gradients(seed=1))
    row = through_measure(m, v, STEPS, BETA1, BETA2, 0.0, [*GAUSSIAN, "bound_violations"])
    for name, (want, tolerance) in GAUSSIAN.items():
        assert row[name] == pytest.approx(want, abs=tolerance * (1e6 / size) ** 0.5), name
    assert row["bound_violations"] == 0 and row["update_max"] < update_bound(STEPS, BETA1, BETA2)


def test_ratio_is_within_its_standard_error():
    """Of fifty tensors of 2,000 coordinates, ρ scatters by what its error says; so does noise."""
    names = ["adam_snr", "adam_snr_se", "noise_scale", "noise_scale_se"]
    for drift in (0.0, 0.5):
        m, v = moments(SIZE // 2, Gradients(drift=drift, seed=2))
        rows = [read(names, a, b) for a, b in zip(m.split(2000), v.split(2000))]
        want = (drift**2 + NULL) / (drift**2 + 1)
        for name, truth in (("adam_snr", want), ("noise_scale", 1 / max(drift, 1e-9) ** 2)):
            if name == "noise_scale" and drift == 0:
                continue
            values, errors = (np.array([row[n] for row in rows]) for n in (name, f"{name}_se"))
            assert values.std() == pytest.approx(errors.mean(), rel=0.3), (drift, name)
            assert abs(values.mean() - truth) < 4 * errors.mean() / 50**0.5, (drift, name)


def test_error_of_the_ratio_falls_with_the_root_of_n():
    m, v = moments(SIZE, Gradients(seed=3))
    assert read(["adam_snr_se"], m, v)["adam_snr_se"] * SIZE**0.5 == pytest.approx(0.072, abs=0.003)


@pytest.mark.parametrize(
    ("drift", "ratio", "rms"), [(0.1, 0.0622, 0.245), (0.5, 0.2424, 0.480), (2.0, 0.811, 0.896)]
)
def test_drift(drift, ratio, rms):
    """A mean gradient of μ standard deviations: ρ and RMS(u) rise, μ² is found again."""
    m, v = moments(SIZE, Gradients(drift=drift, seed=4))
    names = ["adam_snr", "update_rms", "gradient_snr", "noise_scale", "noise_scale_se"]
    got = read(names, m, v)
    assert got["adam_snr"] == pytest.approx(ratio, abs=0.001)
    assert got["adam_snr"] == pytest.approx((drift**2 + NULL) / (drift**2 + 1), abs=0.001)
    assert got["update_rms"] == pytest.approx(rms, abs=0.002)
    assert got["gradient_snr"] == pytest.approx(drift**2, rel=0.1)
    assert abs(got["noise_scale"] - drift**-2) < 4 * got["noise_scale_se"]


@pytest.mark.parametrize(
    ("kind", "rms", "tolerance"), [("t3", 0.218, 0.003), (0.02, 0.132, 0.004), (0.005, 0.0765, 0.004)]
)  # fmt: skip
def test_other_distributions(kind, rms, tolerance):
    """Heavy tails and sparse gradients lower RMS(u) and the mean of ρ; pooled ρ stays."""
    m, v = moments(SIZE // 4, Gradients(kind, seed=5))
    got = read(["update_rms", "adam_snr", "adam_snr_se", "adam_snr_mean"], m, v)
    assert got["update_rms"] == pytest.approx(rms, abs=tolerance)
    assert abs(got["adam_snr"] - NULL) < 4 * got["adam_snr_se"]
    assert got["adam_snr_mean"] < 0.0485


@pytest.mark.parametrize(
    ("lag", "ratio", "rms"), [(0, 0.176, 0.372), (5, 0.0824, 0.270), (20, 0.024, 0.181)]
)
def test_one_large_step(lag, ratio, rms):
    """One step of ten times the noise looks like signal at once, and like none after."""
    m, v = moments(SIZE // 2, Gradients(seed=6), scale=lambda t: 10 if t == STEPS - lag else 1)
    got = read(["adam_snr", "update_rms"], m, v)
    assert got["adam_snr"] == pytest.approx(ratio, abs=0.002)
    assert got["update_rms"] == pytest.approx(rms, abs=0.003)


def test_clipping_and_its_release():
    """A quiet tensor while another one spikes: a hundred steps of clipping to a tenth.

    Its √v falls eightfold, its rate grows as much, its updates shrink; then they burst.
    """
    gradients = Gradients(seed=7)
    calm = moments(50_000, gradients, steps=400)
    ref = {"reference_exp_avg_sq": calm[1], "reference_step": 1e6, "lr": 1.0}
    early = moments(50_000, gradients, scale=lambda t: 0.1, steps=20, start=calm)
    assert read(["update_rms"], *early)["update_rms"] == pytest.approx(0.06, abs=0.005)
    last = moments(50_000, gradients, scale=lambda t: 0.1, steps=100, start=calm)
    names = ["update_rms", "v_shift_median", "v_shift_down", "effective_lr_p50"]
    got = read(names, *last, **ref)
    assert got["update_rms"] == pytest.approx(0.18, abs=0.005)
    assert 10 ** (-got["v_shift_median"] / 2) == pytest.approx(8, abs=0.2)
    assert got["v_shift_down"] > 0.999 and got["effective_lr_p50"] == pytest.approx(8, abs=0.2)
    burst = []
    for _ in range(6):
        last = moments(50_000, gradients, steps=1, start=last)
        burst.append(read(["update_rms"], *last)["update_rms"])
    assert max(burst) == pytest.approx(0.385, abs=0.01)
    assert max(burst) / read(["update_rms"], *calm)["update_rms"] == pytest.approx(1.7, abs=0.05)


def test_two_snapshots():
    """Independent snapshots of v differ by 0.138 decades a coordinate, in the middle by nothing."""
    v, before = (moments(SIZE // 2, Gradients(seed=seed))[1] for seed in (8, 9))
    names = [f"v_shift_{q}" for q in ("median", "p1", "p10", "p90", "p99", "std", "up", "down")]
    got = direct(
        names, exp_avg_sq=v, reference_exp_avg_sq=before, step=1e6, reference_step=1e6, beta2=BETA2
    )
    want = (0, -0.322, -0.177, 0.177, 0.322, 0.138, 0, 0)
    assert got == pytest.approx(dict(zip(names, want)), abs=0.004)
    first_order = math.sqrt(2) * math.sqrt(2 * (1 - BETA2) / (1 + BETA2)) / math.log(10)
    assert got["v_shift_std"] == pytest.approx(first_order, rel=0.02)


def test_two_momenta_of_noise():
    m, other = (moments(SIZE // 2, Gradients(seed=seed), steps=60)[0] for seed in (10, 11))
    got = direct(["momentum_cosine", "momentum_sign_agreement"], exp_avg=m, reference_exp_avg=other)
    assert abs(got["momentum_cosine"]) < 4 / (SIZE // 2) ** 0.5
    assert abs(got["momentum_sign_agreement"] - 0.5) < 2 / (SIZE // 2) ** 0.5


def back(steps, size, drift=0.0, sizes=None):
    start, end, m, v, decay = walk(size, Gradients(drift=drift, seed=12), steps, sizes=sizes)
    names = ["update_direction_cosine", "momentum_direction_cosine"]
    return read(names, m, v, weight=end, reference_weight=start, decay=decay)


def test_last_update_against_the_way_of_941_steps():
    """0.075 whatever the sizes of the gradients; that of the momentum depends on them."""
    size = 50_000  # a standard error of 0.0045
    equal = back(941, size)
    spread = torch.randn(size, generator=torch.Generator().manual_seed(13)).exp()
    log_normal = back(941, size, sizes=spread)
    for got in (equal, log_normal):
        assert got["update_direction_cosine"] == pytest.approx(0.077, abs=0.012)
    assert equal["momentum_direction_cosine"] == pytest.approx(0.076, abs=0.012)
    assert log_normal["momentum_direction_cosine"] == pytest.approx(0.04, abs=0.013)


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "cosine"), [(1882, 0.053), (2823, 0.043)])
def test_last_update_against_a_longer_way(steps, cosine):
    got = back(steps, 400_000)["update_direction_cosine"]
    assert got == pytest.approx(cosine, abs=0.005)  # three standard errors, 1/√n


@pytest.mark.parametrize(("drift", "cosine"), [(0.05, 0.22), (0.2, 0.65)])
def test_last_update_against_a_way_with_drift(drift, cosine):
    got = back(941, 50_000, drift=drift)
    assert got["momentum_direction_cosine"] == pytest.approx(cosine, abs=0.02)
