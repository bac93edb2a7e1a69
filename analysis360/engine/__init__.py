"""The engine: plan what to read, read each stored byte once, measure, keep what is finished."""

from analysis360.engine.plan import Plan
from analysis360.engine.planner import plan

__all__ = ["Plan", "plan"]
