"""Trained runs as ONNX, with proof that they compute the same."""

from qfml.export.fits import export_fits
from qfml.export.model_file import Export
from qfml.export.parity import Parity
from qfml.export.reader import ExportedModel, load_exported

__all__ = ["Export", "ExportedModel", "Parity", "export_fits", "load_exported"]
