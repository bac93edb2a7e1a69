"""Measure tensors through the public path, for the tests of statistics."""

import math

import torch

import analysis360 as a360
from analysis360.core import Checkpoint, Run
from analysis360.engine import plan
from analysis360.storage.memory import MemoryStore


def alone(tensor, names, states=("weight",), beside=None):
    """Row of one tensor; `beside` is another of the model, for what is defined of that one only."""
    model = {"w": tensor} if beside is None else {"w": tensor, "x": beside}
    table = a360.measure(model, statistics=list(names), states=states)
    return table[table["name"] == "w"].iloc[0]


def run_of(*state_dicts, lr_sum=None):
    """A run of several models in memory, one a checkpoint, with the stores that keep them alive."""
    stores = [MemoryStore.from_state_dict(s) for s in state_dicts]
    entries = tuple(
        Checkpoint(
            "test", "main", i, i, i * 10, store.uri, store.uri, f"ckpt_{i}", dict(store.files())
        )
        for i, store in enumerate(stores)
    )
    from analysis360.core import LearningRate

    lr = None if lr_sum is None else LearningRate(lr_sum, lr_sum, 0, 1)
    return Run("test", "test", "memory", entries, learning_rate=lr), stores


def pair(tensor, reference, names, lr_sum=None):
    """Row of a tensor against the same tensor of the checkpoint before."""
    run, stores = run_of({"w": reference}, {"w": tensor}, lr_sum=lr_sum)
    table = plan(run, list(names)).run(progress=False)
    assert stores  # they live until here
    return table[table["against"] == "previous"].iloc[0]


def moments(m, v, step, beta1, beta2, eps, names):
    """Row of Adam's moments."""
    weight = torch.nn.Parameter(torch.zeros_like(m))
    optimizer = torch.optim.AdamW([weight], betas=(beta1, beta2), eps=eps)
    optimizer.state[weight] = {"step": torch.tensor(float(step)), "exp_avg": m, "exp_avg_sq": v}
    table = a360.measure({"w": weight.data}, optimizer, statistics=list(names))
    return table[table["state"] == "adam"].iloc[0]


def close(got, want, scale=None, tolerance=1e-6):
    """Whether two numbers agree to `tolerance` of the natural scale; NaN agrees with NaN."""
    if math.isnan(want):
        return math.isnan(got)
    return abs(got - want) <= tolerance * (abs(want) if scale is None else scale)
