"""Singular values of the weights, and the logits that they allow: python plot_spectra.py FOLDER."""

import sys

import analysis360 as a360

run = a360.open_run(sys.argv[1])
tail = ["power_law_alpha", "power_law_alpha_se", "power_law_xmin", "power_law_tail"]
statistics = ["spectral_norm", "stable_rank", "effective_rank", *tail]
logits = ["qk_logit_rms", "qk_logit_bound"]
a360.plan(run, [*statistics, *logits], per_head=True, memory="1 GB").run("gallery_spectra")
table = a360.load_table("gallery_spectra")
vectors = a360.load_table("gallery_spectra", kind="vectors")
a360.plot_spectra(table, vectors, module="mlp.down").savefig("plot_spectra.png")
