"""Splitters that purge: walk-forward, purged K-fold and combinatorial purged K-fold."""
