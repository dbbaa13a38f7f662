"""Network specifications, run as stacks of members."""

from qfml.networks.base import Dropout, Network
from qfml.networks.mlp import MLP
from qfml.networks.tcn import TCN

NETWORKS: dict[str, type] = {cls.kind: cls for cls in (MLP, TCN)}

__all__ = ["MLP", "NETWORKS", "TCN", "Dropout", "Network"]
