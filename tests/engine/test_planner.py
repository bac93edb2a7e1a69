"""What a plan pairs, skips and says, before a byte is read."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import analysis360 as a360
from analysis360.core import Adam, Checkpoint, Fork, Part, Run
from analysis360.engine.planner import nbytes
from analysis360.engine.schedule import Piece, merge_reads
from analysis360.errors import MemoryBudgetError, StatisticError
from analysis360.storage.memory import MemoryStore
from tests.small_run import small_run


@pytest.fixture
def make():
    """Runs of tiny models in memory: (branch, number) pairs and forks."""
    kept = []

    def made(places, forks=(), adam=None, tensors=None):
        entries = []
        for i, (branch, number) in enumerate(places):
            store = MemoryStore.from_state_dict({"w": torch.full((2, 2), 1.0 + i)})
            kept.append(store)
            entries.append(
                Checkpoint(
                    "r",
                    branch,
                    number,
                    10 * number,
                    100 * number,
                    store.uri,
                    store.uri,
                    f"{branch}_{number}",
                    dict(store.files()),
                )  # fmt: skip
            )
        return Run("r", "r", "memory", tuple(entries), forks=tuple(forks), adam=adam)

    return made


def pairs(plan):
    name = [c.name for c in plan.checkpoints]
    return {(name[c], role): name[r] for (c, role), r in plan.references.items()}


ROLES = ("previous", "partner", "ancestor")


def test_a_branch_of_a_branch(make):
    """Partners are found whatever the names; parents come first at every depth."""
    run = make(
        [("normal", 1), ("normal", 2), ("normal", 3), ("spike", 2), ("spike", 3), ("aaa", 3)],
        [Fork("spike", "normal", 1), Fork("aaa", "spike", 2)],
    )
    plan = a360.plan(run, ["displacement"], against=ROLES)
    found = pairs(plan)
    assert found["aaa_3", "partner"] == "spike_3" and found["spike_3", "partner"] == "normal_3"
    assert found["aaa_3", "ancestor"] == "spike_2" and found["spike_3", "ancestor"] == "normal_1"
    assert all(r < c for (c, _), r in plan.references.items())
    table = plan.run(progress=False)
    rows = table[table["against"] == "partner"].set_index("branch")
    assert set(rows.index) == {"aaa", "spike"}
    assert rows.loc["aaa", "reference"] == "spike_3" and rows.loc["aaa", "reference_step"] == 30


def test_two_forks_at_different_points(make):
    """A branch keeps its own fork; comparing rows against different forks is marked."""
    places = [("normal", n) for n in range(1, 6)] + [("spike", n) for n in range(2, 6)]
    run = make([*places, ("placebo", 4), ("placebo", 5)],
               [Fork("spike", "normal", 1), Fork("placebo", "normal", 3)])  # fmt: skip
    plan = a360.plan(run, ["displacement"], against=["ancestor"])
    found = pairs(plan)
    assert {found[f"spike_{n}", "ancestor"] for n in range(2, 6)} == {"normal_1"}
    assert (
        found["normal_3", "ancestor"] == "normal_1" and found["normal_5", "ancestor"] == "normal_3"
    )
    apart = a360.compare_branches(plan.run(progress=False), "spike")
    status = apart[apart["against"] == "ancestor"].set_index("number")["status"]
    assert (
        list(status[[2, 3]]) == ["matched"] * 2 and list(status[[4, 5]]) == ["other reference"] * 2
    )
    assert apart.loc[apart["status"] == "other reference", "log2_ratio"].isna().all()


def test_forks_named_by_step(make):
    run = make([("normal", 1), ("normal", 2), ("spike", 2)], [Fork("spike", "normal", step=10)])
    assert pairs(a360.plan(run, ["displacement"], against=["ancestor"])) == {
        ("normal_2", "ancestor"): "normal_1",
        ("spike_2", "ancestor"): "normal_1",
    }


def test_the_fork_point_may_be_out_of_reach(make):
    """K2's second spike leaves checkpoint 185, which nobody published."""
    run = make([("normal", 186), ("spike", 186)], [Fork("spike", "normal", 185)])
    plan = a360.plan(run, ["displacement"], against=["partner", "ancestor"])
    assert pairs(plan) == {("spike_186", "partner"): "normal_186"}
    said = dict((why, what) for what, why in plan.skipped)
    assert "the fork point (checkpoint 185) is not selected or not available" in said


def forget_steps(folder, metadata=None):
    """Neither names nor parameters tell a step any more; perhaps the optimizer file's metadata."""
    for path in (folder / "checkpoints").iterdir():
        state = load_file(path / "optimizer.safetensors")
        state = {k: v for k, v in state.items() if not k.endswith(".step")}
        save_file(state, path / "optimizer.safetensors", metadata)
    toml = folder / "analysis360.toml"
    toml.write_text(toml.read_text().replace("steps_per_number = 100\n", ""))


def test_a_step_that_only_the_optimizer_file_tells(tmp_path):
    folder = small_run(tmp_path / "r", last=1)
    forget_steps(folder)
    plan = a360.plan(a360.open_run(folder), ["update_rms", "rms"], against=())
    assert ("update_rms", "step unknown for small") in plan.skipped


def test_unknown_betas_are_said(tmp_path):
    run = replace(a360.open_run(small_run(tmp_path / "r", last=1)), adam=Adam(beta1=0.9))
    plan = a360.plan(run, ["update_rms", "eps_fraction", "rms"], against=())
    assert plan.statistics == ("rms",)
    assert any("beta2, eps unknown for small" in why for _, why in plan.skipped)


def test_an_unknown_schedule_is_said(make):
    plan = a360.plan(make([("normal", 1), ("normal", 2)]), ["update_ratio", "displacement"])
    assert plan.statistics == ("displacement",)
    assert ("update_ratio", "learning_rate unknown for r") in plan.skipped


def test_missing_states_are_said(tmp_path):
    run = a360.open_run(small_run(tmp_path / "r", optimizer=False, last=1))
    plan = a360.plan(run, ["rms"], states=["weight", "exp_avg", "update"], against=())
    said = "\n".join(f"{what}: {why}" for what, why in plan.skipped)
    assert "state exp_avg" in said and "no exp_avg in it" in said
    assert "state update" in said and "no exp_avg or exp_avg_sq in it" in said


def test_a_row_does_not_depend_on_what_else_is_measured(tmp_path):
    from analysis360.stats import statistic, statistics

    @statistic(degree=None)
    def rms_per_root_step(m2, count, step):
        """Root mean square about the mean over the root of the step."""
        return (m2 / count / step) ** 0.5

    try:
        run = a360.open_run(small_run(tmp_path / "r", last=1))
        alone = a360.plan(run, ["rms_per_root_step"], against=()).run(progress=False)
        both = a360.plan(run, ["rms_per_root_step", "update_rms"], against=()).run(progress=False)
    finally:
        statistics.remove("rms_per_root_step")
    both = both[both["state"] == "weight"].reset_index(drop=True)
    assert (alone["rms_per_root_step"].dropna() == both["rms_per_root_step"].dropna()).all()


def test_device_is_checked_before_anything_is_read(make):
    run = make([("normal", 1)])
    with pytest.raises(StatisticError, match="device='gpu': allowed: cpu, cuda"):
        a360.plan(run, ["rms"], against=(), device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(StatisticError, match="no CUDA device is available"):
            a360.plan(run, ["rms"], against=(), device="cuda")


def test_what_pandas_users_pass(make):
    run = make([("normal", 1), ("normal", 2)])
    plan = a360.plan(
        run, iter(["rms"]), states=iter(["weight"]), against=iter(["previous"]), memory=1e9
    )
    assert plan.states == ("weight",) and plan.nbytes > 0
    assert nbytes(2.5e9) == 2_500_000_000
    with pytest.raises(
        MemoryBudgetError, match="memory=1 kB is too small: w needs .* B in 2 checkpoints"
    ):
        a360.plan(run, ["rms"], memory=1000)


def test_buffers_all_come_back(tmp_path, monkeypatch):
    """Also where the last checkpoint lacks what is measured."""
    from analysis360.engine import measure

    folder = small_run(tmp_path / "r", last=3)
    last = folder / "checkpoints" / "normal_ckpt_003"
    for shard in last.glob("model*"):
        shard.unlink()
    seen = []

    class Watched(measure.Buffers):
        def __init__(self, *given, **named):
            super().__init__(*given, **named)
            seen.append(self)

    monkeypatch.setattr(measure, "Buffers", Watched)
    a360.plan(a360.open_run(folder), ["rms", "displacement", "update_rms"], against=ROLES).run(
        progress=False
    )
    assert [b.out for b in seen] == [0]


def test_spectra_of_a_derived_state_count_its_copies(tmp_path):
    """The update is made of two float32 matrices in a third, above what the stored weight takes."""
    shapes = {"model.layers.0.mlp.up_proj.weight": (300, 200)}
    run = a360.open_run(small_run(tmp_path / "r", shapes=shapes, last=0))
    stored = a360.plan(run, ["spectral_norm"], against=()).totals["work"]
    derived = a360.plan(run, ["spectral_norm"], states=["update"], against=()).totals["work"]
    assert derived - stored == 3 * 4 * 300 * 200


def test_pieces_that_overlap_are_read_once(monkeypatch):
    """Columns of one matrix, which is longer than a request may be."""
    monkeypatch.setattr("analysis360.engine.schedule.MAX_READ", 100)
    pieces = [
        Piece(
            f"h{i}",
            "weight",
            Part("f", 4 * i, 4 * 91, "float32", box=((0, 10), (0, 1)), stride=(10, 1)),
            True,
        )
        for i in range(10)
    ]
    (read,) = merge_reads(0, pieces)
    assert (read.offset, read.nbytes, len(read.pieces)) == (0, 400, 10)


def test_what_no_tensor_fits_is_said():
    run = a360.open_run({"norm.weight": torch.ones(8)})
    plan = a360.plan(run, ["stable_rank", "row_norm_max", "gain_max", "rms"], against=())
    assert plan.statistics == ("gain_max", "rms")
    assert plan.skipped == (("stable_rank, row_norm_max", "no selected tensor is a matrix"),)
    matrix = a360.plan(a360.open_run({"w": torch.ones(8, 8)}), ["gain_max"], against=())
    assert matrix.skipped == (("gain_max", "no selected tensor is a vector"),)


def test_why_no_layer_has_the_tensors_of_a_step():
    q, k, norm = (
        f"model.layers.0.{name}.weight"
        for name in ("self_attn.q_proj", "self_attn.k_proj", "input_layernorm")
    )
    model = {q: torch.ones(8, 8), norm: torch.ones(8)}

    def why(model):
        plan = a360.plan(a360.open_run(model), ["qk_logit_bound"], against=(), per_head=True)
        return dict(plan.skipped)["qk_logit_bound"]

    assert why(model) == "no selected tensor is attn.k"
    assert "heads are not divided" in why(model | {k: torch.ones(8, 8)})


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"states": "weight"}, r"give a list: \['weight'\]"),
        ({"against": "previous"}, r"give a list: \['previous'\]"),
        ({"states": ["exp_avgsq"]}, "allowed: weight, exp_avg, exp_avg_sq, master, update"),
        ({"statistics": ["no such thing"]}, r"none of the \d+ known is like it.*list_statistics"),
    ],
)
def test_what_is_misspelt_is_refused(asked, message):
    run = a360.open_run({"w": torch.ones(4, 4)})
    with pytest.raises(StatisticError, match=message):
        a360.plan(run, **asked)


def test_an_unknown_decay_is_said_by_its_name_in_the_description(tmp_path):
    folder = small_run(tmp_path / "r", last=1)
    toml = folder / "analysis360.toml"
    toml.write_text(toml.read_text().replace("weight_decay = 0.1\n", ""))
    plan = a360.plan(a360.open_run(folder), ["decay_between", "displacement"])
    assert ("decay_between", "weight_decay unknown for small") in plan.skipped
