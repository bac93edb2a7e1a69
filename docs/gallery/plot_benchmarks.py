"""Benchmarks of all branches, and their gap to the normal one: python plot_benchmarks.py FOLDER."""

import sys

import analysis360 as a360

run = a360.open_run(sys.argv[1])
checkpoints = run.checkpoints.assign(run=run.name)
joined = a360.join_benchmarks(checkpoints, a360.read_benchmarks(run))
a360.plot_benchmarks(joined).savefig("plot_benchmarks.png")
