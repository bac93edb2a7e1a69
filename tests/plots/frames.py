"""Small frames with the columns of the real ones, for the figures and the report."""

from __future__ import annotations

import numpy as np
import pandas as pd

STEPS, TOKENS, FORK = 40, 2560, 4
MODULES = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down")
NORMS = ("norm.attn", "norm.mlp")
OUTSIDE = ("embed", "norm.final", "head")


def loss_frame(chunks: int = 12) -> pd.DataFrame:
    """Loss of three branches: spike is the trunk, the others leave it after chunk FORK."""
    rng = np.random.default_rng(0)
    frames = []
    for branch in ("spike", "normal", "placebo"):
        first = 1 if branch == "spike" else FORK * STEPS + 1
        step = np.arange(first, chunks * STEPS + 1)
        loss = 5.0 * step**-0.12 + rng.normal(0, 0.03, step.size)
        if branch == "spike":
            after = np.clip(step - (FORK * STEPS + 20), 0, None)
            loss += 2.0 * np.where(after > 0, np.exp(-after / 60), 0.0)
        frames.append(pd.DataFrame({
            "branch": branch, "parent": pd.NA if branch == "spike" else "spike", "step": step,
            "tokens": step * TOKENS, "loss": loss,
            "grad_norm": np.exp(rng.normal(0, 0.2, step.size)), "lr": 1e-3,
        }))  # fmt: skip
    return pd.concat(frames, ignore_index=True).astype({"step": "Int64", "tokens": "Int64"})


def heldout_frame(chunks: int = 12) -> pd.DataFrame:
    loss = loss_frame(chunks)
    rows = loss[loss["step"] % STEPS == 0][["branch", "step", "tokens", "loss"]]
    return rows.assign(stderr=0.05, n=2048).reset_index(drop=True)


def spikes_frame(censored: bool = False) -> pd.DataFrame:
    end = pd.NA if censored else 320
    row = {
        "branch": "spike", "channel": "sustained", "onset": 181, "peak": 184, "end": end,
        "recovery": end, "onset_tokens": 181 * TOKENS, "peak_tokens": 184 * TOKENS,
        "end_tokens": pd.NA if censored else 320 * TOKENS,
        "recovery_tokens": pd.NA if censored else 320 * TOKENS, "baseline": 2.7, "sigma": 0.03,
        "peak_loss": 4.7, "height": 2.0, "z": 66.0, "excess_area": 100.0, "residual": 0.01,
        "censored": censored, "points": 139,
    }  # fmt: skip
    fast = row | {"channel": "fast", "onset": 90, "peak": 90, "end": 91, "censored": False}
    whole = {c: "Int64" for c in row if c.split("_")[0] in ("onset", "peak", "end", "recovery")}
    whole.pop("peak_loss")
    return pd.DataFrame([row, fast]).astype(whole)


def tensors(layers: int) -> list[dict[str, object]]:
    inside = [
        {"layer": layer, "module": module, "name": f"layers.{layer}.{module}.weight"}
        for layer in range(layers) for module in (*MODULES, *NORMS)
    ]  # fmt: skip
    return inside + [{"layer": pd.NA, "module": m, "name": f"{m}.weight"} for m in OUTSIDE]


def table_frame(by: str = "tensor", layers: int = 4, chunks: int = 12) -> pd.DataFrame:
    """Measured table at one level, with weight and adam rows."""
    rng = np.random.default_rng(1)
    lines: list[dict[str, object]] = {
        "tensor": tensors(layers),
        "layer": [{"layer": i, "module": "", "name": ""} for i in [*range(layers), pd.NA]],
        "module": [{"layer": pd.NA, "module": m, "name": ""} for m in (*MODULES, *NORMS, *OUTSIDE)],
        "all": [{"layer": pd.NA, "module": "", "name": ""}],
    }[by]  # type: ignore[assignment]
    rows = []
    for branch in ("spike", "normal", "placebo"):
        for number in range(1 if branch == "spike" else FORK + 1, chunks + 1):
            since = max(number - FORK, 0)
            apart = {"spike": 1.0, "normal": 1.0, "placebo": 0.4}[branch]
            for line in lines:
                common = {
                    "run": "demo", "branch": branch, "number": number, "step": number * STEPS,
                    "tokens": number * STEPS * TOKENS, **line, "param": "weight" if by == "tensor" else "",
                    "expert": pd.NA, "head": pd.NA, "numel": 1000,
                }  # fmt: skip
                noise = float(rng.normal(1, 0.05))
                rows.append(common | {"state": "weight", "against": "", "rms": 0.02 * noise})
                rows.append(common | {
                    "state": "adam", "against": "", "update_rms": 0.3 * noise,
                    "adam_snr": 0.06 * noise, "adam_snr_null": 0.0526, "grad_norm_ema": noise,
                    "eps_fraction": 0.001 * noise,
                })  # fmt: skip
                if since:
                    rows.append(common | {
                        "state": "weight", "against": "partner",
                        "displacement": apart * since**0.6 * noise,
                        "rel_displacement": 0.05 * apart * since**0.6 * noise, "cosine": 0.9,
                    })  # fmt: skip
                    rows.append(common | {
                        "state": "weight", "against": "ancestor", "displacement": since**0.6,
                        "rel_displacement": 0.1 * since**0.6, "cosine": 1 - 0.02 * since * noise,
                    })  # fmt: skip
    whole = dict.fromkeys(("number", "step", "tokens", "layer", "expert", "head", "numel"), "Int64")
    return pd.DataFrame(rows).astype(whole)


def apart_frame(by: str = "tensor", layers: int = 4) -> pd.DataFrame:
    """Long comparison of spike with normal; one checkpoint of the spike has no partner."""
    table = table_frame(by, layers)
    rng = np.random.default_rng(2)
    rows = table[(table["branch"] == "spike") & (table["number"] >= FORK)]
    rows = rows[(rows["against"] == "") & (rows["state"] == "weight")]
    ratio = rng.normal(0, 0.3, len(rows)) + 0.2 * (rows["layer"].fillna(0).astype(float) - 1)
    matched = (rows["number"] != FORK).to_numpy()
    return rows[
        ["run", "name", "layer", "module", "param", "expert", "head", "state", "against", "number",
         "step", "tokens"]
    ].assign(
        tokens_since=(rows["number"] - FORK) * STEPS * TOKENS, statistic="rms", value=rows["rms"],
        reference=np.where(matched, rows["rms"], np.nan), difference=0.0,
        log2_ratio=np.where(matched, ratio, np.nan),
        status=np.where(matched, "matched", "no partner"),
    ).reset_index(drop=True)  # fmt: skip


def joined_frame(chunks: int = 12) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    rows = []
    for benchmark in ("next_byte_code", "next_byte_docstring", "digits", "bracket_closing"):
        for branch in ("spike", "normal"):
            for number in range(1 if branch == "spike" else FORK + 1, chunks + 1):
                value = 0.5 - 0.3 / number + float(rng.normal(0, 0.01))
                gap = branch == "spike" and number > FORK
                rows.append({
                    "run": "demo", "branch": branch, "number": number, "step": number * STEPS,
                    "tokens": number * STEPS * TOKENS, "benchmark": benchmark, "shots": 0,
                    "metric": "acc", "value": value, "stderr": 0.012, "n": 2048,
                    "higher_is_better": True, "source": f"{branch}_ckpt_{number:03d}",
                    "reference_branch": "normal" if branch == "spike" else pd.NA,
                    "reference": value + 0.05 if gap else np.nan,
                    "gap": -0.05 + float(rng.normal(0, 0.01)) if gap else np.nan,
                    "gap_stderr": 0.017 if gap else np.nan,
                })  # fmt: skip
    return pd.DataFrame(rows).astype({"number": "Int64", "step": "Int64", "tokens": "Int64"})
