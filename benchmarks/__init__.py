"""Scripts that measure; see README.md. Run them as modules, from the root of the repository."""
