"""Models fitted to quotes: surfaces, exact and neural calibration, one at a time or thousands at once."""

from qfml.calibration.bates import BatesCalibration
from qfml.calibration.calibrate import calibrate
from qfml.calibration.heston import HestonCalibration
from qfml.calibration.history import SurfaceHistory
from qfml.calibration.least_squares import STATUS, Solution, least_squares
from qfml.calibration.model import CALIBRATION_MODELS, CalibrationModel, Parameter, Quotes
from qfml.calibration.result import Calibration
from qfml.calibration.surface import Surface, as_quotes

for _model in (HestonCalibration, BatesCalibration):
    CALIBRATION_MODELS[_model.kind] = _model

__all__ = [
    "CALIBRATION_MODELS",
    "STATUS",
    "BatesCalibration",
    "Calibration",
    "CalibrationModel",
    "HestonCalibration",
    "Parameter",
    "Quotes",
    "Solution",
    "Surface",
    "SurfaceHistory",
    "as_quotes",
    "calibrate",
    "least_squares",
]
