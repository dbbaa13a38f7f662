"""Numbers that say how a training goes: sizes of gradients, weights and steps, and what the units do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from qfml.engine.stack import Flat, Layout
from qfml.engine.watching.layers import Listener, Reading
from qfml.errors import UserError
from qfml.networks import Dropout, Network

SATURATED = 0.99  # a unit of tanh beyond it passes on less than 2 % of its gradient


def update_ratio(before: Flat, after: Flat) -> Tensor:
    """Length of each member's step over the length of its parameters, (M,).

    ratio = |after - before| / |before|. About 1e-3 is usual for Adam at its customary learning rates; 1e-6 says that a
    member hardly moves, 1e-1 that it forgets in each step what it knew.

    Args:
        before: parameters before the step, (M, P).
        after: parameters after it.

    Example:
        >>> update_ratio(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 4.5]])).tolist()
        [0.1...]
    """
    length = torch.linalg.vector_norm(before, dim=1)
    return torch.linalg.vector_norm(after - before, dim=1) / length.clamp_min(torch.finfo(before.dtype).tiny)


def norms_by_parameter(flat: Flat, layout: Layout) -> dict[str, Tensor]:
    """Euclidean norm (M,) of each parameter's part of the rows `flat`."""
    return {name: torch.linalg.vector_norm(part.flatten(1), dim=1) for name, part in layout.views(flat).items()}


class Units:
    """The values of a layer's units over the rows of a batch, added up reading by reading.

    NaN stands for a row that is not there. A unit is dead where it is 0 on all rows, or, of an activation that
    saturates, beyond 0.99 on all of them: it passes on no gradient, or next to none.
    """

    def __init__(self) -> None:
        self.sums: Tensor | None = None  # (M, 4): values, their sum, the sum of their squares, zeros
        self.silent = self.stuck = torch.empty(0)  # (M, U)

    def add(self, values: Tensor, saturates: bool = False) -> None:
        """Count `values` (M, ..., U)."""
        values = values.detach().reshape(len(values), -1, values.shape[-1])
        there = ~torch.isnan(values)
        known = values.double().masked_fill(~there, 0)
        zero = there & (values == 0)
        sums = torch.stack([there.sum((1, 2)), known.sum((1, 2)), (known**2).sum((1, 2)), zero.sum((1, 2))], dim=1)
        silent = (zero | ~there).all(1)
        stuck = ((known.abs() > SATURATED) | ~there).all(1) if saturates else torch.zeros_like(silent)
        if self.sums is None:
            self.sums, self.silent, self.stuck = sums, silent, stuck
        else:
            self.sums, self.silent, self.stuck = self.sums + sums, self.silent & silent, self.stuck & stuck

    def statistics(self) -> dict[str, Tensor]:
        """`mean`, `std`, `zeros` (their share) and `dead_units` (their number), each (M,)."""
        assert self.sums is not None
        count, total, squares, zeros = self.sums.unbind(1)
        mean = total / count
        variance = (squares / count - mean**2).clamp_min(0)
        dead = (self.silent | self.stuck).sum(1).double()
        return {"mean": mean, "std": variance.sqrt(), "zeros": zeros / count, "dead_units": dead}


def activation_statistics(
    network: Network,
    parameters: Mapping[str, Tensor],
    parts: Sequence[tuple[Tensor, Dropout | None]],
    there: Sequence[Tensor],
) -> dict[str, Tensor]:
    """Statistics (M,) of what each layer hands on, from one more forward pass.

    Args:
        network: the specification.
        parameters: each (M, ...).
        parts: the micro-batches: features (M, b, ...) and dropout.
        there: for each micro-batch which rows count, (M, b): those that only fill up a batch do not.

    Returns:
        "activation_mean/LAYER", "activation_std/LAYER", "zeros/LAYER" and "dead_units/LAYER", a layer being named by
        its weight; of the network's output, "output", only the first two.
    """
    units: dict[tuple[str, int], Units] = {}
    output, members = Units(), len(there[0])

    def on_reading(reading: Reading) -> None:
        if reading.layer is not None:
            values = reading.values if len(reading.values) == members else reading.values[None]  # a module of one
            units.setdefault((reading.layer, values.shape[-1]), Units()).add(values, reading.saturates)

    for (x, dropout), counts in zip(parts, there, strict=True):
        # rows that do not count enter as NaN: what is computed from them is NaN too, wherever it ends up
        marked = x.masked_fill(~counts.view(*counts.shape, *(1,) * (x.ndim - 2)), torch.nan)
        with torch.no_grad(), Listener(marked, parameters, on_reading):
            out = network.forward(parameters, marked, dropout)
        output.add(out.float().flatten(2)[..., None] if out.ndim > 2 else out.float()[..., None])
    if not units:
        raise UserError(
            f"`watch` has 'activations', but no layer of the network {network.kind!r} can be told from outside: it has "
            "no hidden layer, or computes it in a way of its own; leave 'activations' out"
        )
    found: dict[str, Tensor] = {}
    taken: set[str] = set()
    for (layer, width), own in units.items():
        name = f"{layer}.{width}" if layer in taken else layer  # read at two widths: as a whole and in parts
        taken.add(layer)
        for kind, value in own.statistics().items():
            found[f"{kind if kind in ('zeros', 'dead_units') else f'activation_{kind}'}/{name}"] = value
    statistics = output.statistics()
    return found | {f"activation_{kind}/output": statistics[kind] for kind in ("mean", "std")}
