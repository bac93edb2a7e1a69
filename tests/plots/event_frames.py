"""Frames of events, crossings and evidence with the columns of the real ones: constructed."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tests.plots.frames import STEPS, TOKENS


def aligned_frame(events: int = 5, layers: int = 1) -> pd.DataFrame:
    """Events whose points lie at different places about their onset."""
    rng = np.random.default_rng(4)
    rows = []
    for event in range(1, events + 1):
        onset = 100 * event + event
        for layer in range(layers):
            for module in ("attn.q", "mlp.up"):
                steps = np.arange(onset - 4 * STEPS - event, onset + 8 * STEPS, STEPS)
                since = steps - onset
                value = 1 + np.where(since > 0, 0.5 * np.exp(-since / 150), 0.0)
                value = value * rng.normal(1, 0.02, since.size)
                before = float(value[since < 0][-1])
                rows.append(pd.DataFrame({
                    "run": "demo", "branch": "spike" if event < events else "normal",
                    "event": event, "onset": onset, "onset_tokens": onset * TOKENS,
                    "name": f"layers.{layer}.{module}.weight", "layer": layer, "module": module,
                    "param": "weight", "expert": pd.NA, "head": pd.NA, "state": "adam",
                    "against": "", "step": steps, "tokens": steps * TOKENS, "since_steps": since,
                    "since_tokens": since * TOKENS, "value": value, "before": before,
                    "change": value - before, "log2_ratio": np.log2(value / before),
                }))  # fmt: skip
    return pd.concat(rows, ignore_index=True)


def crossings_frame() -> pd.DataFrame:
    """One of each kind, one that never crossed, and one outside from its first point on."""
    names = {
        "loss": ["loss"], "grad norm": ["gradient norm"],
        "statistic": ["update_rms, layers.12.mlp.down.weight", "rms, embed.weight",
                      "adam_snr, layers.0.attn.q.weight", "stable_rank, layers.3.attn.o.weight"],
        "benchmark": ["next_byte_code", "bracket_closing"],
    }  # fmt: skip
    after = [180, 179, 160, 160, np.nan, 480, 160, 200]
    by = [181, 180, 200, 200, 160, np.nan, 200, 240]
    kinds = [kind for kind, mine in names.items() for _ in mine]
    return pd.DataFrame({
        "kind": kinds, "name": [name for mine in names.values() for name in mine],
        "after_tokens": np.array(after) * TOKENS, "by_tokens": np.array(by) * TOKENS,
        "after_step": after, "by_step": by, "z": [66.0, 8.1, 5.2, 3.9, 3.3, np.nan, -4.4, -3.2],
        "threshold": 3.0, "n": [480, 480, 12, 12, 12, 12, 8, 8],
        "status": ["crossed"] * 4 + ["outside at the first point", "not crossed"] + ["crossed"] * 2,
    }).astype({c: "Int64" for c in ("after_tokens", "by_tokens", "after_step", "by_step", "n")})  # fmt: skip


def lags_frame(names: int = 1) -> pd.DataFrame:
    rng = np.random.default_rng(5)
    lag = np.arange(-6, 7)
    frames = [
        pd.DataFrame({
            "name": f"series {i}", "lag_tokens": lag * STEPS * TOKENS,
            "correlation": 0.7 * np.exp(-((lag - 1 - i) ** 2) / 4) + rng.normal(0, 0.08, lag.size),
            "low": -0.45, "high": 0.45, "n": 12,
        })
        for i in range(names)
    ]  # fmt: skip
    return pd.concat(frames, ignore_index=True)


NAMES = (
    "stale second moment", "edge of stability", "attention entropy collapse", "output logit drift",
    "shallow gradient outliers", "norm gain runaway", "epsilon underflow", "embedding gradients",
    "bad data", "hardware fault",
)  # fmt: skip


def matrix_frame() -> pd.DataFrame:
    rows = []
    for i, name in enumerate(NAMES):
        kind = ("for", "against", "untestable", "inconclusive")[i % 4]
        row = {
            "mechanism": f"M{i + 1}", "name": name, "for": "", "against": "", "untestable": "",
            "inconclusive": "", "verdict": kind,
        }  # fmt: skip
        row[kind] = {
            "for": "RMS(u) of layers.12.mlp.down.weight is 2.13 at step 181, over 1.1 (n = 12)",
            "against": "√v of embed.weight moved by 0.004 dex, under the null of 0.138 dex",
            "untestable": "no optimizer state was measured; plan the states exp_avg, exp_avg_sq",
            "inconclusive": "stable rank 41.2 against 43.9, |z| = 1.4 of 3 placebos",
        }[kind]
        if i in (0, 4):
            row["against"] = "the learning rate was $5$ times lower (ρ = 0.31 of 0.0526)"
        rows.append(row)
    return pd.DataFrame(rows)
