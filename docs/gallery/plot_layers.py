"""Where the spike branch differs from the restarted one: python plot_layers.py FOLDER."""

import sys

import analysis360 as a360

run = a360.open_run(sys.argv[1])
a360.plan(run, ["rms", "stable_rank"], memory="1 GB").run("gallery_layers")
table = a360.load_table("gallery_layers")
apart = a360.compare_branches(table, "spike", to="normal")
a360.plot_layers(apart, "rms").savefig("plot_layers.png")
