"""Network specifications, run as stacks of members."""

from qfml.networks.base import Dropout, Network, WrittenGradient, writes_gradient
from qfml.networks.convex import ConvexMLP
from qfml.networks.mlp import MLP
from qfml.networks.module import Module, ModuleFactory, as_network
from qfml.networks.monotone import MonotoneMLP
from qfml.networks.recurrent import GRU, LSTM
from qfml.networks.residual_mlp import ResidualMLP
from qfml.networks.tabm import TabM
from qfml.networks.tcn import TCN
from qfml.networks.transformer import Transformer

NETWORKS: dict[str, type] = {
    cls.kind: cls for cls in (MLP, ResidualMLP, MonotoneMLP, ConvexMLP, TabM, TCN, LSTM, GRU, Transformer)
}

__all__ = [
    "GRU",
    "LSTM",
    "MLP",
    "NETWORKS",
    "TCN",
    "ConvexMLP",
    "Dropout",
    "Module",
    "ModuleFactory",
    "MonotoneMLP",
    "Network",
    "ResidualMLP",
    "TabM",
    "Transformer",
    "WrittenGradient",
    "as_network",
    "writes_gradient",
]
