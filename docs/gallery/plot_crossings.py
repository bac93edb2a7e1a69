"""What first left the branch without the fault, and when: python plot_crossings.py FOLDER."""

import sys

import analysis360 as a360

run = a360.open_run(sys.argv[1])
loss = a360.read_loss(run)
checkpoints = run.checkpoints.assign(run=run.name)
joined = a360.join_benchmarks(checkpoints, a360.read_benchmarks(run), to="normal")
a360.plan(run, ["rms", "update_rms", "grad_norm_ema"], memory="1 GB").run("gallery_crossings")
table = a360.load_table("gallery_crossings", by="all")  # few families: the largest score is less
scores = a360.score_branches(table, "spike", placebos=["placebo"], spikes=a360.find_spikes(loss))
crossings = a360.first_crossings(scores, placebos=["placebo"], loss=loss, benchmarks=joined)
a360.plot_crossings(crossings).savefig("plot_crossings.png")
