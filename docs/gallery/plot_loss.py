"""Loss of all branches of a demo run, with its spikes: python plot_loss.py FOLDER."""

import sys

import analysis360 as a360

run = a360.open_run(sys.argv[1])
loss = a360.read_loss(run)
figure = a360.plot_loss(
    loss,
    a360.find_spikes(loss),
    events=run.events,
    heldout=a360.read_loss(run, which="heldout"),
    checkpoints=run.checkpoints,
)
figure.savefig("plot_loss.png")
