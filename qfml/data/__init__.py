"""Time-stamped data: sources, features, labels, weights, transforms and the dataset that carries time."""

from qfml.data.dataset import TimeDataset

__all__ = ["TimeDataset"]
