"""Shared by all tests: no threads that spin, no look at the real Hub."""

import os

# On two cores that do other work as well, OpenMP's waiting threads make everything slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["NO_PROXY"] = "127.0.0.1"

from tests.demo_fixtures import tiny_demo  # noqa: E402, F401
