"""Mistakes that once priced in silence, or ended in an error without a name: each is refused by name and rule."""

import math
import re
from collections.abc import Callable
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch

import pricers as pr
from pricers.estimate import Estimate
from pricers.parameters import choice, device_of, flag, number, plausible, real, time_of, volatility, whole, word

MARKET = pr.Market(100.0, 0.02, 0.01)
BLACK_SCHOLES = pr.BlackScholes(0.2)
HESTON = pr.Heston(0.04, 1.0, 0.04, 0.5, -0.5)
ROUGH = pr.RoughBergomi(0.04, 1.5, 0.1, -0.7)
CALL = pr.European(100.0, 1.0)
SMILE: dict[str, Any] = {"log_moneyness": [-0.2, 0.0, 0.2], "expiries": [0.5, 1.0], "vols": [[0.2, 0.2, 0.2]] * 2}
SURFACE = pr.VolSurface(**SMILE)
CURVE = pr.ZeroCurve([1.0, 2.0], [0.02, 0.03])
WHOLE, FLAG, ONE = (
    "must be a whole number, got {!r}",
    "must be True or False, got {!r}",
    "must be one real number, got {!r}",
)


@pytest.fixture(autouse=True)
def _as_a_user_calls():
    """Without the tests' type checks, under which a wrong type would not even arrive."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


def rows(rule: str, **values: list[Any]) -> list[tuple[str, Any, str]]:
    """The same rule for values of several arguments."""
    return [(name, value, rule.format(value)) for name, several in values.items() for value in several]


def refused(function: Callable[..., Any], name: str, value: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"`{name}` {rule}")):
        function(**{name: value})


NO_INTEGERS = [True, 1024.0, math.nan, "1024", [1024], torch.tensor([1, 2])]
NO_FLAGS = ["no", 1, math.nan, [], {}]
NO_NUMBERS = ["x", True, [0.1]]


def monte_carlo(**changes: Any) -> pr.MonteCarlo:
    return pr.MonteCarlo(**{"n_paths": 1024, "seed": 0, **changes})


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        *rows(FLAG, controls=[*NO_FLAGS, None], conditional=NO_FLAGS, compile=NO_FLAGS),
        *rows(ONE, target_std_error=NO_NUMBERS),
        ("target_std_error", math.inf, "must be above 0, got inf"),
        ("n_paths", 1024.0, "must be a whole number, got 1024.0; write it as an int"),
        ("scheme", ["qe"], "must be one name, got ['qe']"),
        ("device", 3, "must be a torch.device or its name, got 3"),
        ("device", "gpu", "must be a device of this machine, got 'gpu'"),
        ("device", torch.device("cuda", 99), "must be a device of this machine, got 'cuda:99'"),
        ("device", "meta", "must be a device of this machine, got 'meta'"),
    ],
)
def test_monte_carlo(name: str, value: Any, rule: str):
    refused(monte_carlo, name, value, rule)


def test_monte_carlo_takes_integers_of_numpy_and_names_of_devices():
    engine = monte_carlo(n_paths=np.int64(1024), seed=np.int32(3), n_steps=np.uint8(4), device="cpu", controls=np.True_)
    assert engine == monte_carlo(seed=3, n_steps=4, device=torch.device("cpu"))
    assert all(type(count) is int for count in (engine.n_paths, engine.seed, engine.n_steps))
    assert engine.controls is True
    named, plain = (engine.price(CALL, HESTON, MARKET).value for engine in (engine, monte_carlo(seed=3, n_steps=4)))
    assert torch.equal(named, plain)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        *rows(ONE, accuracy=[*NO_NUMBERS, None]),
        *rows(WHOLE, seed=[None, 1.5, "x"], n_steps=[math.nan, 2.5], max_levels=[math.nan, math.inf, 2.5, True]),
        *rows(FLAG, conditional=NO_FLAGS),
        ("scheme", ["qe"], "must be one name, got ['qe']"),
        ("n_steps", 0, "must be 1 or more, got 0"),
        ("max_levels", 1, "must be 2 or more, got 1"),
    ],
)
def test_multilevel(name: str, value: Any, rule: str):
    refused(lambda **changes: pr.MultilevelMonteCarlo(**{"accuracy": 0.1, "seed": 0, **changes}), name, value, rule)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        *rows(WHOLE, seed=[None, 1.5, "x"], n_steps=[5.5, None], n_paths=NO_INTEGERS, degree=[1.5], n_outer=[2.5]),
        *rows(WHOLE, n_inner=[2.5, math.nan]),
        ("scheme", ["qe"], "must be one name, got ['qe']"),
    ],
)
def test_longstaff_schwartz(name: str, value: Any, rule: str):
    given = {"n_paths": 1024, "n_steps": 5, "seed": 0}
    refused(lambda **changes: pr.LongstaffSchwartz(**{**given, **changes}), name, value, rule)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [*rows(WHOLE, n_space=[*NO_INTEGERS, None], n_time=[80.0, None], n_variance=[40.0, "40"])],
)
def test_finite_difference(name: str, value: Any, rule: str):
    refused(pr.FiniteDifference, name, value, rule)


@pytest.mark.parametrize(("name", "value", "rule"), rows(WHOLE, n_terms=["64", math.nan, 64.0, True]))
def test_fourier(name: str, value: Any, rule: str):
    refused(pr.Fourier, name, value, rule)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        *rows(WHOLE, n_steps=[2.5, None], seed=[None, "x", 1.5], n_paths=["a", 1024.0, True]),
        ("n_steps", 0, "must be 1 or more, got 0"),
        ("model", HESTON, "must be a RoughBergomi, got Heston"),
        ("model", None, "must be a RoughBergomi, got NoneType"),
        ("log_moneyness", [100.0], "must lie in [-20, 20], got 100 at index 0; are these strikes?"),
    ],
)
def test_turbocharged_price(name: str, value: Any, rule: str):
    given = {"model": ROUGH, "log_moneyness": [0.0], "expiry": [1.0], "n_paths": 64, "n_steps": 4, "seed": 0}
    refused(lambda **changes: pr.turbocharged_price(**{**given, **changes}), name, value, rule)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        *rows(WHOLE, n_past=[math.nan, 2.5, math.inf, True, "3", None, torch.tensor([1, 2])]),
        *rows(FLAG, floating=["no", 0, None]),
        ("option", np.array(["call", "put"]), "must be one of 'call', 'put', got array"),
        ("average", None, "must be one of 'arithmetic', 'geometric', got None; one word"),
    ],
)
def test_asian(name: str, value: Any, rule: str):
    given = {"strike": 100.0, "times": [0.5, 1.0], "running_average": 100.0 if name == "n_past" else None}
    refused(lambda **changes: pr.Asian(**{**given, **changes}), name, value, rule)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        *rows(FLAG, memory=[*NO_FLAGS, None]),
        ("autocall_barrier", 100.0, "must lie in [-10, 10], got 100; is it a price? divide by the reference"),
        ("autocall_barrier", [1.0, 95.0], "must lie in [-10, 10], got 95 at index 1"),
        ("protection_barrier", 70.0, "must lie in [-10, 10], got 70; is it a price?"),
        ("coupon_barrier", 80.0, "must lie in [-10, 10], got 80; is it a price?"),
        ("coupon", 5.0, "must lie in [-1, 1], got 5; 5 % of the notional is 0.05"),
    ],
)
def test_autocallable(name: str, value: Any, rule: str):
    given = {
        "times": [1.0, 2.0], "reference": 100.0, "autocall_barrier": 1.1, "coupon": 0.05, "protection_barrier": 0.7,
    }  # fmt: skip
    refused(lambda **changes: pr.Autocallable(**{**given, **changes}), name, value, rule)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("monitoring", "daily", "must be 'continuous' or an array of times in years, got 'daily'"),
        ("option", np.array(["call", "put"]), "must be one of 'call', 'put', got array"),
    ],
)
def test_barrier(name: str, value: Any, rule: str):
    given = {"strike": 100.0, "expiry": 1.0, "barrier": 90.0, "kind": "down-out"}
    refused(lambda **changes: pr.Barrier(**{**given, **changes}), name, value, rule)


def test_the_side_of_an_option_is_one_word():
    options, rule = np.array(["call", "put"]), "must be one of 'call', 'put', got array(['call', 'put']"
    refused(lambda **side: pr.European(100.0, 1.0, **side), "option", options, rule)
    refused(lambda **side: pr.Digital(100.0, 1.0, **side), "pays", options, "must be one of 'cash', 'asset', got array")
    refused(
        lambda **side: pr.Basket(100.0, 1.0, **side), "on", options, "must be one of 'max', 'min', 'spread', got arr"
    )


@pytest.mark.parametrize(
    ("function", "name", "rule"),
    [
        (lambda: pr.BlackScholes(20.0), "vol", "must be 10 or less, got 20; is it in percent? 20 % is 0.2"),
        (lambda: pr.BlackScholes([0.2, 20.0]), "vol", "must be 10 or less, got 20 at index 1"),
        (lambda: pr.Merton(20.0, 0.1, 0.0, 0.1), "vol", "must be 10 or less, got 20"),
        (lambda: pr.Market(100.0, rate=20.0), "rate", "must lie in [-10, 10], got 20; is it in percent? 3 % is 0.03"),
        (lambda: pr.Market(100.0, dividend_yield=-20.0), "dividend_yield", "must lie in [-10, 10], got -20"),
        (lambda: pr.Market([100.0, True]), "spot", "must be a real number or an array of them, got [100.0, True]"),
        (lambda: pr.ZeroCurve([1.0, 2.0], [0.02, 20.0]), "rates", "must lie in [-10, 10], got 20 at index 1"),
        (lambda: CURVE.zero_rate("x"), "time", "must be a real number or an array of them, got 'x'"),
        (lambda: CURVE.integral(-1.0), "time", "must be 0 or more, got -1"),
        (lambda: MARKET.discount(-1.0), "time", "must be 0 or more, got -1"),
        (lambda: MARKET.forward(-1.0), "time", "must be 0 or more, got -1"),
        (lambda: MARKET.growth(math.nan), "time", "must be finite, got nan"),
    ],
)
def test_models_and_markets(function: Callable[[], Any], name: str, rule: str):
    refused(lambda **_: function(), name, None, rule)


def test_times_of_curve_and_surface_may_be_plain_numbers():
    time = torch.tensor(1.5, dtype=torch.float64)
    assert torch.equal(CURVE.zero_rate(1.5), CURVE.zero_rate(time))
    assert torch.equal(CURVE.integral(1.5), CURVE.integral(time))
    assert torch.equal(pr.Market(100.0, CURVE).forward(1.5), pr.Market(100.0, CURVE).forward(time))
    assert SURFACE.vol([0.0], 1.0).item() == pytest.approx(0.2)
    assert SURFACE.local_variance([0.0], 1.0).item() == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("function", "name", "rule"),
    [
        (lambda: pr.VolSurface(**{**SMILE, "log_moneyness": [90.0, 100.0, 110.0]}), "log_moneyness",
         "must lie in [-20, 20], got 90 at index 0; are these strikes? use VolSurface.from_strikes"),
        (lambda: pr.VolSurface(**{**SMILE, "vols": [[20.0] * 3] * 2}), "vols", "must be 10 or less, got 20"),
        (lambda: pr.VolSurface.fitted(**{**SMILE, "log_moneyness": [90.0, 100.0, 110.0]}), "log_moneyness",
         "must lie in [-20, 20], got 90 at index 0; are these strikes? use VolSurface.from_strikes"),
        (lambda: pr.VolSurface.fitted(**{**SMILE, "vols": [[20.0] * 3] * 2}), "vols", "must be 10 or less, got 20"),
        (lambda: pr.VolSurface.fitted(**SMILE, smoothing="x"), "smoothing", ONE.format("x")),
        (lambda: pr.VolSurface.fitted(**SMILE, reach=True), "reach", ONE.format(True)),
        (lambda: pr.VolSurface.fitted(**SMILE, knots_per_quote=1.5), "knots_per_quote", WHOLE.format(1.5)),
        (lambda: pr.VolSurface.from_strikes([90.0, 110.0], [1.0], [[0.2, 0.2]], 100.0), "market",
         "must be a Market, for the forwards, got 100.0"),
        (lambda: SURFACE.vol(0.0, 1.0), "log_moneyness", "must have a last axis of points, got one number"),
        (lambda: SURFACE.vol([0.0], "x"), "time", "must be a real number or an array of them, got 'x'"),
        (lambda: SURFACE.local_variance(0.0, 1.0), "log_moneyness", "must have a last axis of points"),
        (lambda: SURFACE.total_variance(torch.tensor(0.0), torch.tensor(1.0)), "log_moneyness",
         "must have a last axis of points"),
        (lambda: SURFACE.total_variance([0.0], -1.0), "time", "must be 0 or more, got -1"),
    ],
)  # fmt: skip
def test_vol_surface(function: Callable[[], Any], name: str, rule: str):
    refused(lambda **_: function(), name, None, rule)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        *rows(WHOLE, n_paths=[math.nan, 2.5, "x"]),
        *rows("must be a real number", value=["x", None, 1j, True, [[1.0], [1.0, 2.0]]], std_error=["x", None, False]),
        *rows("must be a real number", error_bound=["x", None, True]),
    ],
)
def test_estimate(name: str, value: Any, rule: str):
    refused(lambda **changes: Estimate(**{"value": 1.0, "std_error": 0.0, **changes}), name, value, rule)


@pytest.mark.parametrize("level", ["95", None, True])
def test_level_of_confidence(level: Any):
    refused(Estimate(1.0, 0.0).confidence_interval, "level", level, ONE.format(level))


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        *rows("must be a sequence of names, got {!r}", wrt=[None, 3]),
        *rows("must hold names and pairs of them, got {0[0]!r}", wrt=[[3], [["spot", "vol"]], [("spot", 1)]]),
        *rows(ONE, bump=["x", None, True]),
        ("bump", math.inf, "must be above 0, got inf"),
    ],
)
def test_greeks(name: str, value: Any, rule: str):
    given = {"instrument": CALL, "model": BLACK_SCHOLES, "market": MARKET, "wrt": ("spot",)}
    refused(lambda **changes: pr.greeks(**{**given, **changes}), name, value, rule)


@pytest.mark.parametrize("value", [*NO_INTEGERS, None, np.float64(3.0), np.True_, b"3", 3 + 0j])
def test_whole_takes_integers_alone(value: Any):
    refused(lambda x: whole("x", x), "x", value, "must be a whole number, got ")


def test_checks_hand_on_what_is_right():
    assert [whole("x", value, at_least=3) for value in (3, np.int64(3), np.uint8(3))] == [3, 3, 3]
    assert all(type(whole("x", value)) is int for value in (3, np.int64(3)))
    assert [number("x", value, above=0.0, below=4.0) for value in (3, 3.0, np.float32(3.0))] == [3.0] * 3
    assert (flag("x", True), flag("x", np.False_), word("x", "y"), choice("x", "y", ("y",))) == (True, False, "y", "y")
    assert device_of("x", "cpu") == device_of("x", torch.device("cpu")) == torch.device("cpu")
    assert volatility("x", 10.0).item() == plausible("x", real("x", 10.0), 10.0, "").item() == 10.0
    assert time_of(1).dtype == torch.float64
    tensor = torch.tensor(-1.0)
    assert time_of(tensor) is tensor


@pytest.mark.parametrize(
    ("function", "value", "rule"),
    [
        (lambda x: whole("x", x, at_least=3), 2, "must be 3 or more, got 2"),
        (lambda x: number("x", x), math.nan, "must be finite, got nan"),
        (lambda x: number("x", x, above=0.0), 0.0, "must be above 0, got 0"),
        (lambda x: number("x", x, above=0.0, below=1.0), 1.0, "must lie in (0, 1), got 1"),
        (lambda x: number("x", x), torch.tensor(1.0), "must be one real number"),
        (lambda x: volatility("x", x), 0.0, "must be above 0, got 0"),
        (lambda x: plausible("x", real("x", x), 10.0, "divide"), -11.0, "must lie in [-10, 10], got -11; divide"),
    ],
)
def test_checks_refuse_what_is_out_of_bounds(function: Callable[..., Any], value: Any, rule: str):
    refused(function, "x", value, rule)


def test_times_that_must_be_days_and_counts_beyond_any_machine_are_refused():
    with pytest.raises(ValueError, match=r"`expiry` must lie in \(0, 200\], got 365; is it in days"):
        pr.European(100.0, 365)
    with pytest.raises(ValueError, match=r"`times` must lie in \(0, 200\], got 250 at index 1; is it in days"):
        pr.Asian(100.0, [1.0, 250.0])
    with pytest.raises(ValueError, match="`n_paths` must be 1099511627776 or less"):
        pr.MonteCarlo(2**70, seed=1)
