"""A real pair of branches: trained with AdamW, saved, measured by the public path, held to float64."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch

import analysis360 as a360
from analysis360.recipe import LearningRate
from tests.small_run import SHAPES, TOML, tensors, write_checkpoint

FORK, LAST, EACH = 1, 7, 100


pytestmark = pytest.mark.slow


def is_matrix(name):
    return len(SHAPES[name]) > 1


class Branch:
    """Weights under AdamW, with gradients that are nothing but noise."""

    def __init__(self, seed, start):
        self.noise = torch.Generator().manual_seed(seed)
        self.weights = {n: torch.nn.Parameter(w.clone()) for n, w in start.items()}
        groups = [
            {"params": [w for n, w in self.weights.items() if is_matrix(n) == decayed],
             "weight_decay": 0.1 if decayed else 0.0}
            for decayed in (True, False)
        ]  # fmt: skip
        # its memory is short beside the steps between checkpoints, as it is in large runs
        self.optimizer = torch.optim.AdamW(groups, betas=(0.5, 0.95))

    def train(self, first, last, rate):
        for step in range(first + 1, last + 1):
            for group in self.optimizer.param_groups:
                group["lr"] = rate.at(step)
            for w in self.weights.values():
                w.grad = torch.randn(w.shape, generator=self.noise)
            self.optimizer.step()

    def saved(self):
        return {n: w.detach().clone() for n, w in self.weights.items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Run, results folder, and weights by branch and number; `spike` left `normal` at 1."""
    folder = tmp_path_factory.mktemp("pair")
    (folder / "analysis360.toml").write_text(TOML.replace('loss = ["log.csv"]', "loss = []"))
    rate = LearningRate(peak=1e-2, final=1e-3, warmup=10, total=1000)
    start = {n: 25 * w for n, w in tensors(0, SHAPES).items()}  # decay is felt
    trunk = Branch(1, start)
    trunk.train(0, FORK * EACH, rate)
    kept = {("normal", 0): start, ("normal", FORK): trunk.saved(), ("spike", FORK): trunk.saved()}
    for branch, seed in (("normal", 2), ("spike", 3)):
        mine = Branch(seed, trunk.saved())
        mine.optimizer.load_state_dict(copy.deepcopy(trunk.optimizer.state_dict()))
        for number in range(FORK + 1, LAST + 1):
            mine.train((number - 1) * EACH, number * EACH, rate)
            kept[branch, number] = mine.saved()
    for (branch, number), weights in kept.items():
        target = folder / "checkpoints" / f"{branch}_ckpt_{number:03d}"
        write_checkpoint(target, weights, optimizer=False, dtype=torch.float32)
    run = a360.open_run(folder)
    plan = a360.plan(run, against=["partner", "ancestor"])
    plan.run(folder / "measured", progress=False)
    return run, folder / "measured", kept, rate


def displacements(kept, rate, names, number, decayed):
    """Of both branches from the ancestor, in float64, without decay if `decayed`."""
    left = np.prod([1 - rate.at(s) * 0.1 for s in range(FORK * EACH + 1, number * EACH + 1)])
    found = []
    for branch in ("spike", "normal"):
        parts = [
            kept[branch, number][n].double().numpy().ravel()
            - (left if decayed and is_matrix(n) else 1.0)
            * kept["normal", FORK][n].double().numpy().ravel()
            for n in names
        ]
        found.append(np.concatenate(parts))
    return found


def direct(s, n):
    a = (s @ n) / (n @ n)
    return {
        "relative": np.linalg.norm(s - n) / np.linalg.norm(n),
        "cosine": (s @ n) / np.sqrt((s @ s) * (n @ n)),
        "along": a, "across": np.linalg.norm(s - a * n) / np.linalg.norm(n),
        "moved": np.linalg.norm(s), "moved_to": np.linalg.norm(n),
    }  # fmt: skip


def held(got, kept, rate, names, number):
    for end in ("", "_undecayed"):
        want = direct(*displacements(kept, rate, names, number, bool(end)))
        for name, value in want.items():
            assert got[name + end] == pytest.approx(value, rel=1e-9, abs=1e-11), (name + end, names)
    s, n = displacements(kept, rate, names, number, False)
    assert got["distance"] == pytest.approx(np.linalg.norm(s - n), rel=1e-10)


def test_tensors_layers_and_all(trained):
    _, folder, kept, rate = trained
    table = a360.load_table(folder)
    apart = a360.branch_divergence(table, "spike", "normal")
    later = apart[apart["number"] > FORK]
    assert len(later) == len(SHAPES) * (LAST - FORK) and set(later["status"]) == {"matched"}
    for _, got in later.iterrows():
        held(got, kept, rate, [got["name"]], got["number"])
    layers = a360.branch_divergence(table, "spike", "normal", by="layer").dropna(subset=["layer"])
    for _, got in layers[layers["number"] > FORK].iterrows():
        held(got, kept, rate, [n for n in SHAPES if f"layers.{got['layer']}." in n], got["number"])
    every = a360.branch_divergence(table, "spike", "normal", by="all")
    for _, got in every[every["number"] > FORK].iterrows():
        held(got, kept, rate, list(SHAPES), got["number"])


def test_rows_that_were_merged_before(trained):
    """The same but for decay, where a layer has gains that are not decayed."""
    _, folder, kept, rate = trained
    merged = a360.load_table(folder, by="all")
    got = a360.branch_divergence(merged, "spike", "normal")
    tensors = a360.branch_divergence(a360.load_table(folder), "spike", "normal", by="all")
    assert set(got[got["number"] > FORK]["status"]) == {"matched; decay not known"}
    for name in ("distance", "distance_over_norm", "relative", "cosine", "along", "across"):
        np.testing.assert_allclose(got[name], tensors[name], rtol=1e-9, atol=1e-12)
    assert got["cosine_undecayed"].isna().all()
    by_module = a360.load_table(folder, by="module")
    module = a360.branch_divergence(by_module, "spike", "normal")
    one = module[(module["module"] == "attn.q") & (module["number"] == LAST)].iloc[0]
    held(one, kept, rate, [n for n in SHAPES if "q_proj" in n], LAST)


def test_the_fork_is_where_they_are_equal(trained):
    apart = a360.branch_divergence(a360.load_table(trained[1]), "spike", "normal")
    fork = apart[apart["number"] == FORK]
    assert set(fork["status"]) == {"fork: equal"} and fork["distance"].eq(0).all()
    assert apart["tokens_since"].dropna().eq((apart["number"] - FORK) * EACH * 1000).all()


def test_either_branch_may_be_asked_for(trained):
    """The partner's rows are in one of the two tables only."""
    table = a360.load_table(trained[1])
    one = a360.branch_divergence(table, "spike", "normal", by="all").set_index("number")
    other = a360.branch_divergence(table, "normal", "spike", by="all").set_index("number")
    there = one.index[one["status"] == "matched"]
    assert len(there) == LAST - FORK
    for name in ("distance", "cosine", "cosine_undecayed"):
        np.testing.assert_allclose(one.loc[there, name], other.loc[there, name], rtol=1e-12)
    product = one["along"] * other["along"]
    np.testing.assert_allclose(product[there], one["cosine"][there] ** 2, rtol=1e-9)


def test_adamw_on_noise_walks(trained):
    """Nothing in common but the decay: cosine 0, D √2, and ½ against the diffusive clock."""
    run, folder, _, _ = trained
    every = a360.branch_divergence(a360.load_table(folder), "spike", "normal", by="all")
    last = every[every["number"] == LAST].iloc[0]
    assert last["cosine"] > 0.3 > 0.06 > abs(last["cosine_undecayed"])
    assert last["relative_undecayed"] == pytest.approx(2**0.5, rel=0.05)
    grown = a360.growth_exponent(every).iloc[0]
    assert grown["points"] == LAST - FORK
    assert grown["exponent"] == pytest.approx(0.5, abs=0.03)
    fork = FORK * EACH
    given = functools.partial(a360.growth_exponent, every, weight_decay=0.1, fork_step=fork)
    by_run = given(learning_rate=run.learning_rate).iloc[0]
    # the run's decay is that of matrices; the frame's is a mean, with the few gains
    assert by_run["exponent"] == pytest.approx(grown["exponent"], abs=0.02)
    assert a360.growth_exponent(every, "tokens")["exponent"].item() < grown["exponent"] - 0.05
