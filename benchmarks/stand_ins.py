"""How well statistics of weights alone stand in for those of Adam's moments, on a demo run.

    python benchmarks/stand_ins.py analysis360-demo/measured

The folder is to hold `EVIDENCE_STATISTICS` beyond the default. Spearman's rank correlation, over
the matrices, of the log ratios of a branch to `normal`, checkpoint by checkpoint up to the return
of the postponed chunk, and how many of the ten largest are the same.
"""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

import analysis360 as a360
from analysis360.evidence.case import MATRICES

RETURN, TEN = 1400, 10
PAIRS = (
    ("M2", "coherence", "previous", "adam_snr"),
    ("M2", "max_change", "previous", "update_rms"),
    ("M5", "displacement", "previous", "grad_norm_ema"),
    ("M1", "rms", "", "grad_norm_ema"),
    ("M1", "displacement", "previous", "effective_lr_p99"),
    ("M1", "coherence", "previous", "update_rms"),
    ("M7", "mean_row_norm", "", "v_row_top_share"),
)


def effects(table: pd.DataFrame, statistic: str, against: str, branch: str) -> pd.Series:
    rows = table[table[statistic].notna() & (table["against"] == against)]
    apart = a360.compare_branches(rows, branch, statistics=[statistic])
    apart = apart[(apart["status"] == "matched") & (apart["step"] <= RETURN)]
    return apart.set_index(["step", "name"])["log2_ratio"].dropna()


def main() -> None:
    table = a360.load_table(sys.argv[1])
    table = table[table["module"].isin(MATRICES)]
    print("| branch | | weights | moments | first | median (range) | top 10: first | median |")
    print("|---|---|---|---|---|---|---|---|")
    for branch in ("spike", "placebo"):
        for code, weight, against, moment in PAIRS:
            both = pd.concat(
                [effects(table, weight, against, branch), effects(table, moment, "", branch)],
                axis=1, join="inner", keys=["x", "y"],
            ).dropna()  # fmt: skip
            of = [mine for _, mine in both.groupby("step")]
            rho = [spearmanr(mine["x"], mine["y"])[0] for mine in of]
            top = [
                len(set(m["x"].nlargest(TEN).index) & set(m["y"].nlargest(TEN).index)) for m in of
            ]
            print(
                f"| {branch} | {code} | {weight} | {moment} | {rho[0]:+.2f} | "
                f"{np.median(rho):+.2f} ({min(rho):+.2f} to {max(rho):+.2f}) | {top[0]} | "
                f"{np.median(top):g} |"
            )


if __name__ == "__main__":
    main()
