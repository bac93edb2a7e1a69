"""What Adam's two moments say before, in and after the spike: python plot_moments.py FOLDER."""

import sys

import analysis360 as a360

run = a360.open_run(sys.argv[1])  # no moments before the first step
statistics = ["update_rms", "adam_snr", "adam_snr_null", "grad_norm_ema", "eps_fraction"]
a360.plan(run, statistics, memory="1 GB").run("gallery_moments")
for level in ("all", "layer"):
    table = a360.load_table("gallery_moments", by=level)
    a360.plot_moments(table).savefig(f"plot_moments_{level}.png")
