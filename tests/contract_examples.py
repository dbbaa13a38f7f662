"""One valid example of each registered model and instrument of pricers, and the range of each of their numbers.

The contract tests go through the registries and look here: a class that is registered without an example fails them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

import pricers as pr

SKEW = ((0.25, 0.22, 0.20, 0.19, 0.19), (0.24, 0.215, 0.20, 0.195, 0.19))


def skewed_local_vol(level=1.0):
    """Local volatility of a skewed surface whose vols are all scaled by `level`."""
    level = level if isinstance(level, torch.Tensor) else torch.tensor(level, dtype=torch.float64)
    vols = torch.tensor(SKEW, dtype=level.dtype) * level[..., None, None]
    log_moneyness = torch.tensor([-0.4, -0.2, 0.0, 0.2, 0.4], dtype=level.dtype)
    return pr.LocalVol(pr.VolSurface(log_moneyness, torch.tensor([0.5, 1.0], dtype=level.dtype), vols))


@dataclass(frozen=True)
class ModelExample:
    """A model by its numbers.

    Args:
        make: constructor of one keyword for each number.
        point: a usual value of each number.
        box: least and largest value of each number, edges of the admissible set included where they belong to it.
        refused: values outside of the admissible set.
    """

    make: Callable[..., pr.Model]
    point: dict[str, float]
    box: dict[str, tuple[float, float]]
    refused: dict[str, tuple[float, ...]]

    def at_point(self, **changes):
        return self.make(**{**self.point, **changes})


HESTON = {"v0": 0.04, "kappa": 2.0, "theta": 0.05, "sigma": 0.5, "rho": -0.6}
HESTON_BOX = {
    "v0": (0.0, 0.5),
    "kappa": (0.01, 10.0),
    "theta": (0.001, 0.5),
    "sigma": (0.001, 2.0),
    "rho": (-0.99, 0.99),
}
HESTON_REFUSED = {
    "v0": (-0.01,),
    "kappa": (0.0, -1.0),
    "theta": (0.0, -0.04),
    "sigma": (0.0, -0.5),
    "rho": (-1.0, 1.0, 1.2),
}
JUMPS = {"intensity": 0.4, "jump_mean": -0.1, "jump_std": 0.15}
JUMPS_BOX = {"intensity": (0.0, 2.0), "jump_mean": (-0.5, 0.3), "jump_std": (0.0, 0.4)}
JUMPS_REFUSED = {"intensity": (-0.1,), "jump_mean": (), "jump_std": (-0.1,)}
HURST_BOX, HURST_REFUSED = (0.02, 0.5), (0.0, -0.1, 0.6)

MODEL_EXAMPLES: dict[str, ModelExample] = {
    "black_scholes": ModelExample(pr.BlackScholes, {"vol": 0.2}, {"vol": (0.001, 3.0)}, {"vol": (0.0, -0.2)}),
    "local_vol": ModelExample(skewed_local_vol, {"level": 1.0}, {"level": (0.2, 1.5)}, {"level": (0.0, -1.0)}),
    "heston": ModelExample(pr.Heston, HESTON, HESTON_BOX, HESTON_REFUSED),
    "bates": ModelExample(pr.Bates, HESTON | JUMPS, HESTON_BOX | JUMPS_BOX, HESTON_REFUSED | JUMPS_REFUSED),
    "merton": ModelExample(
        pr.Merton,
        {"vol": 0.2, **JUMPS},
        {"vol": (0.001, 2.0), **JUMPS_BOX},
        {"vol": (0.0, -0.2), **JUMPS_REFUSED},
    ),
    "sabr": ModelExample(
        pr.SABR,
        {"alpha": 0.2, "beta": 1.0, "rho": -0.4, "nu": 0.5, "shift": 0.0},
        {"alpha": (0.001, 1.0), "beta": (0.0, 1.0), "rho": (-0.99, 0.99), "nu": (0.0, 2.0), "shift": (0.0, 10.0)},
        {"alpha": (0.0, -0.2), "beta": (-0.1, 1.1), "rho": (-1.0, 1.0), "nu": (-0.1,), "shift": (-0.01,)},
    ),
    "rough_bergomi": ModelExample(
        pr.RoughBergomi,
        {"xi": 0.04, "eta": 1.5, "hurst": 0.1, "rho": -0.7},
        {"xi": (0.001, 0.3), "eta": (0.01, 2.5), "hurst": HURST_BOX, "rho": (-0.99, 0.0)},
        {"xi": (0.0, -0.04), "eta": (0.0, -1.0), "hurst": HURST_REFUSED, "rho": (-1.0, 1.0)},
    ),
    "rough_heston": ModelExample(
        pr.RoughHeston,
        {"v0": 0.04, "kappa": 0.5, "theta": 0.05, "sigma": 0.4, "rho": -0.6, "hurst": 0.2},
        HESTON_BOX | {"kappa": (0.01, 3.0), "sigma": (0.01, 1.0), "hurst": HURST_BOX},
        HESTON_REFUSED | {"hurst": HURST_REFUSED},
    ),
}


@dataclass(frozen=True)
class InstrumentExample:
    """A contract by its fields.

    Args:
        make: constructor.
        point: the fields; numbers, or lists of numbers for what runs along dates or assets.
        batched: fields that take a batch, and a scaling of each that keeps the contract valid.
        refused: values that each field refuses, NaN and infinity beside.
        variants: other contracts of the class, by changes of the fields.
        n_assets: assets of the example.
        option: the payoff is never negative.
        homogeneous: fields in units of price: the payoff is homogeneous of degree one in them and the spot.
    """

    make: Callable[..., pr.Instrument]
    point: dict[str, object]
    batched: tuple[str, ...]
    refused: dict[str, tuple[object, ...]]
    variants: tuple[dict[str, object], ...] = ()
    n_assets: int = 1
    option: bool = True
    homogeneous: tuple[str, ...] | None = ("strike",)

    def at_point(self, **changes):
        return self.make(**{**self.point, **changes})

    def contracts(self):
        """The example and its variants."""
        return [self.at_point(**changes) for changes in ({}, *self.variants)]


VANILLA = {"strike": 100.0, "expiry": 1.0, "option": "call"}
PUT = {"option": "put"}
WORDS = ("forward", "CALL")
POSITIVE = (0.0, -1.0)
VANILLA_REFUSED = {"strike": POSITIVE, "expiry": POSITIVE, "option": WORDS}
UNSORTED = ([0.5, 0.25], [0.5, 0.5])
QUARTERS = [0.25, 0.5, 0.75, 1.0]

INSTRUMENT_EXAMPLES: dict[str, InstrumentExample] = {
    "european": InstrumentExample(pr.European, VANILLA, ("strike", "expiry"), VANILLA_REFUSED, (PUT,)),
    "digital": InstrumentExample(
        pr.Digital,
        {**VANILLA, "pays": "asset"},
        ("strike", "expiry"),
        {**VANILLA_REFUSED, "pays": ("share",)},
        (PUT, {**PUT, "pays": "cash"}),
        homogeneous=None,  # cash does not scale
    ),
    "barrier": InstrumentExample(
        pr.Barrier,
        {**VANILLA, "barrier": 85.0, "kind": "down-out", "rebate": 2.0},
        ("strike", "expiry", "barrier", "rebate"),
        {
            **VANILLA_REFUSED,
            "barrier": POSITIVE,
            "kind": ("out", "down"),
            "rebate": (-1.0,),
            "monitoring": ("sometimes", [0.0, 0.5], [-0.5, 0.5], [0.5, 1.5], *UNSORTED),
        },
        (
            {"kind": "down-in"},
            {"kind": "up-out", "barrier": 125.0},
            {"kind": "up-in", "barrier": 115.0, **PUT},
            {"monitoring": QUARTERS},
            {"monitoring": QUARTERS, "kind": "up-in", "barrier": 115.0},
        ),
        homogeneous=("strike", "barrier", "rebate"),
    ),
    "asian": InstrumentExample(
        pr.Asian,
        {"strike": 100.0, "times": QUARTERS, "option": "call"},
        ("strike", "times"),
        {
            "strike": (*POSITIVE, None),
            "times": ([-0.5, 0.5], [], "always", *UNSORTED),
            "option": WORDS,
            "average": ("harmonic",),
            "n_past": (-1, 2),
        },
        (
            PUT,
            {"average": "geometric"},
            {"strike": None, "floating": True},
            {"running_average": 95.0, "n_past": 3},
            {"times": "continuous", "expiry": 1.0},
            {"times": "continuous", "expiry": 1.0, "average": "geometric"},
            {"times": [0.0, 0.5, 1.0]},
        ),
        homogeneous=("strike", "running_average"),
    ),
    "asian_barrier": InstrumentExample(
        pr.AsianBarrier,
        {"strike": 100.0, "times": QUARTERS, "barrier": 125.0, "kind": "up-out", "option": "call"},
        ("strike", "times", "barrier"),
        {
            "strike": POSITIVE,
            "times": ([-0.5, 0.5], [0.0, 0.5], [], *UNSORTED),
            "barrier": POSITIVE,
            "kind": ("out", "up"),
            "option": WORDS,
            "average": ("harmonic",),
        },
        (
            {"kind": "up-in", "barrier": 115.0},
            {"kind": "down-out", "barrier": 85.0, "average": "geometric"},
            {"kind": "down-in", "barrier": 90.0, **PUT},
        ),
        homogeneous=("strike", "barrier"),
    ),
    "lookback": InstrumentExample(
        pr.Lookback,
        VANILLA,
        ("strike", "expiry"),
        {"strike": POSITIVE, "expiry": POSITIVE, "option": WORDS, "running_extremum": POSITIVE},
        (PUT, {"strike": None}, {"strike": None, **PUT}, {"running_extremum": 110.0}),
        homogeneous=("strike", "running_extremum"),
    ),
    "american": InstrumentExample(pr.American, {**VANILLA, **PUT}, ("strike", "expiry"), VANILLA_REFUSED),
    "bermudan": InstrumentExample(
        pr.Bermudan,
        {"strike": 100.0, "times": QUARTERS, **PUT},
        ("strike",),  # all contracts of a batch share their dates under simulation
        {"strike": POSITIVE, "times": ([0.0, 0.5], [-0.5, 0.5], [], *UNSORTED), "option": WORDS, "on": ("all",)},
    ),
    "basket": InstrumentExample(
        pr.Basket,
        {**VANILLA, "weights": [0.5, 0.5]},
        ("strike", "expiry"),
        {**VANILLA_REFUSED, "weights": ([1.0], 0.5, None), "on": ("max", "mean")},
        (
            {"weights": None, "on": "max"},
            {"weights": None, "on": "min", **PUT},
            {"weights": None, "on": "spread", "strike": 5.0},
            {"weights": [1.0, -0.5], "strike": 45.0},
        ),
        n_assets=2,
    ),
    "forward_start": InstrumentExample(
        pr.ForwardStart,
        {"moneyness": 1.05, "reset": 0.5, "expiry": 1.0, "option": "call"},
        ("moneyness", "reset", "expiry"),
        {"moneyness": POSITIVE, "reset": (-0.1, 1.0, 1.5), "expiry": (*POSITIVE, 0.5), "option": WORDS},
        (PUT, {"reset": 0.0}),
        homogeneous=(),
    ),
    "cliquet": InstrumentExample(
        pr.Cliquet,
        {
            "times": [0.0, *QUARTERS],
            "local_floor": -0.03,
            "local_cap": 0.05,
            "global_floor": 0.0,
            "global_cap": 0.12,
        },
        ("local_floor", "local_cap", "global_cap"),
        {
            "times": ([0.5], [], [-0.5, 0.5], *UNSORTED),
            "local_cap": (-0.03, -0.05),
            "global_cap": (0.0, -0.1),
        },
        ({"times": QUARTERS}, {"local_floor": None, "local_cap": None}, {"global_floor": None, "global_cap": None}),
        homogeneous=None,
    ),
    "autocallable": InstrumentExample(
        pr.Autocallable,
        {
            "times": QUARTERS,
            "reference": 100.0,
            "autocall_barrier": 1.0,
            "coupon": 0.02,
            "protection_barrier": 0.7,
            "coupon_barrier": 0.8,
            "memory": True,
        },
        ("reference", "protection_barrier"),
        {
            "times": ([0.0, 0.5], [-0.5, 0.5], [], *UNSORTED),
            "reference": POSITIVE,
            "autocall_barrier": (*POSITIVE, [1.0, 0.9]),
            "coupon": (-0.01, [0.02, 0.02]),
            "protection_barrier": POSITIVE,
            "coupon_barrier": (*POSITIVE, [1.0, 0.9, 0.8]),
        },
        ({"memory": False}, {"coupon_barrier": None}, {"autocall_barrier": [1.0, 0.98, 0.96, 0.94]}),
        homogeneous=None,
    ),
    "variance_swap": InstrumentExample(
        pr.VarianceSwap,
        {"strike": 0.04, "expiry": 1.0},
        ("strike", "expiry"),
        {"strike": (-0.01,), "expiry": POSITIVE},
        option=False,
        homogeneous=None,
    ),
    "variance_option": InstrumentExample(
        pr.VarianceOption,
        {"strike": 0.04, "expiry": 1.0, "option": "call"},
        ("strike", "expiry"),
        VANILLA_REFUSED,
        (PUT,),
        homogeneous=None,
    ),
}
