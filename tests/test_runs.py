"""Opening runs: folders of every habit, the catalogue, and a Hub that answers or refuses."""

import json

import pytest
import torch
from safetensors.torch import save_file

import analysis360 as a360
from analysis360.errors import CheckpointNotFound, FormatError, RunNotFound
from tests.hub_server import HubServer
from tests.small_run import small_run


def checkpoint(folder, value=1.0):
    folder.mkdir(parents=True)
    save_file(
        {"model.embed_tokens.weight": torch.full((2, 2), value)}, folder / "model.safetensors"
    )


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with HubServer(tmp_path / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


def test_described_folder(tmp_path):
    run = a360.open_run(small_run(tmp_path / "r"))
    assert run.branches == ("normal", "spike") and run.forks[0].number == 1
    frame = run.checkpoints
    assert list(frame["step"][:5]) == [0, 100, 200, 300, 400]
    assert list(frame["tokens"][:2]) == [0, 100_000]
    assert set(frame["states"]) == {"weights+optimizer"}
    assert run.adam.beta2 == 0.95 and run.learning_rate.at(1000) == pytest.approx(1e-3)
    assert "normal_ckpt_000 … normal_ckpt_004 (5)" in repr(run)


def test_folder_of_pt_files(tmp_path):
    """A user's own loop: torch.save of model and optimizer, named by step."""
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), eps=1e-9)
    for step in (1, 2):
        optimizer.zero_grad()
        model(torch.ones(3)).sum().backward()
        optimizer.step()
        said = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(said, tmp_path / f"step_{step}.pt")
    run = a360.open_run(tmp_path, pattern="step_{step}.pt", tokens_per_step=512)
    assert list(run.checkpoints["tokens"]) == [512, 1024]
    table = a360.plan(run, ["rms", "update_rms", "rel_displacement"]).run(progress=False)
    last = table[(table["step"] == 2) & (table["name"] == "weight")]
    want = model.weight.detach().double().square().mean().sqrt().item()
    got = last.loc[last["state"] == "weight", "rms"].dropna().item()
    assert got == pytest.approx(want, rel=1e-6)
    plan = a360.plan(run, ["update_rms"])
    assert plan.adam[0].lr == pytest.approx(3e-4) and plan.adam[0].eps == pytest.approx(1e-9)
    assert last.loc[last["state"] == "adam", "update_rms"].item() == pytest.approx(1.0, abs=0.01)


def test_trainer_folder(tmp_path):
    """Hugging Face Trainer: checkpoint-500 with model.safetensors and optimizer.pt."""
    for step in (500, 1000):
        folder = tmp_path / f"checkpoint-{step}"
        checkpoint(folder, 1 / step)
        weight = torch.nn.Parameter(torch.zeros(2, 2))
        optimizer = torch.optim.AdamW([weight], lr=5e-5)
        weight.grad = torch.ones(2, 2)
        optimizer.step()
        torch.save(optimizer.state_dict(), folder / "optimizer.pt")
        state = {"global_step": step, "log_history": []}
        (folder / "trainer_state.json").write_text(json.dumps(state))
    run = a360.open_run(tmp_path)
    assert list(run.checkpoints["step"]) == [500, 1000]
    plan = a360.plan(run, ["rms"])
    assert plan.adam[0].beta2 == pytest.approx(0.999) and plan.adam[0].lr == pytest.approx(5e-5)
    assert plan.run(progress=False)["rms"].dropna().tolist() == pytest.approx([0.002, 0.001])


def test_one_model_folder_is_a_run_of_one(tmp_path):
    checkpoint(tmp_path / "model")
    run = a360.open_run(tmp_path / "model")
    assert len(run.entries) == 1 and run.entries[0].step is None


def test_nothing_there(tmp_path):
    (tmp_path / "readme").write_text("")
    with pytest.raises(CheckpointNotFound, match="named like a checkpoint; it holds readme"):
        a360.open_run(tmp_path)
    with pytest.raises(RunNotFound, match="did you mean k2-spike-1"):
        a360.open_run("k2-spike1")
    with pytest.raises(RunNotFound, match="neither a step nor a number"):
        a360.open_run(tmp_path, pattern="{branch}.pt")
    (tmp_path / "analysis360.toml").write_text("name = ")
    with pytest.raises(FormatError, match="analysis360.toml"):
        a360.open_run(tmp_path)


def test_hub_branches_and_tags(hub):
    root = hub.root / "lab" / "m"
    for name in ("main", "step1000", "step2000-tokens4B", "tags/step3000"):
        checkpoint(root / name)
    run = a360.open_run("lab/m", tokens_per_step=2)
    assert [c.name for c in run.entries] == ["step1000", "step2000-tokens4B", "step3000"]
    assert list(run.checkpoints["tokens"]) == [2000, 4000, 6000]
    assert all(len(c.revision) == 40 for c in run.entries)  # pinned to commits


def test_catalogue_name_on_the_hub(hub):
    """K2's spike repository, with whatever name its normal branches have."""
    root = hub.root / "LLM360" / "K2-Spike-1"
    for name in ("main", "spike_ckpt_160", "spike_ckpt_162", "base_ckpt_160", "base_ckpt_162"):
        checkpoint(root / name)
    (root / "main" / "model.safetensors").unlink()
    run = a360.open_run("k2-spike-1")
    assert run.branches == ("normal", "spike")
    frame = run.checkpoints
    assert list(frame["step"]) == [150_560, 152_442] * 2
    assert frame["tokens"][0] == 629_027_635_200
    against = ["previous", "partner", "ancestor"]
    plan = a360.plan(run, ["rms", "rel_displacement", "update_rms"], against=against)
    assert plan.adam[0].lr == pytest.approx(9.491e-5, rel=1e-4)
    assert plan.lr_sums[1 * 2, "previous"] == pytest.approx(0.1784, rel=1e-2)
    assert ("update_rms", "no exp_avg or exp_avg_sq in any selected checkpoint") in plan.skipped
    table = plan.run(progress=False)
    fork = table.query("branch == 'spike' and number == 160 and against == 'partner'")
    assert fork["rel_displacement"].item() == 0  # a test of the fork hypothesis


@pytest.mark.parametrize(
    ("kind", "message"),
    [("missing", "no such repository"), ("gated", "gated"), ("private", "private")],
)
def test_hub_refusals(hub, monkeypatch, kind, message):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if kind != "missing":
        checkpoint(hub.root / "lab" / kind / "step1")
        getattr(hub, kind).add(f"lab/{kind}")
    with pytest.raises(RunNotFound, match=f"(?i)lab/{kind}.*{message}|{message}.*lab/{kind}"):
        run = a360.open_run(f"lab/{kind}")
        a360.plan(run, ["rms"])


def test_renamed_repository(hub):
    checkpoint(hub.root / "IFM" / "K2" / "ckpt_003")
    hub.renamed["LLM360/K2"] = "IFM/K2"
    run = a360.open_run("k2")
    assert run.branches == ("normal",)
    assert a360.plan(run, ["rms"]).run(progress=False)["rms"].tolist() == [1.0]


def test_list_runs():
    frame = a360.list_runs()
    assert {"k2", "k2-spike-1", "k2-spike-2"} <= set(frame["name"])
    assert frame["source"].str.startswith("hf://").all()
