"""One spike from near, with what Adam's moments did around it: python plot_anatomy.py FOLDER."""

import sys

import analysis360 as a360

run = a360.open_run(sys.argv[1])
loss = a360.read_loss(run)
spikes = a360.find_spikes(loss, column="loss")
highest = spikes.sort_values("height").tail(1)
if highest.empty:  # a run of seconds need not spike: draw its last step as if it were one
    highest = {"branch": loss["branch"].iloc[-1], "onset": loss["step"].max(), "end": None}
    table = None
else:
    a360.plan(run, ["grad_norm_ema", "update_rms"], memory="1 GB").run("gallery_anatomy")
    table = a360.load_table("gallery_anatomy", by="all")
a360.plot_anatomy(loss, highest, table=table, adam=run.adam).savefig("plot_anatomy.png")
