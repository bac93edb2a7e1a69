"""Loss about every spike that was found, each at its own onset: python plot_aligned.py FOLDER."""

import sys

import analysis360 as a360

run = a360.open_run(sys.argv[1])
loss = a360.read_loss(run)
spikes = a360.find_spikes(loss)
aligned = a360.align_spikes(loss, spikes, "loss", before=30, after=200, by="step")
figure = a360.plot_aligned(aligned, label="loss less that before the onset\n(nats per token)")
figure.savefig("plot_aligned.png")
