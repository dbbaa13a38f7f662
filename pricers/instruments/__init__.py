"""Instruments: what is paid, when, and on what."""

from pricers.instruments.asian import Asian
from pricers.instruments.asian_barrier import AsianBarrier
from pricers.instruments.autocallable import Autocallable
from pricers.instruments.barrier import Barrier
from pricers.instruments.base import EarlyExercise, Instrument
from pricers.instruments.basket import Basket
from pricers.instruments.digital import Digital
from pricers.instruments.early_exercise import American, Bermudan
from pricers.instruments.european import European
from pricers.instruments.forward_start import Cliquet, ForwardStart
from pricers.instruments.lookback import Lookback
from pricers.instruments.variance import VarianceOption, VarianceSwap

__all__ = [
    "INSTRUMENTS",
    "American",
    "Asian",
    "AsianBarrier",
    "Autocallable",
    "Barrier",
    "Basket",
    "Bermudan",
    "Cliquet",
    "Digital",
    "EarlyExercise",
    "European",
    "ForwardStart",
    "Instrument",
    "Lookback",
    "VarianceOption",
    "VarianceSwap",
]

INSTRUMENTS: dict[str, type[Instrument]] = {
    cls.kind: cls
    for cls in (
        European,
        Digital,
        Barrier,
        Asian,
        AsianBarrier,
        Lookback,
        American,
        Bermudan,
        Basket,
        ForwardStart,
        Cliquet,
        Autocallable,
        VarianceSwap,
        VarianceOption,
    )
}
