"""Evidence for and against mechanisms: a constructed matrix, to show columns and picture."""

import pandas as pd

import analysis360 as a360

columns = ["mechanism", "name", "for", "against", "untestable", "inconclusive", "verdict"]
matrix = pd.DataFrame([
    ("M1", "preconditioner decoupling", "RMS(u) rose ×2.4 in mlp.down at step 200 (n = 12)", "",
     "", "√Σv̂ fell by 0.02 dex, within the scatter of 0.05 dex of 3 placebos", "more for"),
    ("M3", "attention-logit growth", "", "σ₁(W_Q)σ₁(W_K) grew by 1 % in both branches", "", "",
     "more against"),
    ("M7", "data trigger", "", "", "the nearest checkpoint lies 20 steps after the onset", "",
     "untestable"),
    ("M8", "restart fault", "", "the learning rates are equal at all 480 steps", "", "",
     "more against"),
], columns=columns)  # fmt: skip
a360.plot_evidence(matrix).savefig("plot_evidence.png")
