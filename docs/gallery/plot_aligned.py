"""Loss about every spike that was found, each at its own onset: python plot_aligned.py FOLDER."""

import sys

import pandas as pd

import analysis360 as a360

run = a360.open_run(sys.argv[1])
loss = a360.read_loss(run)
spikes = a360.find_spikes(loss)
events = []
for event, spike in enumerate(spikes.to_dict("records"), start=1):
    mine = loss[loss["branch"] == spike["branch"]]
    parent = loss[loss["branch"] == mine["parent"].iloc[0]]  # a branch begins at its fork
    mine = pd.concat([parent[parent["step"] < mine["step"].min()], mine]).set_index("step")
    near = mine.loc[spike["onset"] - 30 : spike["onset"] + 200].assign(branch=spike["branch"])
    since = near["tokens"] - spike["onset_tokens"]
    before = near["loss"][since < 0].iloc[-1]
    events.append(near.assign(event=event, since_tokens=since, change=near["loss"] - before))
aligned = pd.concat(events, ignore_index=True)
figure = a360.plot_aligned(aligned, label="loss less that before the onset\n(nats per token)")
figure.savefig("plot_aligned.png")
