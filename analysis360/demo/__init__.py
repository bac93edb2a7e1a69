"""A real training run with a real loss spike, made in minutes on two cores."""

from __future__ import annotations

from analysis360.demo.config import BRANCHES, DEMO, TINY, DemoConfig
from analysis360.demo.forks import train_forks
from analysis360.demo.loop import Fault, Moment
from analysis360.demo.outcome import demo_outcome
from analysis360.demo.train import train_demo

__all__ = [
    "BRANCHES",
    "DEMO",
    "TINY",
    "DemoConfig",
    "Fault",
    "Moment",
    "demo_outcome",
    "train_demo",
    "train_forks",
]
