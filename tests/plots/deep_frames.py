"""Frames of histograms, spectra, rows of tokens and moments, for the figures of one spike."""

import numpy as np
import pandas as pd

from tests.plots.frames import STEPS, TOKENS

BRANCHES = ("placebo", "normal", "spike")


def vectors_frame(numbers=(4, 5), layers: int = 2, rows: int = 30) -> pd.DataFrame:
    """What ``load_table(kind="vectors")`` gives: histograms, singular values and rows."""
    rng = np.random.default_rng(5)
    found = []
    for branch in BRANCHES:
        for number in numbers:
            key = {
                "run": "demo", "branch": branch, "number": number, "step": number * STEPS,
                "tokens": number * STEPS * TOKENS, "param": "weight", "expert": pd.NA,
                "head": pd.NA, "against": "",
            }  # fmt: skip
            for layer in range(layers):
                mine = key | {"name": f"layers.{layer}.mlp.up", "layer": layer, "module": "mlp.up"}
                found.append(mine | {
                    "state": "weight", "vector": "singular_values",
                    "values": np.sort(rng.pareto(2.0, 40) + 0.1)[::-1],
                })  # fmt: skip
                for vector, size in (("root_v_bins", 1e-5), ("update_bins", 0.2)):
                    found.append(mine | {
                        "state": "adam", "vector": vector,
                        "values": counted(size * np.abs(rng.normal(size=2000))),
                    })  # fmt: skip
            for module in ("embed", "head"):
                mine = key | {"name": f"{module}.weight", "layer": pd.NA, "module": module}
                for vector, state in (("row_v_sum", "adam"), ("row_square_sum", "weight")):
                    values = rng.lognormal(size=rows)
                    values[-2:] = 0.0 if vector == "row_v_sum" else 1e-6
                    found.append(mine | {"state": state, "vector": vector, "values": values})
    whole = dict.fromkeys(("number", "step", "tokens", "layer", "expert", "head"), "Int64")
    return pd.DataFrame(found).astype(whole)


def counted(values: np.ndarray) -> np.ndarray:
    """Histogram in the stored bins, by the definition of a float: no edge is used."""
    fraction, exponent = np.frexp(values)
    place = (exponent - 1 + 96) * 8 + np.floor((2 * fraction - 1) * 8) + 1
    return np.bincount(place.astype(int), minlength=1026).astype(np.float64)


def spectra_table(numbers=(4, 5), layers: int = 2, heads: int = 3) -> pd.DataFrame:
    """Table of matrices with their spectra, and of heads with their logits."""
    rng = np.random.default_rng(6)
    vectors = vectors_frame(numbers, layers)
    vectors = vectors[vectors["vector"] == "singular_values"]
    matrices = vectors.drop(columns=["vector", "values"]).assign(
        spectral_norm=[v[0] for v in vectors["values"]], spectral_norm_error=[0.01 * v[0] for v in vectors["values"]],
        stable_rank=[float(np.sum(v**2) / v[0] ** 2) for v in vectors["values"]],
        power_law_alpha=3.0, power_law_alpha_se=0.5, power_law_xmin=1.0, power_law_tail=16.0,
    )  # fmt: skip
    pieces = [matrices]
    for head in range(heads):
        pieces.append(
            vectors.drop(columns=["vector", "values"]).assign(
                name=vectors["name"].str.replace("mlp.up", f"attn.q[{head}]"),
                module="attn.q",
                head=head,
                qk_logit_rms=rng.lognormal(size=len(vectors)),
                qk_logit_bound=100 * rng.lognormal(size=len(vectors)),
            )  # fmt: skip
        )
    return pd.concat(pieces, ignore_index=True).astype({"head": "Int64"})


def noise_table(by: str = "layer", layers: int = 4) -> pd.DataFrame:
    """Moments of three branches; those of the spike alone are above the null."""
    rows = []
    for branch in BRANCHES:
        for number in (0, 4, 5, 6):
            for layer in [*range(layers), pd.NA] if by == "layer" else [pd.NA]:
                ratio = 0.04 if branch != "spike" else 0.08 + 0.01 * number
                ratio = np.nan if number == 0 else ratio
                rows.append({
                    "branch": branch, "number": number, "step": number * STEPS,
                    "tokens": number * STEPS * TOKENS, "layer": layer, "state": "adam",
                    "against": "", "adam_snr": ratio, "adam_snr_null": 0.0526, "adam_snr_se": 0.01,
                    "noise_scale": (1 - ratio) / (ratio - 0.0526) if ratio > 0.0526 else np.nan,
                    "noise_scale_se": 5.0,
                })  # fmt: skip
    return pd.DataFrame(rows).astype({"layer": "Int64", "number": "Int64", "step": "Int64"})
