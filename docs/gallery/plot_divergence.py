"""How far the branches move apart after the fork: python plot_divergence.py FOLDER."""

import sys

import analysis360 as a360

run = a360.open_run(sys.argv[1])
statistics = ["displacement", "rel_displacement", "cosine"]
plan = a360.plan(run, statistics, against=["partner", "ancestor"], memory="1 GB")
plan.run("gallery_divergence")
table = a360.load_table("gallery_divergence", by="module")
a360.plot_divergence(table, forks=run.forks).savefig("plot_divergence.png")
