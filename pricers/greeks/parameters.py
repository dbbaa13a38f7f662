"""What a price may be differentiated by: parameters found by name, and moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import reduce
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor

from pricers.estimate import Estimate
from pricers.instruments.base import Instrument
from pricers.market import Market, ZeroCurve
from pricers.models.base import Model
from pricers.parameters import copied

__all__ = ["Name", "Parameter", "Task", "Triple", "locate", "stacked", "tasks_of"]

Name = str | tuple[str, str]
Triple = tuple[Instrument, Model, Market]
# fields whose last axis (if they have one) is no batch: dates of a contract, assets
DATE_AXIS = ("times", "monitoring", "autocall_barrier", "coupon", "coupon_barrier", "weights")
ASSET_AXIS = ("spot", "vol", "dividend_yield")


@dataclass(frozen=True)
class Parameter:
    """Something that a price depends on.

    Args:
        name: as the user calls it.
        owner: 0 for the instrument, 1 for the model, 2 for the market.
        path: names of the fields that lead to the tensor.
        event_shape: trailing axes that are no batch (assets, dates, nodes of a curve): one Greek for each entry.
        batch_shape: axes before these, where elements of the batch have values of their own.
    """

    name: str
    owner: int
    path: tuple[str, ...]
    event_shape: torch.Size
    batch_shape: torch.Size

    @property
    def entries(self) -> list[int | None]:
        """Flat indices into the event axes; None stands for a parameter without such axes."""
        return list(range(self.event_shape.numel())) if self.event_shape else [None]

    def size(self, triple: Triple) -> float:
        """Typical size of its values: what a relative bump refers to; 0.01 at least."""
        if self.name == "time":
            return triple[0].horizon.detach().min().item()
        value: Any = triple[self.owner]
        for part in self.path:
            value = getattr(value, part)
        return max(value.detach().abs().mean().item(), 0.01)

    def moved(self, triple: Triple, step: Tensor, entry: int | None) -> Triple:
        """The triple with the parameter (or one entry of it) raised by `step`, a number."""
        if entry is None:
            return self.shifted(triple, step)
        direction = torch.zeros(self.event_shape.numel(), dtype=step.dtype, device=step.device)
        direction[entry] = 1.0
        return self.shifted(triple, step * direction.reshape(self.event_shape))

    def shifted(self, triple: Triple, step: Tensor) -> Triple:
        """The triple with `step`, of the event shape (with or without the batch before it), added to the parameter."""
        if self.name == "time":
            instrument, model, market = triple
            elapsed = step.to(instrument.horizon.dtype)
            return instrument.shifted(elapsed), model, market.shifted(elapsed)
        items: list[Any] = list(triple)
        items[self.owner] = _raised(items[self.owner], self.path, step)
        return cast("Triple", tuple(items))


@dataclass(frozen=True)
class Task:
    """One number to be found for each element of the batch: a derivative in one or two parameters (or entries)."""

    parameters: tuple[Parameter, ...]
    entries: tuple[int | None, ...]

    @property
    def order(self) -> int:
        """1 or 2."""
        return len(self.parameters)

    @property
    def heads(self) -> tuple[str, ...]:
        """First part of each name."""
        return tuple(parameter.name.split(".")[0] for parameter in self.parameters)

    def moved(self, triple: Triple, *steps: Tensor) -> Triple:
        """The triple with each parameter raised by its step; nothing is checked."""
        moves = zip(self.parameters, steps, self.entries, strict=True)
        return reduce(lambda now, move: move[0].moved(now, move[1], move[2]), moves, triple)

    def bumped(self, triple: Triple, *steps: Tensor) -> Triple:
        """The same for finite steps, whose end must be admissible.

        Raises:
            ValueError: it is not.
        """
        moved = self.moved(triple, *steps)
        try:
            return cast("Triple", tuple(_checked(item) for item in moved))
        except ValueError as error:
            names = ", ".join(parameter.name for parameter in self.parameters)
            raise ValueError(
                f"a bump of `{names}` leaves what is admissible ({error}); use method='pathwise', a smaller `bump`, or "
                "a point inside"
            ) from error


def tasks_of(name: Name, triple: Triple) -> list[Task]:
    """What has to be found for one entry of `wrt`: a number for each entry of curves, surfaces, assets, dates.

    Raises:
        ValueError: unknown names, or more than two.
    """
    names = (name,) if isinstance(name, str) else tuple(name)
    if len(names) not in (1, 2):
        raise ValueError(f"`wrt` knows first and second order (a name, a pair of names), got {names}")
    parameters = tuple(locate(single, triple) for single in names)
    return [Task(parameters, entries) for entries in product(*(parameter.entries for parameter in parameters))]


def stacked(task: Task, estimates: list[Estimate]) -> Estimate:
    """The entries of event axes side by side, behind the batch."""
    shape = tuple(n for parameter in task.parameters for n in parameter.event_shape)
    if not shape:
        return estimates[0]

    def columns(part: str) -> Tensor:
        flat = torch.stack([getattr(estimate, part) for estimate in estimates], dim=-1)
        return flat.reshape(*flat.shape[:-1], *shape)

    first, n_paths = estimates[0], min(estimate.n_paths for estimate in estimates)
    parts = (columns(part) for part in ("value", "std_error", "error_bound"))
    note = "; ".join(dict.fromkeys(estimate.note for estimate in estimates if estimate.note))
    return Estimate(*parts, n_paths=n_paths, engine=first.engine, note=note)


def locate(name: str, triple: Triple) -> Parameter:
    """The parameter of that name.

    Raises:
        ValueError: nothing in the triple is called so; the message lists what is.
    """
    if name == "time":
        return Parameter(name, 0, (), torch.Size(), torch.Size())
    path = tuple(name.split("."))
    for owner in (2, 1, 0):
        parent: Any = None
        value: Any = triple[owner]
        for part in path:
            parent, value = value, vars(value).get(part) if is_dataclass(value) else None
        if isinstance(value, ZeroCurve):
            return Parameter(name, owner, (*path, "rates"), torch.Size(), torch.Size())
        if isinstance(value, Tensor):
            event = _event_shape(path, value, parent, triple[1].n_assets)
            return Parameter(name, owner, path, event, value.shape[: value.ndim - len(event)])
    raise ValueError(
        f"`wrt` names what the price does not depend on: {name!r}; known are {', '.join([*_known(triple), 'time'])}"
    )


def _known(triple: Triple) -> list[str]:
    names: list[str] = []
    for item in triple:
        for key, value in vars(item).items():
            if isinstance(value, (Tensor, ZeroCurve)):
                names.append(key)
            if is_dataclass(value):
                names += [f"{key}.{part}" for part, leaf in vars(value).items() if isinstance(leaf, Tensor)]
    return sorted(names)


def _event_shape(path: Sequence[str], value: Tensor, parent: Any, n_assets: int) -> torch.Size:
    name, *inside = path
    if inside:  # nodes of a curve or surface
        return value.shape[len(getattr(parent, "batch_shape", ())) :]
    if name == "correlation":
        return value.shape[-2:]
    if name in DATE_AXIS or (n_assets > 1 and name in ASSET_AXIS):
        return value.shape[-1:]
    return torch.Size()


def _raised(item: Any, path: tuple[str, ...], step: Tensor) -> Any:
    """A copy of `item` whose field at the end of `path` is raised by `step`; nothing is checked."""
    head, rest = path[0], path[1:]
    value: Any = getattr(item, head)
    if rest:
        return copied(item, **{head: _raised(value, rest, step)})
    if head == "correlation":  # an entry off the diagonal moves its mirror image too, the diagonal stays
        step = step + step.mT - 2.0 * torch.diag_embed(step.diagonal(dim1=-2, dim2=-1))
    return copied(item, **{head: value + step.to(value.dtype)})


def _checked(item: Any) -> Any:
    """The item made anew, so that it is validated."""
    inside = {
        field.name: _checked(getattr(item, field.name))
        for field in fields(item)
        if is_dataclass(getattr(item, field.name))
    }
    return replace(item, **inside)
