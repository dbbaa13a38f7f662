"""Models: the dynamics of the asset under the pricing measure."""

from pricers.models.base import DirectScheme, Model, PathScheme, Scheme, Step
from pricers.models.bates import Bates, Merton
from pricers.models.black_scholes import BlackScholes
from pricers.models.heston import Heston
from pricers.models.local_vol import LocalVol
from pricers.models.rough_bergomi import RoughBergomi
from pricers.models.rough_heston import RoughHeston
from pricers.models.sabr import SABR
from pricers.models.vol_surface import VolSurface

__all__ = [
    "MODELS",
    "SABR",
    "Bates",
    "BlackScholes",
    "DirectScheme",
    "Heston",
    "LocalVol",
    "Merton",
    "Model",
    "PathScheme",
    "RoughBergomi",
    "RoughHeston",
    "Scheme",
    "Step",
    "VolSurface",
]

MODELS: dict[str, type[Model]] = {
    cls.kind: cls for cls in (BlackScholes, LocalVol, Heston, Bates, Merton, SABR, RoughBergomi, RoughHeston)
}
