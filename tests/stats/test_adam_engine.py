"""Statistics of the moments through files, engine and tables: by tensor, and by layer."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import analysis360 as a360
from analysis360.engine import schedule
from analysis360.stats import statistics
from tests import reference
from tests.cases import CASES
from tests.measured import close

LR, DECAY, CLIP = 3e-3, 0.1, 50.0
STEPS = (40, 100)
UP, DOWN = (f"model.layers.0.mlp.{part}_proj.weight" for part in ("up", "down"))
GAIN = "model.layers.0.post_attention_layernorm.weight"
SHAPES = {UP: (24, 10), DOWN: (10, 24), GAIN: (10,)}
NAMES = [*reference.MOMENTS, "update_rms", "adam_snr"]


def trained(folder):
    """AdamW on noise of different sizes; weights and moments after each of `STEPS`."""
    from safetensors.torch import save_file

    g = torch.Generator().manual_seed(0)
    weights = {
        name: torch.nn.Parameter(0.05 * torch.randn(shape, generator=g))
        for name, shape in SHAPES.items()
    }
    groups = [
        {"params": [w], "weight_decay": DECAY if w.ndim > 1 else 0.0} for w in weights.values()
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95))
    for step in range(1, STEPS[-1] + 1):
        for name, w in weights.items():
            size = 10.0 ** -(list(weights).index(name))
            w.grad = size * (0.3 + torch.randn(w.shape, generator=g))
        optimizer.step()
        if step in STEPS:
            at = folder / f"step_{step}"
            at.mkdir()
            save_file({n: w.detach() for n, w in weights.items()}, at / "model.safetensors")
            states = {
                f"{n}.{key}": value.clone()
                for n, w in weights.items() for key, value in optimizer.state[w].items()
            }  # fmt: skip
            save_file(states, at / "optimizer.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    at = tmp_path_factory.mktemp("trained")
    trained(at)
    (at / "analysis360.toml").write_text(
        f"name = 'trained'\n[adam]\nbeta1 = 0.9\nbeta2 = 0.95\neps = 1e-8\n"
        f"weight_decay = {DECAY}\nclip = {CLIP}\n"
        f"[learning_rate]\nkind = 'constant'\npeak = {LR}\nfinal = {LR}\nwarmup = 0\ntotal = 1000\n"
    )
    return at


@pytest.fixture(scope="module")
def table(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "BLOCK", 64)  # several blocks a tensor, which merge
        return a360.plan(a360.open_run(folder), NAMES).run(folder / "out", progress=False)


def case(folder, *names):
    """What the oracle takes, of some tensors end to end."""
    from safetensors.torch import load_file

    found = {}
    for step, w, m, v in ((STEPS[1], "w", "m", "v"), (STEPS[0], "r", "rm", "rv")):
        weights = load_file(folder / f"step_{step}" / "model.safetensors")
        states = load_file(folder / f"step_{step}" / "optimizer.safetensors")
        parts = {
            w: [weights[n] for n in names], m: [states[f"{n}.exp_avg"] for n in names],
            v: [states[f"{n}.exp_avg_sq"] for n in names],
        }  # fmt: skip
        found |= {
            k: (x[0] if len(x) == 1 else torch.cat([t.reshape(-1) for t in x])).double().numpy()
            for k, x in parts.items()
        }
    decay = 0.0 if found["w"].ndim == 1 and len(names) == 1 else DECAY
    return replace(
        CASES["gaussian"], **found, step=float(STEPS[1]), ref_step=float(STEPS[0]), lr=LR,
        weight_decay=decay, decay=(1 - LR * decay) ** (STEPS[1] - STEPS[0]), clip=CLIP,
    )  # fmt: skip


def rows(table, against):
    there = (table["state"] == "adam") & (table["step"] == STEPS[1])
    return table[there & (table["against"] == against)]


def is_pair(name):
    return any(m.pair for m in statistics[name].measures)


@pytest.mark.parametrize("name", SHAPES)
def test_every_tensor(folder, table, name):
    """Each statistic stands in the row of the moments, alone or against the checkpoint before."""
    c, seen = case(folder, name), 0
    for against in ("", "previous"):
        row = rows(table, against).set_index("name").loc[name]
        for statistic, definition in reference.MOMENTS.items():
            if is_pair(statistic) != (against == "previous"):
                continue
            matrix = statistic in ("v_row_anisotropy", "v_column_anisotropy")
            want = np.nan if matrix and c.w.ndim == 1 else float(definition(c))
            assert close(row[statistic], want), (statistic, row[statistic], want)
            seen += 1
    assert seen == len(reference.MOMENTS)


def test_a_layer_is_its_elements(folder, table):
    """Two matrices and a gain, as if they were one: with their own decay, and no mean of ratios."""
    layer = a360.load_table(folder / "out", statistics=NAMES, by="layer")
    row = rows(layer[layer["layer"] == 0], "").iloc[0]
    c = case(folder, *SHAPES)
    decays = np.concatenate(
        [np.full(np.prod(s), DECAY if len(s) > 1 else 0.0) for s in SHAPES.values()]
    )
    c = replace(c, weight_decay=decays)
    for name, definition in reference.MOMENTS.items():
        if is_pair(name) or "anisotropy" in name or name == "decay_balance":
            continue
        assert close(row[name], float(definition(c))), name
    want = np.linalg.norm(decays * c.w) / np.linalg.norm(reference.u_of(c))
    assert close(row["decay_balance"], want)
    assert np.isnan(row["v_row_anisotropy"])
    pair = rows(layer[layer["layer"] == 0], "previous").iloc[0]
    for name in ("v_shift_median", "v_shift_std", "momentum_cosine", "momentum_sign_agreement"):
        assert close(pair[name], float(reference.MOMENTS[name](c))), name
    between = replace(c, decay=np.where(decays > 0, c.decay, 1.0))
    for name in ("update_direction_cosine", "momentum_direction_cosine"):
        assert close(pair[name], float(reference.MOMENTS[name](between))), name


def test_rows_of_second_moments_are_a_second_frame(folder, table):
    vectors = a360.load_table(folder / "out", statistics=["v_row_anisotropy"], kind="vectors")
    found = vectors[(vectors["name"] == UP) & (vectors["step"] == STEPS[1])]
    want = reference.v_hats(case(folder, UP))[0].sum(1)
    np.testing.assert_allclose(found["values"].iloc[0], want, rtol=1e-12)


@pytest.mark.parametrize("groups", [1, 2])
def test_biases_decay_if_the_optimizer_has_one_group(groups):
    """As AdamW(model.parameters()) does; with several groups they are taken not to."""
    parameters = {"w": torch.nn.Parameter(torch.ones(4, 4)), "b": torch.nn.Parameter(torch.ones(4))}
    every = list(parameters.values())
    given = every if groups == 1 else [{"params": [p]} for p in every]
    optimizer = torch.optim.AdamW(given, lr=1e-3, weight_decay=0.1)
    for p in every:
        p.grad = torch.ones_like(p)
    optimizer.step()
    table = a360.measure(parameters, optimizer, statistics=["decay_balance"]).set_index("name")
    u = 1 / (1 + 1e-8)
    want = {"w": 0.1 * (1 - 1.1e-3) / u, "b": 0.1 * (1 - 1.1e-3) / u if groups == 1 else 0.0}
    for name in parameters:
        assert table.loc[name, "decay_balance"] == pytest.approx(want[name], rel=1e-6), name
