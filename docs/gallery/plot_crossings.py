"""What left its band first: a constructed frame, to show the columns and the picture."""

import pandas as pd

import analysis360 as a360

columns = ["kind", "name", "after_step", "by_step", "z", "threshold", "n", "status"]
crossings = pd.DataFrame([
    ("loss", "loss", 181, 182, 9.4, 3.0, 480, "crossed"),
    ("grad norm", "gradient norm", 180, 181, 14.2, 3.0, 480, "crossed"),
    ("statistic", "update_rms of mlp.down", 160, 200, 5.2, 3.0, 12, "crossed"),
    ("statistic", "stable_rank of attn.o", 480, None, None, 3.0, 12, "not crossed"),
    ("benchmark", "digits", 200, 240, -3.2, 3.0, 8, "crossed"),
], columns=columns)  # fmt: skip
crossings = crossings.astype({"after_step": "Int64", "by_step": "Int64"})
lags = pd.DataFrame({
    "lag_steps": [-80, -40, 0, 40, 80], "correlation": [0.1, 0.2, 0.5, 0.6, 0.3],
    "low": -0.55, "high": 0.55, "n": 12, "name": "update_rms before digits",
})  # fmt: skip
a360.plot_crossings(crossings, lags).savefig("plot_crossings.png")
