"""Noise of the gradient, as Adam's moments tell it: python plot_noise.py FOLDER."""

import sys

import analysis360 as a360

run = a360.open_run(sys.argv[1])
statistics = ["adam_snr", "adam_snr_null", "adam_snr_se", "noise_scale", "noise_scale_se"]
a360.plan(run, statistics, memory="1 GB").run("gallery_noise")
for level in ("all", "layer"):
    table = a360.load_table("gallery_noise", by=level)
    a360.plot_noise(table).savefig(f"plot_noise_{level}.png")
