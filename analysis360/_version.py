"""Version of the package, kept apart so that building it imports nothing."""

__version__ = "0.1.0"
