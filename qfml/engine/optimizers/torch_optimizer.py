"""Any optimizer of `torch.optim`, or written like one, for members that train one at a time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from qfml.engine.optimizers.base import Flat, Optimizer, State, Step
from qfml.engine.stack import Layout
from qfml.errors import UserError

Factory = Callable[[list[Tensor]], torch.optim.Optimizer]
_FROM_STEP = ("lr", "weight_decay")  # of a group: given anew at each step


@dataclass(frozen=True, init=False)
class TorchOptimizer:
    """An optimizer that `factory` builds for one member's parameters; members of a stack then train one at a time.

    It is given the learning rate and weight decay of each step (schedule, a member's own, parameter groups). What it
    remembers in its `state` and `param_groups` is kept as named tensors, so that a run is resumed to the same bits.
    Where the factory makes groups with rates of their own, these stay in proportion. What needs a closure is refused:
    `LBFGS` is there for that.

    Args:
        factory: from a list of parameters to an optimizer, such as
            `lambda parameters: torch.optim.NAdam(parameters, lr=1e-3)`.

    Attributes:
        optimizer: name of the class that the factory builds.
        settings: of each of its groups; with the name they stand for the factory where a run is identified.

    Raises:
        UserError: the factory builds no optimizer, or one that needs a closure.

    Example:
        >>> optimizer = TorchOptimizer(lambda parameters: torch.optim.NAdam(parameters, lr=5e-4))
        >>> optimizer.optimizer, optimizer.lr
        ('torch.optim.nadam.NAdam', 0.0005)
    """

    kind: ClassVar[str] = "torch"
    stackable: ClassVar[bool] = False
    optimizer: str
    settings: tuple[tuple[str, str], ...]

    def __init__(self, factory: Factory) -> None:
        if not callable(factory) or isinstance(factory, torch.optim.Optimizer):
            raise UserError(
                "`factory` must be a function of the parameters, such as lambda parameters: "
                f"torch.optim.NAdam(parameters, lr=1e-3), got {factory!r}"
            )
        made = factory([torch.zeros(2, 2)])
        if not isinstance(made, torch.optim.Optimizer):
            raise UserError(f"`factory` must build a torch.optim.Optimizer, it returned {type(made).__name__}")
        cls = type(made)
        closure = inspect.signature(made.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise UserError(
                f"{cls.__name__} needs a closure that evaluates the loss again, and a step has one gradient: use "
                "qfml.LBFGS, which searches along the loss"
            )
        if "lr" not in made.param_groups[0]:
            raise UserError(f"{cls.__name__} has no `lr` in its groups, which schedules and members set")
        settings = tuple((f"{place}.{name}", _plain(value)) for place, name, value in _settings(made))
        object.__setattr__(self, "optimizer", f"{cls.__module__}.{cls.__qualname__}")
        object.__setattr__(self, "settings", settings)
        object.__setattr__(self, "_factory", factory)

    @property
    def lr(self) -> float:
        """Learning rate of the members that do not carry their own."""
        return float(self._made([torch.zeros(2, 2)]).param_groups[0]["lr"])

    @property
    def weight_decay(self) -> float:
        """Weight decay of the members that do not carry their own; 0 for an optimizer without."""
        return float(self._made([torch.zeros(2, 2)]).param_groups[0].get("weight_decay", 0.0))

    def start(self, parameters: Flat, layout: Layout | None = None) -> State:
        """What is remembered, all zero: names and shapes are those that a step on a copy leaves behind."""
        _single(parameters)
        if layout is None:
            raise UserError("`layout` must say where each parameter lies: what is remembered depends on their shapes")
        named = _rows(parameters.clone(), layout)
        made = self._made(list(named.values()))
        for value in named.values():
            value.grad = torch.full_like(value, 1e-3)
        try:
            made.step()
        except RuntimeError as error:
            raise UserError(f"{self.optimizer} takes no step on dense gradients: {error}") from error
        held = {name: torch.zeros_like(value) for name, value in _memory(made, named, parameters.device).items()}
        return held | {"begun": torch.zeros(1, dtype=torch.bool, device=parameters.device)}

    def update(self, parameters: Flat, gradient: Flat, state: State, step: Step) -> None:
        """One step of an optimizer that is built anew, given what it remembers, and asked for it afterwards."""
        _single(parameters)
        if step.moves is not None and not bool(step.moves.all()):
            return
        named, gradients = _rows(parameters, step.layout), _rows(gradient, step.layout)
        made = self._made(list(named.values()))
        if state["begun"]:
            _recall(made, named, state)
        for name, value in named.items():
            value.grad = gradients[name]
        n_groups = len(made.param_groups)
        _set_rates(made, named, step)
        before = parameters.clone() if step.lr[0] == 0 else None
        made.step()
        if before is not None:  # some move whatever the rate
            parameters.copy_(before)
        del made.param_groups[n_groups:]
        for name, value in _memory(made, named, parameters.device).items():
            if name not in state or state[name].shape != value.shape:
                raise UserError(
                    f"{self.optimizer} remembers {name!r} of shape {tuple(value.shape)} only after some steps, and a "
                    "checkpoint holds what the first step leaves behind: this optimizer cannot be used here"
                )
            state[name].copy_(value)
        state["begun"].fill_(True)

    def _made(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        return self._factory(parameters)  # pyright: ignore[reportAttributeAccessIssue]


def start_state(optimizer: Optimizer, parameters: Flat, layout: Layout) -> State:
    """What any optimizer remembers before the first step of members whose parameters lie as `layout` says."""
    return optimizer.start(parameters, layout) if isinstance(optimizer, TorchOptimizer) else optimizer.start(parameters)


def _single(parameters: Flat) -> None:
    if len(parameters) != 1:
        raise UserError(f"a torch optimizer works on one member at a time, got a stack of {len(parameters)}")


def _rows(flat: Flat, layout: Layout) -> dict[str, Tensor]:
    """The parameters of the single row, in their own shapes; writing to them changes `flat`."""
    return {name: value[0] for name, value in layout.views(flat).items()}


def _settings(made: torch.optim.Optimizer) -> Iterator[tuple[int, str, Any]]:
    """Every setting of every group: the group's place, name, value."""
    for place, group in enumerate(made.param_groups):
        for name, value in sorted(group.items()):
            if name != "params":
                yield place, name, value


def _plain(value: Any) -> str:
    """A setting as a text that is the same in every process."""
    if isinstance(value, Tensor):
        return repr(value.tolist())
    return repr(value) if isinstance(value, (bool, int, float, str, tuple, type(None))) else type(value).__name__


def _memory(made: torch.optim.Optimizer, named: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """All that the optimizer remembers, as tensors (1, ...) on the device; a suffix says what else a value was.

    These are a parameter's own state, and the numbers of the groups: some count their steps there.
    """
    names = {id(value): name for name, value in named.items()}
    found: dict[str, Any] = {}
    for parameter, own in made.state.items():
        if id(parameter) not in names:
            raise UserError(f"{type(made).__name__} keeps state that belongs to no parameter: it cannot be used here")
        found |= {f"{names[id(parameter)]}.{key}": value for key, value in own.items() if value is not None}
    for place, name, value in _settings(made):
        if name not in _FROM_STEP and isinstance(value, (int, float)) and not isinstance(value, bool):
            found[f"group{place}.{name}"] = value
    memory: dict[str, Tensor] = {}
    for name, value in found.items():
        if isinstance(value, Tensor):
            suffix = ":cpu" if value.device != device else ""
            memory[name + suffix] = value.detach()[None].to(device)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            memory[f"{name}:{type(value).__name__}"] = torch.tensor([value], dtype=torch.float64, device=device)
        else:
            raise UserError(
                f"{type(made).__name__} remembers {name!r} as a {type(value).__name__}, and a checkpoint holds tensors "
                "and numbers: this optimizer cannot be used here"
            )
    return memory


def _recall(made: torch.optim.Optimizer, named: dict[str, Tensor], state: State) -> None:
    """Hand the optimizer what `_memory` found."""
    groups = {f"group{place}": group for place, group in enumerate(made.param_groups)}
    for full_name, held in state.items():
        if full_name == "begun":
            continue
        name, _, kind = full_name.partition(":")
        owner, _, key = name.rpartition(".")
        value: Any = held[0]
        if kind == "cpu":
            value = value.cpu()
        elif kind:
            value = {"int": int, "float": float}[kind](value)
        if owner in groups and kind in ("int", "float"):
            groups[owner][key] = value
        else:
            made.state[named[owner]][key] = value


def _set_rates(made: torch.optim.Optimizer, named: dict[str, Tensor], step: Step) -> None:
    """Rates of this step for every group; parameters of other factors get groups of their own, frozen ones none.

    A group of the factory's whose rate is not that of the first one keeps its proportion to it.
    """
    base = dict(made.param_groups[0])
    lr, decay = float(step.lr[0]), float(step.weight_decay[0])
    if decay and "weight_decay" not in base:
        raise UserError(f"`weight_decay` must be 0 with {type(made).__name__}, which has none, got {decay}")
    factors = _factors(named, step)
    for group in list(made.param_groups):
        group["lr"] = _scaled(group["lr"], base["lr"], lr)
        if "weight_decay" in group:
            group["weight_decay"] = _scaled(group["weight_decay"], base["weight_decay"], decay)
        together: dict[tuple[float, float], list[Tensor]] = {}
        for parameter in group["params"]:
            own = factors.get(id(parameter), (1.0, 1.0))
            if own[0] == 0:
                parameter.grad = None  # which every optimizer passes over
            together.setdefault(own if own[0] else (1.0, 1.0), []).append(parameter)
        pieces = [{**group, "params": parameters} for parameters in together.values()]
        for piece, (lr_factor, decay_factor) in zip(pieces, together, strict=True):
            piece["lr"] *= lr_factor
            if decay_factor != 1:
                piece["weight_decay"] = piece.get("weight_decay", 0.0) * decay_factor
        group.update(pieces[0])
        made.param_groups.extend(pieces[1:])


def _factors(named: dict[str, Tensor], step: Step) -> dict[int, tuple[float, float]]:
    """Factors of learning rate and weight decay of each parameter, by its id; empty without parameter groups."""
    if step.scale is None or step.decay_scale is None:
        return {}
    rates, decays = _rows(step.scale, step.layout), _rows(step.decay_scale, step.layout)
    return {
        id(value): (float(rates[name].flatten()[0]), float(decays[name].flatten()[0])) for name, value in named.items()
    }


def _scaled(own: Any, base: Any, now: float) -> float:
    if float(own) == float(base):
        return now
    return float(own) * now / float(base) if base else float(own)
