"""Models: the dynamics of the asset under the pricing measure."""

from pricers.models.base import DirectScheme, Model, PathScheme, Scheme, Step
from pricers.models.black_scholes import BlackScholes

__all__ = ["MODELS", "BlackScholes", "DirectScheme", "Model", "PathScheme", "Scheme", "Step"]

MODELS: dict[str, type[Model]] = {cls.kind: cls for cls in (BlackScholes,)}
