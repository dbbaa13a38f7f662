"""A number with its errors: what every engine returns."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import torch
from jaxtyping import Float
from torch import Tensor

from pricers.parameters import number, whole

__all__ = ["Estimate"]


@dataclass(frozen=True, eq=False, init=False)
class Estimate:
    r"""A number, how far chance and numerics may have moved it, and where it comes from.

    With $\hat v$ the value, $s$ its standard error and $b$ its numerical error bound, the true number lies in

    $$[\hat v - z s - b,\ \hat v + z s + b]$$

    with the probability that belongs to the normal quantile $z$.

    Args:
        value: the estimate, shape `*batch`, in the unit of what is estimated; a Python number becomes float64.
        std_error: statistical standard error of `value`, same unit, broadcast to its shape; 0 where nothing is drawn.
        error_bound: numerical error (truncation of a series, gap between a lower and an upper bound), same unit,
            broadcast to the shape of `value`.
        n_paths: number of simulated paths behind `value`; 0 where nothing is simulated.
        engine: name of the engine that made the number.
        note: what a reader must know, such as that the formula is an approximation.

    Raises:
        ValueError: a field is not a real number, does not broadcast to `value`, is negative, is NaN where `value` is a
            number, or `n_paths` contradicts `std_error`.

    References:
        Glasserman (2004), Monte Carlo Methods in Financial Engineering, section 1.1: the confidence interval.

    >>> estimate = Estimate(10.45, std_error=0.02, n_paths=10_000, engine="monte carlo")
    >>> low, high = estimate.confidence_interval(0.95)
    >>> round(low.item(), 4), round(high.item(), 4)
    (10.4108, 10.4892)
    """

    value: Float[Tensor, "*batch"]
    std_error: Float[Tensor, "*batch"]
    error_bound: Float[Tensor, "*batch"]
    n_paths: int
    engine: str
    note: str

    def __init__(
        self,
        value: Tensor | float,
        std_error: Tensor | float,
        error_bound: Tensor | float = 0.0,
        n_paths: int = 0,
        engine: str = "",
        note: str = "",
    ) -> None:
        value = _real("value", value, like=None)
        std_error = _error("std_error", std_error, value)
        error_bound = _error("error_bound", error_bound, value)
        n_paths = whole("n_paths", n_paths, at_least=0)
        if n_paths < 2 and bool((std_error > 0).any()):
            raise ValueError(f"a `std_error` above 0 needs at least 2 simulated paths, got `n_paths` = {n_paths}")
        set_field = object.__setattr__  # the class is frozen
        set_field(self, "value", value)
        set_field(self, "std_error", std_error)
        set_field(self, "error_bound", error_bound)
        set_field(self, "n_paths", n_paths)
        set_field(self, "engine", engine)
        set_field(self, "note", note)

    def confidence_interval(self, level: float = 0.95) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """Interval that covers the true number with probability `level`, widened by the numerical error on each side.

        Args:
            level: probability in (0, 1), by the normal limit of the sample mean.

        Returns:
            The lower and the upper end, each of the shape of `value`.

        Raises:
            ValueError: `level` lies outside (0, 1).

        >>> [end.item() for end in Estimate(1.0, std_error=0.0, error_bound=0.25).confidence_interval(0.99)]
        [0.75, 1.25]
        """
        level = number("level", level, above=0.0, below=1.0)
        quantile = NormalDist().inv_cdf(0.5 + 0.5 * level)
        half_width = quantile * self.std_error + self.error_bound
        return self.value - half_width, self.value + half_width

    def expanded(self, shape: torch.Size) -> Estimate:
        """The same numbers for a whole batch, where some of its axes do not move them.

        >>> Estimate(1.0, std_error=0.0).expanded(torch.Size([2])).value.tolist()
        [1.0, 1.0]
        """
        if self.value.shape == shape:
            return self
        value, *errors = (part.expand(shape) for part in (self.value, self.std_error, self.error_bound))
        return Estimate(value, *errors, n_paths=self.n_paths, engine=self.engine, note=self.note)

    def with_note(self, note: str) -> Estimate:
        """The same number with another note.

        >>> Estimate(1.0, std_error=0.0, engine="analytic").with_note("an approximation").note
        'an approximation'
        """
        return Estimate(self.value, self.std_error, self.error_bound, self.n_paths, self.engine, note)


def _real(name: str, number: Tensor | float, like: Tensor | None) -> Tensor:
    """A floating point tensor: Python numbers become float64, or what `like` is; tensors keep their dtype."""
    if not isinstance(number, Tensor):
        if isinstance(number, bool):
            raise ValueError(f"`{name}` must be a real number, got {number!r}")
        dtype, device = (torch.float64, None) if like is None else (like.dtype, like.device)
        try:
            return torch.tensor(number, dtype=dtype, device=device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"`{name}` must be a real number or a tensor of them, got {number!r}") from error
    if not number.is_floating_point():
        raise ValueError(f"`{name}` must hold real floating point numbers, got {number.dtype}; convert it first")
    return number


def _error(name: str, number: Tensor | float, value: Tensor) -> Tensor:
    """An error of `value`: on its device, of its dtype, broadcast to its shape, not negative."""
    error = _real(name, number, like=value)
    if error.dtype != value.dtype or error.device != value.device:
        raise ValueError(
            f"`{name}` must have the dtype and device of `value` ({value.dtype} on {value.device}), "
            f"got {error.dtype} on {error.device}"
        )
    try:
        error = error.expand(value.shape)
    except RuntimeError:
        raise ValueError(
            f"`{name}` must broadcast to the shape of `value`, {tuple(value.shape)}, got {tuple(error.shape)}"
        ) from None
    if bool((error < 0).any()):
        raise ValueError(f"`{name}` must be 0 or more, got {error.min().item()}")
    if bool((error.isnan() & ~value.isnan()).any()):
        raise ValueError(f"`{name}` is NaN where `value` is a number; state the error or set the value to NaN as well")
    return error
