"""Deep hedging: policies trained on paths of a market, judged beside the textbook's hedges and exact answers."""

from qfml.hedging.paths import PathSet

__all__ = ["PathSet"]
