"""What enters from outside: numbers become tensors, and every rule that they must keep is checked once, by name."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["broadcast_shape", "choice", "common_dtype", "converted", "copied", "dates", "real", "tensors", "within"]


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
    finite = tensor.detach().isfinite()
    if not bool(finite.all()):
        raise ValueError(f"`{name}` must be finite, got {_first(tensor, ~finite)}")
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
    detached = tensor.detach()
    bad = torch.zeros_like(detached, dtype=torch.bool)
    if above is not None:
        bad |= detached <= above
    if at_least is not None:
        bad |= detached < at_least
    if below is not None:
        bad |= detached >= below
    if at_most is not None:
        bad |= detached > at_most
    if bool(bad.any()):
        raise ValueError(f"`{name}` must {_rule(above, at_least, below, at_most)}, got {_first(tensor, bad)}")
    return tensor


def dates(name: str, value: Any, *, at_least: float | None = None) -> Tensor:
    """Times in years along the last axis, positive (or `at_least`) and strictly ascending.

    Raises:
        ValueError: a time breaks a bound or comes before its predecessor, or there is none.
    """
    tensor = within(name, value, above=0.0) if at_least is None else within(name, value, at_least=at_least)
    tensor = tensor.reshape(1) if tensor.ndim == 0 else tensor
    if tensor.shape[-1] == 0:
        raise ValueError(f"`{name}` must hold at least one time, got none")
    unordered = tensor.detach().diff(dim=-1) <= 0
    if bool(unordered.any()):
        later = tensor.detach()[..., 1:][unordered][0].item()
        raise ValueError(f"`{name}` must ascend strictly, got {later:g} after a time that is not earlier; sort them")
    return tensor


def choice(name: str, value: str, options: tuple[str, ...]) -> str:
    """`value`, one of `options`.

    Raises:
        ValueError: it is another word.
    """
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
    natural = torch.as_tensor(value)  # float32 for Python floats: only its kind is read
    if natural.is_complex() or natural.dtype == torch.bool:
        return natural
    return torch.as_tensor(value, dtype=torch.float64)


def _clash(one: torch.Size, other: torch.Size) -> bool:
    try:
        torch.broadcast_shapes(one, other)
    except RuntimeError:
        return True
    return False


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
