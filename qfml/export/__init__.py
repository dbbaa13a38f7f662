"""Trained runs as ONNX, with proof that they compute the same."""

from qfml.export.fits import export_fits
from qfml.export.hedgers import export_hedger
from qfml.export.inverse_maps import export_inverse_map
from qfml.export.model_file import Export
from qfml.export.parity import Parity
from qfml.export.reader import ExportedModel, load_exported
from qfml.export.run import export_run
from qfml.export.surrogates import export_surrogate

__all__ = [
    "Export",
    "ExportedModel",
    "Parity",
    "export_fits",
    "export_hedger",
    "export_inverse_map",
    "export_run",
    "export_surrogate",
    "load_exported",
]
