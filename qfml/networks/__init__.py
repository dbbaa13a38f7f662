"""Network specifications, run as stacks of members."""

from dataclasses import replace
from typing import Any

from qfml.networks.base import (
    Dropout,
    Network,
    WrittenGradient,
    dropout_threshold,
    works_on_all_threads,
    writes_gradient,
)
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


def architecture(network: Network) -> Any:
    """What networks have in common that can be one stack: all but a probability of dropout, which is each member's own.

    A network that is none of `NETWORKS` may use its probability as it likes, and is only like its equals.
    """
    if type(network) in NETWORKS.values() and network.dropout_units:
        return replace(network, dropout=0.5)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return network


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
    "architecture",
    "as_network",
    "dropout_threshold",
    "works_on_all_threads",
    "writes_gradient",
]
