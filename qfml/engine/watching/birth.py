"""Where a NaN was born: the first place on the way from a member's rows to its gradient that is not finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from qfml.engine.differential import outputs_of
from qfml.engine.feed import Batch
from qfml.engine.inputs import ROWS_AT_A_TIME, Inputs
from qfml.engine.stack import Flat, Layout
from qfml.engine.watching.layers import Listener, Origin
from qfml.losses import Additive, Loss, Panel
from qfml.networks import Network

NAMED = 5  # rows that a sentence names


def one_member(batch: Batch, member: int) -> Batch:
    """The batch of one member of a stack, as a stack of one."""
    own = slice(member, member + 1)
    panel = None if batch.panel is None else Panel(batch.panel.period[own], batch.panel.first[own])
    return Batch._make([*(None if part is None else part[own] for part in batch[:-1]), panel])


def birthplace(
    forward: Callable[[Mapping[str, Tensor], Tensor], Tensor],
    loss: Loss,
    layout: Layout,
    parameters: Flat,
    batch: Batch,
    gradient: Flat,
) -> str:
    """Where the gradient of one member became infinite or NaN.

    The places are looked at in the order of the computation: features, label and weight of the rows, parameters, what
    each layer puts out, the loss, the gradient of each parameter.

    Args:
        forward: outputs from parameters and features, as in the step.
        loss: the loss of the step.
        layout: where each parameter lies.
        parameters: the member's, before the step, (1, P).
        batch: its rows.
        gradient: what was found, (1, P).

    Returns:
        A clause such as "feature 3 of row 17 is nan".
    """
    return (
        _in_features(batch)
        or _in_rows("label", batch.y, batch)
        or _in_rows("weight", batch.weight, batch)
        or _in_parameters(layout, parameters)
        or _in_forward(forward, loss, layout, parameters, batch)
        or _in_gradient(layout, gradient)
    )


def validation_fault(
    network: Network, loss: Loss, inputs: Inputs, layout: Layout, parameters: Flat, member: int, val: np.ndarray
) -> str:
    """Why the validation loss of a member is not finite, where its gradients were.

    Args:
        network: the specification.
        loss: the loss of the training.
        inputs: the data that the rows are of.
        layout: where each parameter lies.
        parameters: those that were judged, (1, P).
        member: its place among those that `inputs` is gathered for.
        val: its validation rows.

    Returns:
        A clause that begins with "validation: ".
    """
    for ids in torch.from_numpy(np.asarray(val, dtype=np.int64)).split(ROWS_AT_A_TIME):
        rows = ids[None].to(inputs.y.device)
        x, y = inputs.gather_x(rows, torch.tensor([member], device=rows.device)), inputs.y[rows]
        weight = torch.ones_like(rows, dtype=x.dtype)
        batch = Batch(x, y, weight, weight, weight.sum(1), ids[None])
        found = _in_features(batch) or _in_rows("label", y, batch) or _in_parameters(layout, parameters)
        if found is None and loss.additive:
            found = _in_forward(lambda views, x: network.forward(views, x).float(), loss, layout, parameters, batch)
        if found is not None:
            return f"validation: {found}"
    return f"validation: the loss of its {len(val)} rows is not finite, though features, labels and parameters are"


def _in_features(batch: Batch) -> str | None:
    bad = ~torch.isfinite(batch.x[0])
    if not bool(bad.any()):
        return None
    place = bad.nonzero()[0].tolist()
    window = "" if len(place) == 2 else f", {batch.x.shape[2] - 1 - place[1]} rows before the end of its window"
    value = float(batch.x[0][tuple(place)])
    others = _and_others(bad.flatten(1).any(1), batch, place[0])
    return f"feature {place[-1]} of {_row(batch, place[0])} is {value}{window}{others}"


def _in_rows(name: str, values: Tensor, batch: Batch) -> str | None:
    bad = ~torch.isfinite(values[0]).flatten(1) if values.ndim > 2 else ~torch.isfinite(values[0])[:, None]
    if not bool(bad.any()):
        return None
    row, column = bad.nonzero()[0].tolist()
    value = float(values[0].flatten(1)[row, column] if values.ndim > 2 else values[0, row])
    return f"the {name} of {_row(batch, row)} is {value}{_and_others(bad.any(1), batch, row)}"


def _in_parameters(layout: Layout, parameters: Flat) -> str | None:
    for name, value in layout.views(parameters).items():
        bad = int((~torch.isfinite(value)).sum())
        if bad:
            return f"the parameter `{name}` was not finite before the step, in {bad} of its {value.numel()} elements"
    return None


def _in_forward(
    forward: Callable[[Mapping[str, Tensor], Tensor], Tensor],
    loss: Loss,
    layout: Layout,
    parameters: Flat,
    batch: Batch,
) -> str | None:
    """The first result of the forward pass that is not finite, or the loss."""
    found: list[str] = []

    def on_result(name: str, origin: Origin, value: Tensor, operands: list[tuple[Tensor, Origin | None]]) -> None:
        if found or bool(torch.isfinite(value).all()):
            return
        constants = [one for one, known in operands if known is None]
        if any(not bool(torch.isfinite(one).all()) for one in constants if one.is_floating_point()):
            return  # a mask of infinities is meant
        entered = max((float(one.abs().max()) for one, known in operands if known is not None), default=0.0)
        what = f"`{name}` of" if origin.layer is None else f"`{name}` at or after the layer `{origin.layer}`, of"
        found.append(f"the network's {what} values up to {entered:.3g}, is not finite")

    views = layout.views(parameters)
    with torch.no_grad():
        with Listener(batch.x, views, on_result=on_result):
            output = forward(views, batch.x)
        bad = ~torch.isfinite(output[0].flatten(1) if output.ndim > 2 else output[0][:, None]).all(1)
        if found or bool(bad.any()):
            where = f", first on {_row(batch, int(bad.nonzero()[0]))}" if bool(bad.any()) else ""
            others = _and_others(bad, batch, int(bad.nonzero()[0])) if bool(bad.any()) else ""
            return f"{found[0] if found else 'the output of the network is not finite'}{where}{others}"
        if isinstance(loss, Additive):
            output = outputs_of(loss, lambda x: forward(views, x), batch.x) if loss.differential else output
            rows = loss.rows(output, batch.y)
            bad = ~torch.isfinite(rows[0])
            if bool(bad.any()):
                row = int(bad.nonzero()[0])
                known = f"output {output[0, row].tolist()} and label {batch.y[0, row].tolist()}"
                return f"the loss of {_row(batch, row)} is {float(rows[0, row])}, at {known}"
        else:
            value = float(loss(output, batch.y, batch.weight, batch.panel)[0])
            if not torch.isfinite(torch.tensor(value)):
                low, high = float(output.min()), float(output.max())
                return f"the loss is {value}, of finite outputs between {low:.6g} and {high:.6g}"
    return None


def _in_gradient(layout: Layout, gradient: Flat) -> str:
    """The parameter nearest to the output whose gradient is not finite: the backward pass comes to it first."""
    views = layout.views(gradient)
    bad = [name for name, value in views.items() if not bool(torch.isfinite(value).all())]
    if bad:
        before = f" ({len(bad)} parameters in all)" if len(bad) > 1 else ""
        return f"the gradient of `{bad[-1]}`{before} is not finite, though outputs and loss are"
    name = max(views, key=lambda one: float(views[one].abs().max()))
    largest = float(views[name].abs().max())
    return f"the norm of the gradient overflows: its largest element, {largest:.3g}, is of `{name}`"


def _row(batch: Batch, place: int) -> str:
    return f"place {place} of the batch" if batch.rows is None else f"row {int(batch.rows[0, place])}"


def _and_others(bad: Tensor, batch: Batch, first: int) -> str:
    """The other rows of which the same is true."""
    places = [place for place in bad.nonzero()[:, 0].tolist() if place != first]
    ids = places if batch.rows is None else [int(batch.rows[0, place]) for place in places]
    named = {first if batch.rows is None else int(batch.rows[0, first])}
    others = sorted(set(ids) - named)
    if not others:
        return ""
    more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
    return f" (so are those of rows {', '.join(map(str, others[:NAMED]))}{more})"
