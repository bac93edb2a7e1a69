"""Several repositories as one run; files compared by what the Hub's listing tells of them."""

import shutil

import pandas as pd
import pytest

import analysis360 as a360
from analysis360.core import Adam, Checkpoint, Event, Fork, LearningRate, Run
from analysis360.errors import FormatError
from tests.small_run import small_run
from tests.test_catalog import checkpoint, hub  # noqa: F401 - a fixture


def copied(hub, source, target):  # noqa: F811
    """The same files at another place, as an upload of the same checkpoint would be."""
    shutil.copytree(hub.root / source, hub.root / target)


def k2(hub):  # noqa: F811
    """K2's three repositories, small: every third number, and spikes beside their restarts."""
    for number in (159, 162, 165, 186):
        checkpoint(hub.root / f"LLM360/K2/ckpt_{number}", number)
    copied(hub, "LLM360/K2/ckpt_162", "LLM360/K2-Spike-1/normal_ckpt_162")
    checkpoint(hub.root / "LLM360/K2-Spike-1/normal_ckpt_160", 160)
    for number in (160, 162):
        checkpoint(hub.root / f"LLM360/K2-Spike-1/spike_ckpt_{number}", number + 0.5)
    checkpoint(hub.root / "LLM360/K2-Spike-2/spike_ckpt_186", 200)
    checkpoint(hub.root / "LLM360/K2-Spike-2/normal_ckpt_186", 186.25)  # not K2's own


def test_k2_with_both_spikes(hub, tmp_path):  # noqa: F811
    k2(hub)
    run = a360.open_run("k2-all")
    assert run.branches == ("normal", "normal (k2-spike-2)", "spike-1", "spike-2")
    where = {(c.branch, c.number): c.uri.rpartition("/")[2] for c in run.entries}
    assert where["normal", 162] == "K2"  # the copy is the same file: taken once
    assert where["normal", 160] == "K2-Spike-1" and where["spike-2", 186] == "K2-Spike-2"
    assert where["normal (k2-spike-2)", 186] == "K2-Spike-2"
    assert run.forks == (
        Fork("spike-1", "normal", number=160), Fork("spike-2", "normal", number=185)
    )  # fmt: skip
    assert run.adam == a360.open_run("k2").adam and run.family == "llama"
    plan = a360.plan(run, ["rms"], against=["previous", "ancestor", "partner"])
    table = plan.run(tmp_path / "out", progress=False).query("against == ''")
    rms = table.set_index(["branch", "number"])["rms"]
    assert (rms["normal", 159], rms["spike-1", 162], rms["spike-2", 186]) == (159, 162.5, 200)
    assert rms["normal (k2-spike-2)", 186] == 186.25
    assert set(table["run"]) == {"k2-all"}


def test_what_two_repositories_have_and_differ_in(hub):  # noqa: F811
    k2(hub)
    main, second = a360.open_run("k2"), a360.open_run("k2-spike-2")
    with pytest.raises(
        FormatError,
        match=r"k2: 'ckpt_186' at hf://LLM360/K2 and k2-spike-2: 'normal_ckpt_186' at "
        r"hf://LLM360/K2-Spike-2 are both number 186 of branch 'normal', and their files differ",
    ):
        a360.merge_runs([main, second], "all")
    both = a360.merge_runs([main, second], "all", rename={"k2-spike-2": {"normal": "restart"}})
    assert both.branches == ("normal", "restart", "spike")
    assert both.forks[0].parent == "restart"


def test_copies_without_hashes_may_differ(tmp_path):
    runs = [a360.open_run(small_run(tmp_path / n, last=2)) for n in ("a", "b")]
    with pytest.raises(FormatError, match="their files may differ, no hashes tell"):
        a360.merge_runs(runs, "both")
    kept = a360.merge_runs(runs, "both", duplicates="both")
    assert kept.branches == ("normal", "normal (small)", "spike", "spike (small)")
    loss = a360.read_loss(kept)  # of both folders, though they are at different places
    assert len(kept.sources["loss"]) == 2 and len(loss) > 0
    with pytest.raises(FormatError, match="duplicates='first'; allowed: 'refuse', 'both'"):
        a360.merge_runs(runs, "both", duplicates="first")


def run_of(name, branch="main", **said):
    entry = Checkpoint(name, branch, 1, None, None, f"hf://lab/{name}", name, name)
    return Run(name, name, f"hf://lab/{name}", (entry,), **said)


def test_what_is_said_is_combined():
    one = run_of("a", adam=Adam(beta1=0.9), events=(Event("main", 3, "x"),))
    two = run_of(
        "b", "spike", adam=Adam(beta1=0.9, eps=1e-8), family="llama",
        forks=(Fork("spike", "main", 1),), sources={"loss": ("log.csv",)},
        published={"paper": "p"}, events=(Event("main", 3, "x"),),
    )  # fmt: skip
    both = a360.merge_runs([one, two], "c")
    assert both.adam == Adam(beta1=0.9, eps=1e-8) and both.family == "llama"
    assert both.forks == two.forks and both.published == {"paper": "p"}
    assert both.sources == {"loss": ("hf://lab/b/log.csv",)}
    assert both.events == one.events
    assert both.home == "hf://lab/a, hf://lab/b"


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"adam": Adam(eps=1e-8)}, {"adam": Adam(eps=1e-9)}, "a and b differ in eps: 1e-08, 1e-09"),
        ({"family": "llama"}, {"family": "other"}, "a and b differ in family: 'llama' and 'other'"),
        (
            {"learning_rate": LearningRate(1, 0, 1, 9)},
            {"learning_rate": LearningRate(2, 0, 1, 9)},
            "a and b differ in learning_rate",
        ),
        (
            {"forks": (Fork("spike", "main", 1),)},
            {"forks": (Fork("spike", "main", 2),)},
            "a and b have different forks of one name.*rename={'b': {'spike': …}}",
        ),
    ],
)
def test_contradictions_name_both(first, second, message):
    with pytest.raises(FormatError, match=message):
        a360.merge_runs([run_of("a", **first), run_of("b", "other", **second)], "c")


def test_merging_nothing_and_renaming_nobody():
    with pytest.raises(FormatError, match="no runs"):
        a360.merge_runs([], "c")
    with pytest.raises(FormatError, match=r"rename=\['x'\]: no such runs; there are a"):
        a360.merge_runs([run_of("a")], "c", rename={"x": {}})


def test_renaming_a_branch_that_is_not_there():
    with pytest.raises(FormatError, match=r"rename of a: no branches \['spiek'\]; there are main"):
        a360.merge_runs([run_of("a")], "c", rename={"a": {"spiek": "spike-1"}})


def test_what_is_no_run():
    for wrong in (["k2"], "k2", [run_of("a").checkpoints]):
        with pytest.raises(TypeError, match="merge_runs takes runs, as open_run"):
            a360.merge_runs(wrong, "c")
    with pytest.raises(TypeError, match="same_files takes a run.*got 'k'"):
        a360.same_files("k2")
    with pytest.raises(TypeError, match="merge_runs takes runs.*got 7"):
        a360.merge_runs(7, "c")
    assert a360.merge_runs(iter([run_of("a")]), "c").branches == ("main",)


# The same files


def test_is_the_first_spiked_checkpoint_the_normal_one(hub):  # noqa: F811
    root = "LLM360/K2-Spike-1"
    for branch in ("normal", "spike"):
        for number in (160, 162):
            same = number == 160
            checkpoint(hub.root / root / f"{branch}_ckpt_{number}", number if same else len(branch))
            (hub.root / root / f"{branch}_ckpt_{number}" / "config.json").write_text("{}")
    run = a360.open_run("k2-spike-1")
    del hub.log[:]
    frame = a360.same_files(run)
    assert hub.log == []  # nothing is read, nothing is asked again
    found = frame.set_index(["number", "file"])["same"]
    assert found[160, "model.safetensors"] and found[160, "config.json"]
    assert not found[162, "model.safetensors"] and found[162, "config.json"]
    assert frame["same"].dtype == "boolean"
    assert frame.groupby("number")["same"].all(skipna=False).tolist() == [True, False]


def test_files_of_different_repositories(hub):  # noqa: F811
    checkpoint(hub.root / "lab/a/step1")
    copied(hub, "lab/a/step1", "lab/b/step1")
    checkpoint(hub.root / "lab/b/step1", name="more.safetensors")
    (a,), (b,) = (a360.open_run(f"lab/{n}").entries for n in "ab")
    assert a.hashes["model.safetensors"].startswith("sha256:") and "hashes" not in repr(a)
    same = a360.same_files([a, b]).set_index("file")["same"]
    assert same["model.safetensors"] and same["more.safetensors"] is pd.NA


def test_folders_have_hashes_if_they_are_read(tmp_path):
    run = a360.open_run(small_run(tmp_path / "r", last=2))
    frame = a360.same_files(run)  # numbers 2 of both branches
    assert set(frame["number"]) == {2} and frame["same"].isna().all()
    read = a360.same_files(run, read=True).set_index("file")["same"]
    assert read["model.safetensors.index.json"]
    assert not read["model-00001-of-00002.safetensors"]
    plan = a360.plan(run, ["rms"])
    assert type(plan).from_json(plan.to_json()).checkpoints == plan.checkpoints


def test_one_branch_has_nothing_to_compare(tmp_path):
    run = a360.open_run(small_run(tmp_path / "r", last=2)).select(branch="normal")
    frame = a360.same_files(run)
    assert frame.empty and "same" in frame
