"""Asian contracts that make no sense are refused by name."""

import re
from typing import Any

import pytest
import torch

from pricers.instruments.asian import Asian

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "fixings out of order": ({"times": [0.5, 0.25]}, "`times` must ascend strictly"),
    "the same fixing twice": ({"times": [0.5, 0.5]}, "`times` must ascend strictly"),
    "negative time": ({"times": [-0.1, 0.5]}, "`times` must be 0 or more, got -0.1"),
    "no fixing": ({"times": []}, "`times` must hold at least one time"),
    "NaN time": ({"times": [0.1, float("nan")]}, "`times` must be finite"),
    "NaN strike": ({"strike": float("nan")}, "`strike` must be finite"),
    "strike 0": ({"strike": 0.0}, "`strike` must be above 0, got 0"),
    "no strike": ({"strike": None}, "`strike` must be a number"),
    "strike of a floating one": ({"floating": True}, "`strike` must be None"),
    "unknown option": ({"option": "straddle"}, "`option` must be one of 'call', 'put'"),
    "unknown average": ({"average": "harmonic"}, "`average` must be one of"),
    "past without average": ({"n_past": 2}, "`n_past` = 2 fixings of the past need their `running_average`"),
    "average without past": ({"running_average": 99.0}, "`running_average` needs `n_past`"),
    "negative past": ({"n_past": -1}, "`n_past` must be 0 or more, got -1"),
    "average of 0": ({"running_average": 0.0, "n_past": 1}, "`running_average` must be above 0"),
    "expiry of fixings": ({"expiry": 1.0}, "`expiry` is for times='continuous'"),
    "elapsed of fixings": ({"elapsed": 1.0}, "`elapsed` is for times='continuous'"),
    "unknown word": ({"times": "daily"}, "`times` must be one of 'continuous'"),
    "continuous without end": ({"times": "continuous"}, "needs its `expiry`"),
    "continuous, ended": ({"times": "continuous", "expiry": 0.0}, "`expiry` must be above 0"),
    "continuous, counted": ({"times": "continuous", "expiry": 1.0, "n_past": 2}, "`n_past` counts fixings"),
    "continuous past without average": (
        {"times": "continuous", "expiry": 1.0, "elapsed": 0.5},
        "`elapsed` years of the past need their `running_average`",
    ),
    "continuous average without past": (
        {"times": "continuous", "expiry": 1.0, "running_average": 100.0},
        "`running_average` needs `elapsed` above 0",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_contract_is_refused(name: str):
    changes, message = BAD[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        Asian(**{"strike": 100.0, "times": [0.5, 1.0], "option": "call", **changes})


def test_shapes_that_do_not_broadcast_are_both_named():
    with pytest.raises(ValueError, match=r"\(2,\).*\(3,\)|\(3,\).*\(2,\)"):
        Asian(torch.ones(2), times=torch.tensor([[0.5, 1.0]] * 3), option="call")
