"""How Adam's second moment and update are distributed: python plot_moment_histograms.py FOLDER."""

import sys

import analysis360 as a360

run = a360.open_run(sys.argv[1])
a360.plan(run, ["v_anisotropy", "update_p50"], memory="1 GB").run("gallery_moment_histograms")
vectors = a360.load_table("gallery_moment_histograms", kind="vectors")
figure = a360.plot_moment_histograms(vectors, adam=run.adam)
figure.savefig("plot_moment_histograms.png")
embed = vectors[vectors["module"] == "embed"]
figure = a360.plot_moment_histograms(embed, adam=run.adam, size="column")
figure.savefig("plot_moment_histograms_embed.png")
