"""A made-up measured table: a trunk, a branch and two placebos that differ by a few percent."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd

TENSORS = [("embed", None), ("head", None)] + [
    (module, layer)
    for layer in (0, 1)
    for module in ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down",
                   "norm.attn")
]  # fmt: skip
WEIGHT = ("rms", "max_abs", "max_over_rms", "nonfinite", "spectral_norm", "stable_rank")
ROWS = ("mean_row_norm", "centred_row_norm")
ADAM = (
    "adam_snr", "update_rms", "update_large_fraction", "update_kurtosis", "grad_norm_ema",
    "eps_ratio", "effective_lr_p99", "bound_violations", "v_negative", "optimizer_step",
)  # fmt: skip
AWAY = ("coherence", "displacement", "max_change", "lr_between", "decay_between")


@functools.cache
def _made() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    rows = []
    places = [("normal", s) for s in (160, 170, 180, 190, 200, 210, 220, 230, 240)]
    places += [(b, s) for b in ("spike", "pa", "pb") for s in (210, 220, 230, 240)]
    for branch, step in places:
        for module, layer in TENSORS:
            name = module if layer is None else f"layers.{layer}.{module}"
            key = {
                "run": "made", "branch": branch, "number": step // 10, "step": step,
                "tokens": 100 * step, "name": name, "layer": layer, "module": module,
                "param": "weight", "expert": None, "head": None,
            }  # fmt: skip

            def noise() -> float:
                return float(np.exp(0.01 * rng.standard_normal()))

            weight = {n: noise() for n in WEIGHT} | {"nonfinite": 0.0}
            weight |= {n: noise() for n in ROWS if module in ("embed", "head")}
            rows.append(key | {"state": "weight", "against": ""} | weight)
            adam = {n: noise() for n in ADAM} | {"eps_ratio": 1e4 * noise(), "optimizer_step": step}
            adam |= {"bound_violations": 0.0, "v_negative": 0.0}
            if module == "embed":
                adam["v_row_top_share"] = 0.1 * noise()
            rows.append(key | {"state": "adam", "against": ""} | adam)
            for against, earlier in (("previous", step - 10), ("ancestor", 200)):
                if step <= earlier:
                    continue
                away = {n: noise() for n in AWAY} | {
                    "lr_between": 1e-3 * (step - earlier), "decay_between": 1.0,
                    "max_change": 5e-4 * (step - earlier) * noise(),
                    "reference_step": earlier,
                }  # fmt: skip
                rows.append(key | {"state": "weight", "against": against} | away)
            if branch != "normal":
                rows.append(
                    key | {"state": "weight", "against": "partner", "displacement": noise()}
                )
    table = pd.DataFrame(rows)
    whole = ["number", "step", "tokens", "layer", "expert", "head", "reference_step"]
    return table.astype(dict.fromkeys(whole, "Int64"))


def made_table() -> pd.DataFrame:
    """A fresh copy."""
    return _made().copy()


def spiked(onset: int, end: int) -> pd.DataFrame:
    """A SPIKES frame of one lasting spike of the branch."""
    return pd.DataFrame(
        {"branch": ["spike"], "channel": "sustained", "onset": [onset], "end": [end],
         "height": 2.0, "censored": False}
    )  # fmt: skip
