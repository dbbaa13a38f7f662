"""What a problem accepts and refuses, and what its inputs stand for."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import pricers as pr
from pricers.characteristic import mean_variance
from qfml.config import build, config_hash, to_dict
from qfml.errors import ConfigError, DataError, UserError
from qfml.surrogate.exact_labels import target_values
from qfml.surrogate.problem import Problem, Range
from qfml.surrogate.reference_vol import REFERENCE_VOLS

HESTON = {
    "v0": {"low": 0.005, "high": 0.5, "scale": "log"},
    "kappa": {"low": 0.1, "high": 20.0, "scale": "log"},
    "theta": {"low": 0.005, "high": 0.5, "scale": "log"},
    "sigma": {"low": 0.05, "high": 4.0, "scale": "log"},
    "rho": {"low": -0.95, "high": 0.5},
    "expiry": {"low": "7D", "high": 3.0, "scale": "log"},
}
LEWIS = [0.04, 4.0, 0.25, 1.0, -0.5, 1.0]


def heston(**changes):
    settings = {
        "model": {"kind": "heston"},
        "instrument": {"kind": "european"},
        "market": {"spot": 1.0},
        "box": HESTON | {"log_moneyness": {"low": -0.3, "high": 0.3}},
    }
    return build(Problem, settings | changes)


def without(box, *names):
    return {name: limits for name, limits in box.items() if name not in names}


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"target": "vol"}, "`target` must be one of"),
        ({"model": {"kind": "hestn"}}, "model.kind is not known.*did you mean `heston`"),
        ({"model": {"kind": "heston", "kapa": 1.0}}, "model.kapa is not known.*did you mean `kappa`"),
        ({"model": {"kind": "heston", "rho": -0.5}}, "`rho` is both fixed in `model` and varied"),
        ({"box": without(heston().box, "sigma")}, "Heston needs `sigma`: fix it in `model` or vary it"),
        ({"box": HESTON}, "European needs `strike`"),
        ({"box": HESTON | {"strik": {"low": 0.5, "high": 2.0}}}, r"box.strik is not known.*did you mean `strike`"),
        ({"box": HESTON | {"model.strike": {"low": 0.5, "high": 2.0}}}, "box.model.strike is not known"),
        ({"box": HESTON | {"strike": {"low": 2.0, "high": 0.5}}}, "box.strike: `low` must be below `high`"),
        ({"box": HESTON | {"strike": {"low": 1.0, "high": 1.0}}}, "what does not vary is no coordinate"),
        ({"box": HESTON | {"strike": {"low": 0.0, "high": 1.0, "scale": "log"}}}, "`scale: log` needs `low` above 0"),
        ({"box": HESTON | {"strike": {"low": 0.5, "high": 1.0, "scale": "cubic"}}}, "`scale` must be one of"),
        ({"box": HESTON | {"strike": {"low": 0.5, "high": math.inf}}}, "`high` must be a finite number"),
        ({"box": HESTON | {"strike": {"low": "7D", "high": 1.0}}}, "box.strike is no time"),
        ({"box": HESTON | {"expiry": {"low": "7 days", "high": 1.0}}}, "a duration such as 7D"),
        ({"box": HESTON | {"strike": {"low": -0.5, "high": 1.0}}}, "the box leaves .*`strike` must be above 0"),
        ({"box": heston().box | {"rho": {"low": -1.0, "high": 0.5}}}, r"`rho` must lie in \(-1, 1\), got -1;"),
        ({"box": heston().box | {"expiry": {"low": 7.0, "high": 700.0}}}, "is it in days"),
        ({"box": heston().box | {"delta": {"low": 0.1, "high": 0.9}}}, "`log_moneyness` and `delta` both say"),
        ({"box": HESTON | {"delta": {"low": 0.0, "high": 0.9}}}, r"box.delta must lie in \(0, 1\)"),
        ({"box": HESTON | {"delta": {"low": 0.1, "high": 0.9}}, "target": "price"}, "box.delta needs `target: implied"),
        ({"instrument": {"kind": "european", "strike": 1.0}}, "`strike` is fixed in `instrument` and varied as"),
        ({"instrument": {"kind": "european", "option": "straddle"}}, "the box leaves .*`option` must be one of"),
        ({"instrument": {"kind": "american"}}, "`target: implied_vol` is for European options, not for American"),
        ({"instrument": {"kind": "lookback"}, "target": "time_value"}, "`target: time_value` is for European and Am"),
        ({"box": {}}, "`box` must have at least one coordinate"),
        ({"market": {"spot": 1.0, "rate": 3.0, "dividend": 0.1}}, "market.dividend is not known"),
        ({"market": {}}, "Market needs `spot`"),
        (
            {"model": {"kind": "local_vol", "surface": {"vols": [0.2]}}, "box": {"strike": {"low": 0.5, "high": 2.0}},
             "instrument": {"kind": "european", "expiry": 1.0}},
            "model.surface must be a number",
        ),
        (
            {"model": {"kind": "rough_bergomi", "xi": 0.04, "eta": 1.9, "rho": -0.9},
             "box": {"hurst": {"low": 0.05, "high": 0.3}, "expiry": HESTON["expiry"],
                     "delta": {"low": 0.1, "high": 0.9}}},
            "RoughBergomi has to be simulated: use standard_moneyness",
        ),
        (
            {"model": {"kind": "rough_bergomi", "xi": 0.04, "eta": 1.9, "rho": -0.9}, "target": "price",
             "instrument": {"kind": "digital", "option": "call"}, "market": {"spot": [1.0, 1.0]},
             "box": {"hurst": {"low": 0.05, "high": 0.3}, "expiry": HESTON["expiry"],
                     "strike": {"low": 0.5, "high": 2.0}}},
            "the box leaves|no engine prices",
        ),
        (
            {"model": {"kind": "black_scholes", "vol": [0.2, 0.3], "correlation": [[1.0, 0.5], [0.5, 1.0]]},
             "instrument": {"kind": "basket", "option": "call", "on": "max", "expiry": 1.0}, "target": "price",
             "market": {"spot": [1.0, 1.0]}, "box": {"strike": {"low": 0.8, "high": 1.2}}},
            "a surrogate is of contracts on one asset, and the model has 2: price it",
        ),
    ],
)  # fmt: skip
def test_problem_refuses_by_name_rule_and_way_out(changes, says):
    with pytest.raises(ConfigError, match=says):
        heston(**changes)


def test_ambiguous_name_needs_its_owner(monkeypatch):
    @dataclass(frozen=True, eq=False, init=False)
    class Carried(pr.BlackScholes):
        rate: torch.Tensor

        def __init__(self, vol, rate):
            pr.BlackScholes.__init__(self, vol)
            object.__setattr__(self, "rate", torch.as_tensor(rate, dtype=torch.float64))

    monkeypatch.setitem(pr.MODELS, "carried", Carried)
    settings = {
        "model": {"kind": "carried", "vol": 0.2},
        "instrument": {"kind": "european", "expiry": "6M", "strike": 1.0},
        "target": "price",
    }
    limits = Range(0.0, 0.1)
    with pytest.raises(ConfigError, match=r"box.rate is ambiguous.*write `model.rate` or `market.rate`"):
        Problem(**settings, market={"spot": 1.0}, box={"rate": limits})
    axes = Problem(**settings, market={"spot": 1.0}, box={"model.rate": limits, "market.rate": limits}).coordinates
    assert [(axis.owner, axis.input) for axis in axes] == [("model", "model.rate"), ("market", "market.rate")]


def test_inputs_stand_for_the_triple_whose_price_is_the_target():
    box = HESTON | {"strike": {"low": 50.0, "high": 200.0}, "market.rate": {"low": 0.0, "high": 0.1}}
    problem = heston(box=box, market={"spot": 100.0, "dividend_yield": 0.02}, target="price")
    assert problem.inputs == (*HESTON, "strike", "market.rate")
    assert problem.units["market.rate"] == "continuous, per year, decimal"
    found = problem.exact(rows([*LEWIS, 110.0, 0.01], [*LEWIS, 90.0, 0.01]))
    np.testing.assert_allclose(found, [0.12132211516709845, 0.20933349000596711], rtol=1e-10)  # Lewis, over the spot


def test_log_moneyness_is_of_the_forward_and_price_per_unit_of_spot():
    inputs = rows([*LEWIS, 0.1], [*LEWIS, -0.2])
    at_one, at_hundred = (
        heston(market={"spot": spot, "rate": 0.05, "dividend_yield": 0.01}, target="price").exact(inputs)
        for spot in (1.0, 100.0)
    )
    np.testing.assert_allclose(at_one, at_hundred, rtol=1e-12)
    forward = 100.0 * math.exp(0.04)
    direct = pr.price(
        pr.European(forward * torch.exp(inputs[:, -1]), 1.0),
        pr.Heston(*LEWIS[:5]),
        pr.Market(100.0, rate=0.05, dividend_yield=0.01),
    )
    np.testing.assert_allclose(at_one, direct.value / 100.0, rtol=1e-12)


@pytest.mark.parametrize(("kind", "option"), [("european", "put"), ("american", "put")])
def test_time_value_is_what_exceeds_exercise(kind, option):
    settings = {
        "model": {"kind": "black_scholes"},
        "instrument": {"kind": kind, "option": option, "expiry": 1.0},
        "market": {"spot": 100.0, "rate": 0.05},
        "box": {"vol": {"low": 0.1, "high": 0.4}, "strike": {"low": 80.0, "high": 130.0}},
    }
    inputs = rows([0.2, 130.0], [0.3, 90.0])
    engine = pr.FiniteDifference(32, 8) if kind == "american" else None
    problems = [build(Problem, settings | {"target": target}) for target in ("time_value", "price")]
    value, price = (target_values(made, made.columns(inputs), engine).value.numpy() for made in problems)
    at = 100.0 if kind == "american" else 100.0 * math.exp(0.05)
    paid = 1.0 if kind == "american" else math.exp(-0.05)
    exercised = paid * np.maximum(inputs[:, 1].numpy() - at, 0.0) / 100.0
    np.testing.assert_allclose(value, price - exercised, atol=1e-14)
    assert value[1] > 0.01
    assert value[0] > -1e-15  # deep in the money an American is exercised at once


def test_reference_vol_of_heston_is_the_root_of_its_mean_variance():
    inputs = rows([*LEWIS, 0.1])
    numbers = [torch.tensor(number, dtype=torch.float64) for number in (1.0, 0.04, 4.0, 0.25)]
    assert heston().reference_vol(inputs).item() == pytest.approx(mean_variance(*numbers).sqrt().item(), rel=1e-14)


@pytest.mark.parametrize(
    ("model", "vol"),
    [
        ({"kind": "black_scholes", "vol": 0.2}, 0.2),
        ({"kind": "merton", "vol": 0.2, "intensity": 0.5, "jump_mean": -0.1, "jump_std": 0.1}, 0.2236),
        ({"kind": "bates", "v0": 0.04, "kappa": 2.0, "theta": 0.04, "sigma": 0.1, "rho": -0.5, "intensity": 0.5,
          "jump_mean": -0.1, "jump_std": 0.1}, 0.2236),
        ({"kind": "sabr", "alpha": 0.2, "beta": 1.0, "rho": -0.3, "nu": 0.2}, 0.2),
        ({"kind": "rough_bergomi", "xi": 0.04, "eta": 1.0, "hurst": 0.1, "rho": -0.7}, 0.2),
        ({"kind": "rough_heston", "v0": 0.04, "kappa": 0.3, "theta": 0.04, "sigma": 0.1, "rho": -0.7,
          "hurst": 0.1}, 0.2),
    ],
)  # fmt: skip
def test_reference_vol_of_each_model_is_the_size_of_its_vol_at_the_money(model, vol):
    box = {"expiry": {"low": 0.5, "high": 2.0}, "log_moneyness": {"low": -0.1, "high": 0.1}}
    problem = Problem(model=model, instrument={"kind": "european"}, box=build_ranges(box))
    inputs = rows([1.0, 0.0], [0.5, 0.05]).requires_grad_()
    found = problem.reference_vol(inputs)
    np.testing.assert_allclose(found.detach(), vol, rtol=1e-3)
    if not model["kind"].startswith("rough"):
        np.testing.assert_allclose(problem.exact(inputs.detach()[:1]), vol, rtol=0.05)


def build_ranges(box):
    return {name: Range(**limits) for name, limits in box.items()}


def test_every_model_with_numbers_for_parameters_has_a_reference_vol():
    assert set(pr.MODELS) - set(REFERENCE_VOLS) == {"local_vol"}


def test_outside_tells_which_coordinate_and_takes_delta_with_the_vol():
    problem = heston(box=HESTON | {"delta": {"low": 0.1, "high": 0.9}})
    inputs = rows([*LEWIS, 0.0], [*LEWIS[:-1], 4.0, 0.0], [*LEWIS, 2.0], [*LEWIS, math.nan])
    vol = torch.full((4,), 0.4, dtype=torch.float64)
    outside = problem.outside(inputs, vol)
    assert outside.any(dim=-1).tolist() == [False, True, True, True]
    assert outside[1].nonzero().flatten().tolist() == [5]
    assert outside[2].nonzero().flatten().tolist() == [6]  # N(d1) of that strike is nearly 0
    assert problem.outside(inputs).any(dim=-1).tolist() == [False, True, False, True]


def test_settings_survive_writing_and_durations_are_years():
    problem = heston(instrument={"kind": "european", "option": "put"})
    again = build(Problem, to_dict(problem))
    assert again == problem
    assert config_hash(again) == config_hash(problem)
    assert problem.box["expiry"] == Range(7 / 365, 3.0, "log")


def test_bermudan_with_fixed_dates_and_barrier_with_a_kind_of_its_own():
    box = {"vol": Range(0.1, 0.4), "strike": Range(0.8, 1.2)}
    bermudan = Problem(
        model={"kind": "black_scholes"},
        instrument={"kind": "bermudan", "option": "put", "times": ["3M", "6M"]},
        box=box,
        target="price",
    )
    assert bermudan.triple(rows([0.2, 1.0]))[0].times.tolist() == [0.25, 0.5]
    barrier = Problem(
        model={"kind": "black_scholes"},
        instrument={"kind": "barrier", "barrier_kind": "down-out", "barrier": 0.7, "expiry": 0.5},
        box=box,
        target="price",
    )
    direct = pr.price(pr.Barrier(1.0, 0.5, 0.7, "down-out"), pr.BlackScholes(0.2), pr.Market(1.0))
    assert barrier.exact(rows([0.2, 1.0])).item() == pytest.approx(direct.value.item(), rel=1e-12)


def test_inputs_of_another_width_and_rates_as_a_curve():
    curve = {"times": [0.0, 1.0], "rates": [0.02, 0.03]}
    problem = heston(market={"spot": 1.0, "rate": curve}, target="price")
    with pytest.raises(DataError, match=r"inputs must have 7 columns \(v0, .*got \(1, 2\)"):
        problem.triple(rows([0.1, 0.2]))
    assert problem.triple(rows([*LEWIS, 0.0]))[2].discount(1.0).item() == pytest.approx(math.exp(-0.03))
    with pytest.raises(UserError, match="no reference vol"):
        Problem(
            model={"kind": "rough_bergomi", "xi": {"times": [0.0], "variances": [0.04]}, "eta": 1.9, "rho": -0.9},
            instrument={"kind": "european", "expiry": 1.0},
            box={"hurst": Range(0.05, 0.3), "standard_moneyness": Range(-2.0, 2.0)},
        )
