"""Checkpoints that others trained and published, fetched from the package index."""

import subprocess
import sys
import zipfile

import pytest
import torch

from analysis360.formats import index_checkpoint
from analysis360.storage.local import LocalStore

pytestmark = pytest.mark.slow

CHGNET = "chgnet==0.4.2"  # BSD-3; three models with the states of their Adam


@pytest.fixture(scope="module")
def chgnet(tmp_path_factory):
    """The pretrained models of CHGNet, by version."""
    folder = tmp_path_factory.mktemp("chgnet")
    got = subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, CHGNET],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if got.returncode:
        pytest.skip(f"{CHGNET} cannot be downloaded: {got.stderr.strip()[-200:]}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = [n for n in file.namelist() if n.endswith(".pth.tar")]
        return {n.split("/")[2]: file.extract(n, folder) for n in names}


def raw(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    ("version", "weights", "moments", "step"),
    [("0.2.0", 99, 94, 420_770), ("0.3.0", 136, 127, 996_744), ("r2scan", 136, 127, 148_900)],
)
def test_weights_and_moments_per_named_parameter(chgnet, version, weights, moments, step):
    oracle = torch.load(chgnet[version], weights_only=True, map_location="cpu")
    model, optimizer = oracle["model"]["state_dict"], oracle["optimizer"]
    store = LocalStore(chgnet[version])
    index = index_checkpoint(store)
    found = {(t.name, t.state): t for t in index.tensors}
    assert {name for name, state in found if state == "weight"} == set(model)
    numbers = optimizer["param_groups"][0]["params"]
    assert len(numbers) == len(model) == weights
    for number, (name, weight) in zip(numbers, model.items(), strict=True):
        states = {"weight": weight, **optimizer["state"].get(number, {})}
        for state in ("weight", "exp_avg", "exp_avg_sq"):
            tensor = found.pop((name, state), None)
            assert (tensor is None) == (state not in states)
            if tensor is not None:
                assert tensor.shape == weight.shape
                read = b"".join(store.read(p.file, p.offset, p.nbytes) for p in tensor.parts)
                assert read == raw(states[state]), (name, state)
    assert {state for _, state in found} <= {"step"}
    assert len(optimizer["state"]) == moments
    assert index.step == step
    assert (index.adam.beta1, index.adam.beta2) == (0.9, 0.999)
    assert index.skipped == ()
