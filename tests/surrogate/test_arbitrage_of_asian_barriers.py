"""Knock-outs and knock-ins on an average are convex in the strike, and looked at as such."""

import torch
from surrogate_cases import quick, rows_of, table_of

from qfml.surrogate import Problem, Range, fit_surrogate
from qfml.surrogate.arbitrage import arbitrage_of

PROBLEM = Problem(
    model={"kind": "black_scholes"},
    instrument={"kind": "asian_barrier", "times": [0.5, 1.0], "barrier": 1.5, "asian_barrier_kind": "up-out"},
    market={"spot": 1.0},
    box={"vol": Range(0.1, 0.4), "strike": Range(0.8, 1.2)},
    target="price",
)


def test_asian_barriers_are_judged_as_monotone_and_convex():
    inputs = rows_of(PROBLEM, 64)
    rising = table_of(PROBLEM, inputs, 1e-3 + 0.1 * (inputs[:, 1] - 0.8))  # calls that gain with the strike
    found = arbitrage_of(fit_surrogate(PROBLEM, rising, quick(epochs=40)), inputs)
    assert set(found) == {"monotone", "convex"}
    assert found["monotone"]["share"] > 0.9
    assert torch.tensor(found["monotone"]["worst"]).isclose(torch.tensor(-0.1), atol=0.1)
