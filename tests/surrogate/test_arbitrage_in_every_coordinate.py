"""The same arbitrage is found whether vols, prices or time values are learned, by strike or by log-moneyness."""

from dataclasses import replace

import pytest
import torch
from surrogate_cases import quick, rows_of, table_of

from pricers.black import black_price
from qfml.surrogate import Problem, Range, Surrogate, fit_surrogate
from qfml.surrogate.arbitrage import arbitrage_note, arbitrage_of, durrleman

RATE, DIVIDEND = 0.06, 0.01
BOX = {"vol": Range(0.1, 0.4), "expiry": Range(0.3, 2.0)}


def problem_of(target, coordinate, option="call"):
    return Problem(
        model={"kind": "black_scholes"},
        instrument={"kind": "european", "option": option},
        market={"spot": 2.0, "rate": RATE, "dividend_yield": DIVIDEND},
        box=BOX | {coordinate: Range(-0.2, 0.2) if coordinate == "log_moneyness" else Range(1.5, 2.8)},
        target=target,
    )


def smile(k, expiry):
    """A vol too concave for a density, whose total variance falls with some expiries."""
    return (0.25 - 0.1 * k - 2.5 * k**2) * (1.0 + 0.3 * torch.sin(6.0 * expiry))


class Formula(Surrogate):
    """A surrogate without an error: the smile in the unit of its target."""

    def unchecked_values(self, inputs):
        expiry, last, problem = inputs[:, 1], inputs[:, 2], self.problem
        forward = 2.0 * torch.exp((RATE - DIVIDEND) * expiry)
        k = last if "log_moneyness" in problem.inputs else torch.log(last / forward)
        vol = smile(k, expiry)
        if problem.target == "implied_vol":
            return vol
        option, discount, strike = problem.instrument["option"], torch.exp(-RATE * expiry), forward * torch.exp(k)
        price = black_price(forward, strike, expiry, vol, discount, option=option)
        if problem.target == "time_value":
            price = price - discount * torch.relu((1 if option == "call" else -1) * (forward - strike))
        return price / 2.0


@pytest.fixture(scope="module")
def trained():
    problem = problem_of("price", "strike")
    rows = rows_of(problem, 40)
    return fit_surrogate(problem, table_of(problem, rows, problem.exact(rows)), quick(1, (4,)))


@pytest.mark.parametrize("coordinate", ["log_moneyness", "strike"])
@pytest.mark.parametrize(
    ("target", "option"), [("implied_vol", "call"), ("price", "call"), ("price", "put"), ("time_value", "put")]
)
def test_the_same_violations_are_counted(target, option, coordinate, trained):
    generator = torch.Generator().manual_seed(4)
    u = torch.rand(300, 2, generator=generator, dtype=torch.float64)
    expiry, k = 0.3 + 1.7 * u[:, 0], 0.4 * u[:, 1] - 0.2
    step = 1e-4

    def vol(j):
        return smile(k + j * step, expiry)

    slope, curvature = (vol(1) - vol(-1)) / (2 * step), (vol(1) - 2 * vol(0) + vol(-1)) / step**2
    density = int((durrleman(k, vol(0), slope, curvature, expiry) < 0).sum())
    variance = [smile(k, expiry + h) ** 2 * (expiry + h) for h in (-1e-5, 1e-5)]
    calendar = int((variance[1] < variance[0]).sum())
    assert min(density, calendar) > 30
    assert max(density, calendar) < 270
    problem = problem_of(target, coordinate, option)
    strike = 2.0 * torch.exp((RATE - DIVIDEND) * expiry + k)
    rows = torch.stack([torch.full_like(k, 0.2), expiry, k if coordinate == "log_moneyness" else strike], 1)
    found = arbitrage_of(Formula(problem, trained.target, trained.fits), rows)
    assert found["density" if target == "implied_vol" else "convex"]["count"] == density
    assert found["calendar"]["count"] == calendar
    assert arbitrage_note(problem) == ""


def test_prices_on_their_lower_bound_are_no_arbitrage(trained):
    class Intrinsic(Surrogate):
        def unchecked_values(self, inputs):
            expiry, k = inputs[:, 1], inputs[:, 2]
            return torch.exp(-DIVIDEND * expiry) * torch.relu(1.0 - torch.exp(k))

    problem = problem_of("price", "log_moneyness")
    found = arbitrage_of(Intrinsic(problem, trained.target, trained.fits), rows_of(problem, 300, reach=0.5))
    assert {name: (one["count"], one["worst"]) for name, one in found.items()} == {
        "monotone": (0, 0.0),
        "convex": (0, 0.0),
        "calendar": (0, 0.0),
    }


@pytest.mark.parametrize(
    ("instrument", "box", "told"),
    [
        ({"kind": "european"}, {"expiry": Range(0.5, 1.0)}, ""),
        ({"kind": "european", "expiry": 1.0}, {}, "calendar spreads were not looked at: the expiry does not vary"),
        ({"kind": "american", "expiry": 1.0}, {}, "calendar spreads were not looked at: the rule is one of European"),
        ({"kind": "digital", "expiry": 1.0}, {}, "no rule was looked at: nothing is known of the value of a digital"),
    ],
)
def test_what_is_not_looked_at_is_said(instrument, box, told):
    problem = Problem(
        model={"kind": "black_scholes"},
        instrument=instrument,
        box={"vol": Range(0.1, 0.4), "strike": Range(0.8, 1.2)} | box,
        target="price",
    )
    note = arbitrage_note(problem)
    assert note.startswith(told)
    assert bool(note) == bool(told)


def test_a_fixed_strike_has_no_rule():
    problem = replace(problem_of("price", "strike"), instrument={"kind": "european", "strike": 2.0}, box=BOX)
    assert arbitrage_note(problem) == "no rule was looked at: the strike does not vary in the box"
