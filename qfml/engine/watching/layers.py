"""What a network's layers compute, seen from outside: any network is listened to, none has to be written for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

SATURATES = {"tanh", "sigmoid"}
_PRODUCTS = {"baddbmm", "bmm", "addmm", "mm", "matmul", "linear", "conv1d", "einsum"}
_MOVES = {"flatten", "unflatten", "view", "reshape", "contiguous", "transpose", "permute", "squeeze", "unsqueeze"}
_PARTS = {"__getitem__", "chunk", "split", "unbind", "stack", "cat", "pad"}
_NEW = {"new_zeros", "new_ones", "new_empty", "new_full", "zeros_like", "ones_like", "empty_like", "full_like"}


@dataclass(frozen=True)
class Origin:
    """Where a tensor comes from.

    Attributes:
        layer: the affine map that it has passed last, by the name of its weight; None before the first.
        depth: number of affine maps before, so that of several the last can be told.
        parameter: the parameter that it is computed from, where it is computed from parameters alone.
        saturates: it is the output of an activation that ends at -1, 0 or 1.
        pieces: the tensors that it is put together from, where zeros were added or pieces joined.
        scaled: the parameter that it was multiplied by, and what was multiplied.
    """

    layer: str | None = None
    depth: int = 0
    parameter: str | None = None
    saturates: bool = False
    pieces: tuple[Tensor, ...] = ()
    scaled: tuple[str, Tensor] | None = None


@dataclass(frozen=True)
class Reading:
    """What an affine map has read.

    Attributes:
        layer: the affine map that it comes from; None for features.
        reader: the affine map that reads it.
        values: shape (M, ..., U).
        saturates: whether its activation ends at -1, 0 or 1.
    """

    layer: str | None
    reader: str
    values: Tensor
    saturates: bool


OnResult = Callable[[str, Origin, Tensor, list[tuple[Tensor, Origin | None]]], None]


class Listener(TorchFunctionMode):
    """Follows a forward pass, call by call of torch's functions, from the features to the output.

    A product of what comes from the features with what comes from a parameter alone is an affine map; it has the
    parameter's name. A layer's activations are what later maps read of it.

    Args:
        x: the features.
        parameters: as they are handed to the network: a parameter is told by its identity.
        on_reading: called with what each affine map reads.
        on_result: called with each result that depends on the features: the function's name, where the result comes
            from, the result, and what it was computed from.
    """

    def __init__(
        self,
        x: Tensor,
        parameters: Mapping[str, Tensor],
        on_reading: Callable[[Reading], None] | None = None,
        on_result: OnResult | None = None,
    ) -> None:
        super().__init__()
        self.on_reading, self.on_result = on_reading, on_result
        # a tensor is held as long as its place in memory names it
        self._known: dict[int, tuple[Tensor, Origin]] = {id(x): (x, Origin())}
        self._depth = 0
        for name, value in parameters.items():
            self._known[id(value)] = value, Origin(parameter=name)

    def origin(self, tensor: Tensor) -> Origin | None:
        """Where a tensor comes from; None for one that neither comes from the features nor from a parameter."""
        return self._known.get(id(tensor), (tensor, None))[1]

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        name = name if name.startswith("__") else name.rstrip("_")  # in place or not
        if name in _NEW:
            return result
        results = [value for value in _tensors(result) if value.is_floating_point()]
        if results:
            operands = [(value, self.origin(value)) for value in _tensors([args, kwargs or {}])]
            origin = self._origin(name, operands, args, kwargs or {})
            if origin is None:
                return result
            for value in results:
                self._known[id(value)] = value, origin
                if self.on_result is not None and origin.parameter is None:
                    self.on_result(name, origin, value, operands)
        return result

    def _origin(
        self, name: str, operands: list[tuple[Tensor, Origin | None]], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Origin | None:
        known = [(value, origin) for value, origin in operands if origin is not None]
        data = [(value, origin) for value, origin in known if origin.parameter is None]
        weights = [origin.parameter for _, origin in known if origin.parameter is not None]
        if not known:
            return None
        if not data:
            return Origin(parameter=weights[0])
        read, last = max(data, key=lambda pair: pair[1].depth)
        plain = Origin(last.layer, last.depth)
        if name in _PRODUCTS and weights:  # a bias may stand before the weight: the widest parameter is the weight
            own = [pair for pair in known if pair[1].parameter is not None]
            weight = max(own, key=lambda pair: pair[0].numel())[1].parameter
            return self._map(weight or weights[0], read, last)
        if name == "mul" and weights:
            return replace(plain, scaled=(weights[0], read))
        if name == "sum" and last.scaled is not None:
            weight, read = last.scaled
            dim = kwargs.get("dim", args[1] if len(args) > 1 else -1)
            origin = self.origin(read) or plain
            # the axis that is summed is that of the units
            return self._map(weight, read.movedim(dim, -1) if isinstance(dim, int) else read, origin)
        if name in SATURATES:
            return replace(plain, saturates=True)
        if name in ("pad", "cat"):
            return replace(plain, saturates=last.saturates, pieces=tuple(value for value, _ in data))
        if name in _MOVES:
            return replace(plain, saturates=last.saturates, pieces=last.pieces)
        if name in _PARTS:
            return replace(plain, saturates=last.saturates)
        return plain

    def _map(self, weight: str, read: Tensor, origin: Origin) -> Origin:
        """An affine map `weight` reads `read`."""
        if self.on_reading is not None:
            for piece in self._pieces(read, origin):
                self.on_reading(Reading(origin.layer, weight, piece, origin.saturates))
        self._depth += 1
        return Origin(weight, self._depth)

    def _pieces(self, read: Tensor, origin: Origin) -> Iterator[Tensor]:
        if not origin.pieces:
            yield read
        for piece in origin.pieces:
            yield from self._pieces(piece, self.origin(piece) or Origin())


def _tensors(values: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
