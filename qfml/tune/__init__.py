"""Search over hyperparameters: trials are trained at once, as one stack of trials x folds x seeds."""

from qfml.tune.folds import DEFAULT_SPLIT, looking_back, tuning_folds
from qfml.tune.halving import SuccessiveHalving, leaders
from qfml.tune.search import SEARCHES, TPE, Grid, Random, Search
from qfml.tune.space import SPACES, Space, filled, spaces_in
from qfml.tune.study import Asked, Study, Told
from qfml.tune.tuner import Candidate, TrialSettings, TuneConfig, Tuner

__all__ = [
    "DEFAULT_SPLIT",
    "SEARCHES",
    "SPACES",
    "TPE",
    "Asked",
    "Candidate",
    "Grid",
    "Random",
    "Search",
    "Space",
    "Study",
    "SuccessiveHalving",
    "Told",
    "TrialSettings",
    "TuneConfig",
    "Tuner",
    "filled",
    "leaders",
    "looking_back",
    "spaces_in",
    "tuning_folds",
]
