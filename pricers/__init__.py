"""pricers: stochastic models, instruments and engines; torch and mathematics only.

An instrument is a payoff, a model is a dynamics, an engine is a way to get a number:

>>> import pricers as pr
>>> market = pr.Market(spot=100.0, rate=0.01, dividend_yield=0.02)
>>> model = pr.Heston(v0=0.04, kappa=4.0, theta=0.25, sigma=1.0, rho=-0.5)
>>> call = pr.European(strike=[90.0, 100.0, 110.0], expiry=1.0, option="call")
>>> [round(value, 6) for value in pr.price(call, model, market).value.tolist()]
[20.933349, 16.070155, 12.132212]
"""

from pricers.analytic.engine import Analytic
from pricers.analytic.fourier_engine import Fourier
from pricers.black import bachelier_implied_vol, implied_vol
from pricers.estimate import Estimate
from pricers.exercise import LongstaffSchwartz
from pricers.finite_difference import FiniteDifference
from pricers.greeks import greeks
from pricers.instruments import (
    INSTRUMENTS,
    American,
    Asian,
    AsianBarrier,
    Autocallable,
    Barrier,
    Basket,
    Bermudan,
    Cliquet,
    Digital,
    European,
    ForwardStart,
    Instrument,
    Lookback,
    VarianceOption,
    VarianceSwap,
)
from pricers.market import CashDividends, Market, ZeroCurve
from pricers.models import (
    MODELS,
    SABR,
    Bates,
    BlackScholes,
    Heston,
    LocalVol,
    Merton,
    Model,
    RoughBergomi,
    RoughHeston,
    VolSurface,
)
from pricers.models.rough_bergomi import ForwardVarianceCurve, turbocharged_price
from pricers.models.vol_surface import SurfaceFit
from pricers.monte_carlo import MonteCarlo, MultilevelMonteCarlo, Scenarios, Simulation
from pricers.monte_carlo.scenarios import simulate
from pricers.pricing import ENGINES, price

__all__ = [
    "ENGINES",
    "INSTRUMENTS",
    "MODELS",
    "SABR",
    "American",
    "Analytic",
    "Asian",
    "AsianBarrier",
    "Autocallable",
    "Barrier",
    "Basket",
    "Bates",
    "Bermudan",
    "BlackScholes",
    "CashDividends",
    "Cliquet",
    "Digital",
    "Estimate",
    "European",
    "FiniteDifference",
    "ForwardStart",
    "ForwardVarianceCurve",
    "Fourier",
    "Heston",
    "Instrument",
    "LocalVol",
    "LongstaffSchwartz",
    "Lookback",
    "Market",
    "Merton",
    "Model",
    "MonteCarlo",
    "MultilevelMonteCarlo",
    "RoughBergomi",
    "RoughHeston",
    "Scenarios",
    "Simulation",
    "SurfaceFit",
    "VarianceOption",
    "VarianceSwap",
    "VolSurface",
    "ZeroCurve",
    "bachelier_implied_vol",
    "greeks",
    "implied_vol",
    "price",
    "simulate",
    "turbocharged_price",
]
