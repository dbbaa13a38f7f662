"""Networks that price: labels from `pricers`, training, judgement, and prices that refuse to extrapolate."""

from qfml.surrogate.box import Range
from qfml.surrogate.conformal import ErrorBound
from qfml.surrogate.fitting import fit_surrogate
from qfml.surrogate.judgement import Judgement, JudgementSettings, judge
from qfml.surrogate.labels import LabelTable, labels_folder, make_labels, read_labels
from qfml.surrogate.problem import Problem
from qfml.surrogate.settings import LabelSettings
from qfml.surrogate.surrogate import Prediction, Surrogate
from qfml.surrogate.training import Shape, SurrogateTraining

__all__ = [
    "ErrorBound",
    "Judgement",
    "JudgementSettings",
    "LabelSettings",
    "LabelTable",
    "Prediction",
    "Problem",
    "Range",
    "Shape",
    "Surrogate",
    "SurrogateTraining",
    "fit_surrogate",
    "judge",
    "labels_folder",
    "make_labels",
    "read_labels",
]
