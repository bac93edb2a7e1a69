"""One trained model in every layout: the same values, the same table, no byte too many."""

import pandas as pd
import pytest

import analysis360 as a360
from analysis360.formats import index_checkpoint
from analysis360.storage.local import LocalStore
from tests.formats.layouts import LAYOUTS, SIZES, WITHOUT, write
from tests.formats.llama import trained

STATISTICS = ["rms", "max_abs", "l2_norm", "kurtosis", "update_rms", "adam_snr"]


def raw(tensor):
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def stored(store, tensor):
    """Bytes of a tensor in C order."""
    import numpy as np

    from analysis360.core import DTYPE_BYTES

    size = DTYPE_BYTES[tensor.dtype]
    found = np.zeros((*tensor.shape, size), np.uint8)
    for part in tensor.parts:
        data = np.frombuffer(store.read(part.file, part.offset, part.nbytes), np.uint8)
        if part.flat is not None:
            found.reshape(-1, size)[slice(*part.flat)] = data.reshape(-1, size)
        else:
            place = tuple(slice(*side) for side in part.box)
            found[place] = data.reshape(found[place].shape)
    return found.tobytes()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_values_per_name_and_state(tmp_path, layout):
    """Bit for bit, of every state that the layout stores; step and settings too."""
    model = write(layout, tmp_path)
    store = LocalStore(tmp_path)
    index = index_checkpoint(store)
    states = {s: v for s, v in model.states().items() if s not in WITHOUT.get(layout, ())}
    found = {(t.name, t.state): t for t in index.tensors if t.state != "step"}
    assert found.keys() == {(name, s) for s, mine in states.items() for name in mine}
    for (name, state), tensor in found.items():
        want = states[state][name]
        assert tensor.dtype == str(want.dtype).removeprefix("torch.")
        assert tensor.shape == tuple(want.shape)
        assert stored(store, tensor) == raw(want), (name, state)
    assert index.step == model.step
    assert (index.adam.beta1, index.adam.beta2, index.adam.eps) == (*model.betas, model.eps)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """What is measured of the model in safetensors."""
    return measured(tmp_path_factory.mktemp("plain"), "safetensors")


def measured(folder, layout):
    write(layout, folder / "step3")
    plan = a360.plan(a360.open_run(folder), STATISTICS, against=[])
    table = plan.run(progress=False)
    columns = ["name", "layer", "module", "state", "dtype", "shape", *STATISTICS]
    return table[columns].sort_values(["name", "state"], ignore_index=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_table(tmp_path, plain, layout):
    table = measured(tmp_path, layout)
    kept = plain
    if "weight" in WITHOUT.get(layout, ()):
        kept = plain[plain["state"] == "adam"].reset_index(drop=True)
        table = table.assign(dtype=kept["dtype"])
    pd.testing.assert_frame_equal(table, kept, check_exact=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_layer_takes_its_own_bytes(tmp_path, layout):
    """And headers: nothing is fetched for the rest of the model, and nothing twice."""
    write(layout, tmp_path / "step3")
    run = a360.open_run(tmp_path).select(layers=1)
    plan = a360.plan(run, ["update_rms"], against=[])
    model = trained(SIZES)
    wanted = sum(
        t.nbytes for s in ("exp_avg", "exp_avg_sq") for n, t in model.states()[s].items()
        if ".layers.1." in n
    )  # fmt: skip
    read = [(r.file, r.offset, r.offset + r.nbytes) for r in plan.reads()]
    assert wanted <= sum(stop - start for _, start, stop in read)
    read.sort()
    for (file, _, stop), (other, start, _) in zip(read, read[1:]):
        assert file != other or stop <= start
