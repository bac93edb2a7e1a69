"""Packaged data: runs, model families."""
