"""M3, M4, M6, M9: what weights alone show, or nearly alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from analysis360.evidence.case import Case, Effects
from analysis360.evidence.pieces import (
    AGAINST,
    FOR,
    INCONCLUSIVE,
    Piece,
    beyond_others,
    judge,
    mechanism,
    of_modules,
    untestable,
)

FEWEST_FOR_GROWTH = 4
"""Checkpoints that "exponentially" needs: of three, two intervals are alike too easily."""


@mechanism("M3", "attention logits grow")
def logits(case: Case) -> Iterator[Piece]:
    """Queries and keys of few heads grow, beyond other matrices (Wortsman et al. 2023)."""
    made = case.effects("qk_logit_rms")
    if made.why and made.mine.empty:
        made = _product(case)
    yield judge(made, case, f"the size of the attention logits for isotropic inputs stood to "
                f"{case.to}'s at", needs="query and key weights", role="key")  # fmt: skip
    name = "spectral_norm" if not case.rows("spectral_norm").empty else "rms"
    grew = case.effects(name).map(beyond_others("attn.q", "attn.k"))
    yield judge(grew, case, f"{name} of queries or keys grew beyond that of any other module by",
                needs="weights", role="key")  # fmt: skip
    rank = case.effects("stable_rank").map(of_modules("attn.q", "attn.k"))
    yield judge(rank, case, f"the stable rank of queries or keys stood to {case.to}'s at", sign=-1,
                needs="singular values")  # fmt: skip
    yield untestable("", "true logits and attention entropy are not in a checkpoint",
                     "a forward pass")  # fmt: skip


def _product(case: Case) -> Effects:
    """Growth of the product of norms of queries and keys, where heads were not divided."""
    name = "spectral_norm" if not case.rows("spectral_norm").empty else "rms"

    def product(frame: pd.DataFrame) -> pd.DataFrame:
        mine = frame[frame["module"].isin(["attn.q", "attn.k"])]
        whole = mine.groupby(["layer", "head", "step"], dropna=False)["effect"]
        both = whole.agg(["sum", "size"]).reset_index()
        both = both[both["size"] == 2]
        return pd.DataFrame({
            "where": [f"attention of layer {n:.0f}" for n in both["layer"]], "module": "attn",
            "layer": both["layer"], "head": both["head"], "step": both["step"],
            "effect": both["sum"],
        })  # fmt: skip

    made = case.effects(name).map(product)
    return replace(made, statistic=f"{name} of queries × of keys")


@mechanism("M4", "output logits drift")
def drift(case: Case) -> Iterator[Piece]:
    """The part that all rows of the head share grows, and log Z with it (PaLM, OLMo 2)."""
    head = of_modules("head")
    yield judge(case.effects("mean_row_norm").map(head), case,
                f"the norm of the head's mean row stood to {case.to}'s at",
                needs="weights of the head", role="key")  # fmt: skip
    yield _beyond_rms(case)
    yield untestable("", "log Z is not in a checkpoint", "a forward pass")


def _beyond_rms(case: Case) -> Piece:
    """Growth of the mean row less that of the RMS of any other module: not of all weights alike."""
    mean, rms = case.effects("mean_row_norm").map(of_modules("head")), case.effects("rms")
    why = mean.why or rms.why
    if why:
        return untestable("mean_row_norm", why, "weights", "key")

    def less(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
        rest = other[other["module"] != "head"].groupby("step")["effect"].max().clip(lower=0)
        away = one["step"].map(rest).astype("float64").fillna(0.0)
        return one.assign(effect=one["effect"] - away)

    calm = tuple(less(a, b) for a, b in zip(mean.calm, rms.calm))
    made = replace(mean, mine=less(mean.mine, rms.mine), calm=calm)
    return judge(made, case, "the head's mean row grew beyond the RMS of any other module by",
                 needs="weights", role="key")  # fmt: skip


@mechanism("M6", "weight norms too small for the step")
def small_norms(case: Case) -> Iterator[Piece]:
    """Norms fall and gradients of the same tensor rise as 1/norm² (Li, Zhou and Xu 2026)."""
    mlp = of_modules("mlp.gate", "mlp.up", "mlp.down")
    rms, grad = case.effects("rms").map(mlp), case.effects("grad_norm_ema").map(mlp)
    yield judge(rms, case, f"the RMS of an MLP matrix stood to {case.to}'s at", sign=-1,
                needs="weights", role="key")  # fmt: skip
    if grad.why:
        yield untestable("grad_norm_ema", grad.why, "exp_avg_sq", "key")
    else:
        fell = rms.mine.set_index(["where", "step"])["effect"]
        low = rms.limits(rms.mine["step"].tolist(), -1)
        fits = [
            fell.get((w, s), math.nan) < -low.get(s, math.inf)
            for w, s in zip(grad.mine["where"], grad.mine["step"])
        ]
        kept = grad.mine[np.array(fits, dtype=bool)]
        if kept.empty and len(grad.mine):
            yield Piece(AGAINST, "no MLP matrix whose RMS fell has a gradient to go with it",
                        "grad_norm_ema", 0.0, math.nan, "tensors", n=len(grad.mine),
                        source=grad.source, needs="weights and exp_avg_sq", role="key")  # fmt: skip
        else:
            yield judge(replace(grad, mine=kept), case,
                        f"√Σv̂ of a matrix whose RMS fell stood to {case.to}'s at",
                        needs="weights and exp_avg_sq", role="key")  # fmt: skip
    yield untestable("", "the critical norm is √(η·sharpness/2), and no sharpness is stored",
                     "Hessian-vector products")  # fmt: skip


@mechanism("M9", "numerical inflation of one direction of the head")
def inflation(case: Case) -> Iterator[Piece]:
    """The mean row of the head grows exponentially while the rest of it is flat."""
    head = of_modules("head")
    mean, rest = case.effects("mean_row_norm").map(head), case.effects("centred_row_norm").map(head)
    why = mean.why or rest.why
    if why:
        yield untestable("mean_row_norm", why, "weights of the head", "key")
        yield untestable("mean_row_norm", why, "weights of the head", "key")
    else:
        yield judge(_less(mean, rest), case, "the mean row of the head grew beyond its rows about "
                    "it by", needs="weights of the head", role="key")  # fmt: skip
        yield _exponential(case, mean)
    yield untestable("", "whether features and classifiers point opposite ways is not in weights",
                     "a forward pass")  # fmt: skip


def _less(one: Effects, other: Effects) -> Effects:
    def less(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
        both = a.merge(b[["where", "step", "effect"]], on=["where", "step"], suffixes=("", " b"))
        both["effect"] = both["effect"] - both["effect b"]
        return both.drop(columns="effect b")

    calm = tuple(less(a, b) for a, b in zip(one.calm, other.calm))
    return replace(one, mine=less(one.mine, other.mine), calm=calm)


def _exponential(case: Case, mean: Effects) -> Piece:
    """Whether the growth beyond the reference goes on, in proportion to the steps."""
    needs = f"{FEWEST_FOR_GROWTH} checkpoints"
    mine = mean.mine[mean.mine["step"] <= case.early].sort_values("step")
    if len(mine) < FEWEST_FOR_GROWTH:
        why = f"too few points: {len(mine)} up to the onset interval, of {FEWEST_FOR_GROWTH}"
        return untestable("mean_row_norm", why, needs, "key")
    effect = mine["effect"].to_numpy(dtype=np.float64)
    share = float((np.diff(effect) > 0).mean())
    step = int(mine["step"].iloc[-1])
    direction = FOR if share == 1.0 else AGAINST if share <= 0.5 else INCONCLUSIVE
    said = f"it grew in {share:.0%} of {len(effect) - 1} intervals (limit: all), last step {step}"
    return Piece(direction, said, "mean_row_norm", share, 1.0, "fraction of intervals", "head",
                 step, len(effect) - 1, "", "definition: what grows exponentially never shrinks",
                 needs, "key")  # fmt: skip
