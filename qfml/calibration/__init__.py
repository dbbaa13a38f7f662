"""Models fitted to quotes: surfaces, exact and neural calibration, one at a time or thousands at once."""

from qfml.calibration.heston import HestonCalibration
from qfml.calibration.least_squares import STATUS, Solution, least_squares
from qfml.calibration.model import CALIBRATION_MODELS, CalibrationModel, Parameter, Quotes

for _model in (HestonCalibration,):
    CALIBRATION_MODELS[_model.kind] = _model

__all__ = [
    "CALIBRATION_MODELS",
    "STATUS",
    "CalibrationModel",
    "HestonCalibration",
    "Parameter",
    "Quotes",
    "Solution",
    "least_squares",
]
