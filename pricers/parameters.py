"""What enters from outside: numbers become tensors, and every rule that they must keep is checked once, by name."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from math import isfinite
from numbers import Integral, Real
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = [
    "broadcast_shape",
    "choice",
    "common_dtype",
    "converted",
    "copied",
    "dates",
    "device_of",
    "flag",
    "number",
    "plausible",
    "real",
    "tensors",
    "time_of",
    "volatility",
    "whole",
    "within",
    "word",
]

FEW = 64  # numbers that are cheaper to check one by one
MOST_YEARS = 200.0  # what is above was meant in days
MOST_VOL = 10.0  # 1,000 % a year: what is above was meant in percent


def real(name: str, value: Any) -> Tensor:
    """A tensor of finite real numbers: Python numbers, lists and arrays become float64, tensors keep their dtype.

    A list may hold tensors (of one shape); the graph behind a tensor is kept.

    Raises:
        ValueError: `value` is no array of real numbers, of a type below float32, or holds NaN or infinity.
    """
    try:
        tensor = _tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"`{name}` must be a real number or an array of them, got {value!r}") from error
    if not tensor.is_floating_point():
        raise ValueError(f"`{name}` must hold real floating point numbers, got {tensor.dtype}; convert it first")
    if tensor.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"`{name}` must be float32 or float64, got {tensor.dtype}: too coarse for a price; convert it")
    if tensor.is_meta:
        raise ValueError(f"`{name}` must hold numbers, got a tensor on the device 'meta', which holds none; move it")
    if not bool(_extremes(tensor).isfinite().all()):
        raise ValueError(f"`{name}` must be finite, got {_first(tensor, ~tensor.detach().isfinite())}")
    return tensor


def within(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    like: Tensor | None = None,
) -> Tensor:
    """`real`, and inside the stated bounds; with `like` a Python number takes that tensor's type, not float64.

    >>> within("rho", 1.2, above=-1, below=1)
    Traceback (most recent call last):
        ...
    ValueError: `rho` must lie in (-1, 1), got 1.2
    """
    tensor = real(name, value)
    if like is not None and isinstance(value, int | float):
        tensor = tensor.to(like.device, like.dtype)
    if bool(_outside(_extremes(tensor), above, at_least, below, at_most).any()):
        bad = _outside(tensor.detach(), above, at_least, below, at_most)
        raise ValueError(f"`{name}` must {_rule(above, at_least, below, at_most)}, got {_first(tensor, bad)}")
    return tensor


def years(name: str, value: Any) -> Tensor:
    """Times from now in years: above 0, and at most 200, beyond which they are days by mistake.

    >>> years("expiry", 365)
    Traceback (most recent call last):
        ...
    ValueError: `expiry` must lie in (0, 200], got 365; is it in days? a year of days is 365 / 365 = 1.0
    """
    return _in_years(name, within(name, value, above=0.0))


def _in_years(name: str, tensor: Tensor) -> Tensor:
    late = tensor.detach() > MOST_YEARS
    if bool(late.any()):
        hint = "is it in days? a year of days is 365 / 365 = 1.0"
        raise ValueError(f"`{name}` must lie in (0, {MOST_YEARS:g}], got {_first(tensor, late)}; {hint}")
    return tensor


def dates(name: str, value: Any, *, at_least: float | None = None) -> Tensor:
    """Times in years along the last axis, positive (or `at_least`) and strictly ascending.

    Raises:
        ValueError: a time breaks a bound or comes before its predecessor, or there is none.
    """
    tensor = within(name, value, above=0.0) if at_least is None else within(name, value, at_least=at_least)
    tensor = _in_years(name, tensor)
    tensor = tensor.reshape(1) if tensor.ndim == 0 else tensor
    if tensor.shape[-1] == 0:
        raise ValueError(f"`{name}` must hold at least one time, got none")
    unordered = tensor.detach().diff(dim=-1) <= 0
    if bool(unordered.any()):
        later = tensor.detach()[..., 1:][unordered][0].item()
        raise ValueError(f"`{name}` must ascend strictly, got {later:g} after a time that is not earlier; sort them")
    return tensor


def plausible(name: str, tensor: Tensor, size: float, hint: str) -> Tensor:
    """The tensor, if none of its numbers is beyond `size`, which only a mistake in the unit explains.

    Raises:
        ValueError: one is; `hint` tells the mistake.
    """
    if bool((_extremes(tensor).abs() > size).any()):
        found = _first(tensor, tensor.detach().abs() > size)
        raise ValueError(f"`{name}` must lie in [{-size:g}, {size:g}], got {found}; {hint}")
    return tensor


def volatility(name: str, value: Any) -> Tensor:
    """Annual volatilities as decimals: above 0, and at most 10, that is 1,000 %.

    >>> volatility("vol", 20.0)
    Traceback (most recent call last):
        ...
    ValueError: `vol` must be 10 or less, got 20; is it in percent? 20 % is 0.2
    """
    tensor = within(name, value, above=0.0)
    if bool((_extremes(tensor) > MOST_VOL).any()):
        found = _first(tensor, tensor.detach() > MOST_VOL)
        raise ValueError(f"`{name}` must be {MOST_VOL:g} or less, got {found}; is it in percent? 20 % is 0.2")
    return tensor


def time_of(value: Any) -> Tensor:
    """A tensor of times as it is; numbers and lists are checked: 0 or more."""
    return value if isinstance(value, Tensor) else within("time", value, at_least=0.0)


def whole(name: str, value: Any, *, at_least: int | None = None, at_most: int | None = None) -> int:
    """A Python or numpy integer.

    Raises:
        ValueError: a number of another type, even if it is whole, one below `at_least` or above `at_most`.

    >>> whole("n_paths", 1e5)
    Traceback (most recent call last):
        ...
    ValueError: `n_paths` must be a whole number, got 100000.0; write it as an int
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"`{name}` must be a whole number, got {value!r}; write it as an int")
    count = int(value)
    if at_least is not None and count < at_least:
        raise ValueError(f"`{name}` must be {at_least} or more, got {value}")
    if at_most is not None and count > at_most:
        raise ValueError(f"`{name}` must be {at_most} or less, got {value}: more than any machine can do")
    return count


def number(name: str, value: Any, *, above: float | None = None, below: float | None = None) -> float:
    """One finite number that is no tensor, inside the open bounds.

    Raises:
        ValueError: it is something else, NaN, infinite or out of bounds.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"`{name}` must be one real number, got {value!r}; write it as a float")
    found = float(value)
    if not isfinite(found) or (above is not None and found <= above) or (below is not None and found >= below):
        rule = "be finite" if above is None and below is None else _rule(above, None, below, None)
        raise ValueError(f"`{name}` must {rule}, got {found}")
    return found


def flag(name: str, value: Any) -> bool:
    """True or False, and nothing that merely counts as one of them.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, bool):
        return value
    if type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise ValueError(f"`{name}` must be True or False, got {value!r}; write it without quotes, as a bool")


def word(name: str, value: Any) -> str:
    """A name.

    Raises:
        ValueError: it is no text.
    """
    if not isinstance(value, str):
        raise ValueError(f"`{name}` must be one name, got {value!r}; write it as a str")
    return value


def device_of(name: str, value: Any) -> torch.device:
    """A device that is there and holds numbers.

    Raises:
        ValueError: no such device, or nothing can be computed on it.
    """
    if not isinstance(value, str | torch.device):
        raise ValueError(f"`{name}` must be a torch.device or its name, got {value!r}; write torch.device('cpu')")
    try:
        device = torch.device(value)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"`{name}` must be a device of this machine, got {str(value)!r} ({error}); use 'cpu'"
        ) from error
    return device


def choice(name: str, value: Any, options: tuple[str, ...]) -> str:
    """`value`, one of `options`.

    Raises:
        ValueError: it is another word, or no word.
    """
    if not isinstance(value, str):
        raise ValueError(
            f"`{name}` must be one of {', '.join(map(repr, options))}, got {value!r}; one word holds for all of a batch"
        )
    if value not in options:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, options))}, got {value!r}")
    return value


def broadcast_shape(**shapes: torch.Size | Tensor) -> torch.Size:
    """The common batch shape by numpy's rules.

    Raises:
        ValueError: two shapes do not broadcast; the message names both.

    >>> broadcast_shape(strike=torch.zeros(3), spot=torch.zeros(2))
    Traceback (most recent call last):
        ...
    ValueError: `strike` of shape (3,) and `spot` of shape (2,) do not broadcast; add axes of length 1 ...
    """
    common = torch.Size()
    sizes = {name: shape.shape if isinstance(shape, Tensor) else shape for name, shape in shapes.items()}
    for name, shape in sizes.items():
        try:
            common = torch.broadcast_shapes(common, shape)
        except RuntimeError:
            other = next(key for key, earlier in sizes.items() if _clash(earlier, shape))
            raise ValueError(
                f"`{other}` of shape {tuple(sizes[other])} and `{name}` of shape {tuple(shape)} do not broadcast; "
                f"add axes of length 1 (`{other}[:, None]`)"
            ) from None
    return common


T = TypeVar("T")


def copied(item: T, **changes: Any) -> T:
    """A shallow copy of a frozen dataclass with some fields replaced, without checking them anew."""
    twin = copy.copy(item)
    for name, value in changes.items():
        object.__setattr__(twin, name, value)
    return twin


def converted(item: T, dtype: torch.dtype, device: torch.device) -> T:
    """The same dataclass with all tensors, in dataclasses inside it too, of one dtype and on one device."""
    changes: dict[str, Any] = {}
    for field in fields(item):  # pyright: ignore[reportArgumentType]  # a dataclass, by contract
        value = getattr(item, field.name)
        if isinstance(value, Tensor) and value.is_floating_point():
            changes[field.name] = value.to(device, dtype)
        elif is_dataclass(value) and not isinstance(value, type):
            changes[field.name] = converted(value, dtype, device)
    return copied(item, **changes)


def tensors(*items: Any) -> Iterator[Tensor]:
    """All floating point tensors among the fields of dataclasses, and the fields of fields."""
    for item in items:
        for field in fields(item):
            value = getattr(item, field.name)
            if isinstance(value, Tensor) and value.is_floating_point():
                yield value
            elif is_dataclass(value) and not isinstance(value, type):
                yield from tensors(value)


def common_dtype(*items: Any) -> torch.dtype:
    """float64 if any tensor of the dataclasses is, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors(*items)) else torch.float32


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) for item in value):
        return torch.stack([_tensor(item) for item in value])
    if isinstance(value, (str, bytes)):
        raise TypeError("text is no number")
    if _holds_bool(value):
        raise TypeError("True and False are no numbers")
    natural = torch.as_tensor(value)  # float32 for Python floats: only its kind is read
    if natural.is_complex() or natural.dtype == torch.bool:
        return natural
    return torch.as_tensor(value, dtype=torch.float64)


def _holds_bool(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_holds_bool(item) for item in value)
    return isinstance(value, bool)


def _clash(one: torch.Size, other: torch.Size) -> bool:
    try:
        torch.broadcast_shapes(one, other)
    except RuntimeError:
        return True
    return False


def _extremes(tensor: Tensor) -> Tensor:
    """All numbers, or the least and the largest where there are many: one pass instead of one for every rule."""
    detached = tensor.detach()
    return detached if detached.numel() <= FEW else torch.stack(detached.aminmax())  # NaN is both, if there is one


def _outside(
    numbers: Tensor, above: float | None, at_least: float | None, below: float | None, at_most: float | None
) -> Tensor:
    bad = torch.zeros_like(numbers, dtype=torch.bool)
    if above is not None:
        bad |= numbers <= above
    if at_least is not None:
        bad |= numbers < at_least
    if below is not None:
        bad |= numbers >= below
    if at_most is not None:
        bad |= numbers > at_most
    return bad


def _first(tensor: Tensor, bad: Tensor) -> str:
    """The first offending number, with its index where there are several numbers."""
    number = f"{tensor.detach()[bad][0].item():g}"
    if tensor.ndim == 0:
        return number
    index = tuple(bad.nonzero()[0].tolist())
    return f"{number} at index {index[0] if len(index) == 1 else index}"


def _rule(above: float | None, at_least: float | None, below: float | None, at_most: float | None) -> str:
    low = above if above is not None else at_least
    high = below if below is not None else at_most
    if low is not None and high is not None:
        left, right = "(" if above is not None else "[", ")" if below is not None else "]"
        return f"lie in {left}{low:g}, {high:g}{right}"
    if low is not None:
        return f"be above {low:g}" if above is not None else f"be {low:g} or more"
    if high is not None:
        return f"be below {high:g}" if below is not None else f"be {high:g} or less"
    return "be a real number"
