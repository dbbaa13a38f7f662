"""Models fitted to quotes: surfaces, exact and neural calibration, one at a time or thousands at once."""

from qfml.calibration.bates import BatesCalibration
from qfml.calibration.calibrate import calibrate
from qfml.calibration.heston import HestonCalibration
from qfml.calibration.history import SurfaceHistory
from qfml.calibration.inverse import InverseMap, InverseTraining
from qfml.calibration.layout import Layout
from qfml.calibration.least_squares import STATUS, Solution, least_squares
from qfml.calibration.local_vol import LocalVolSurface
from qfml.calibration.model import CALIBRATION_MODELS, CalibrationModel, Parameter, Quotes
from qfml.calibration.neural import SurrogateModel
from qfml.calibration.posterior import half_spreads, posterior, residual_std
from qfml.calibration.result import Calibration
from qfml.calibration.sabr_cube import SabrCube, calibrate_cube
from qfml.calibration.sabr_smile import SabrSmile
from qfml.calibration.ssvi import SsviSurface
from qfml.calibration.surface import Surface, as_quotes
from qfml.calibration.svi_smile import SviSmile
from qfml.calibration.swaption_cube import SwaptionCube
from qfml.calibration.synthetic import SyntheticHeston
from qfml.calibration.walk_forward import walk_forward_calibration

for _model in (HestonCalibration, BatesCalibration, SabrSmile, SviSmile, SsviSurface, LocalVolSurface):
    CALIBRATION_MODELS[_model.kind] = _model

__all__ = [
    "CALIBRATION_MODELS",
    "STATUS",
    "BatesCalibration",
    "Calibration",
    "CalibrationModel",
    "HestonCalibration",
    "InverseMap",
    "InverseTraining",
    "Layout",
    "LocalVolSurface",
    "Parameter",
    "Quotes",
    "SabrCube",
    "SabrSmile",
    "Solution",
    "SsviSurface",
    "Surface",
    "SurfaceHistory",
    "SurrogateModel",
    "SviSmile",
    "SwaptionCube",
    "SyntheticHeston",
    "as_quotes",
    "calibrate",
    "calibrate_cube",
    "half_spreads",
    "least_squares",
    "posterior",
    "residual_std",
    "walk_forward_calibration",
]
