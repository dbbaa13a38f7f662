"""What the validation rows say, in chunks of a fixed size: a member's has the same bits alone and in a stack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from qfml.data.dataset import TimeDataset
from qfml.engine.differential import outputs_of
from qfml.engine.inputs import ROWS_AT_A_TIME, Inputs, pad_rows, panel_of
from qfml.engine.monitor import measured
from qfml.engine.stack import Layout
from qfml.losses import Additive, Loss
from qfml.networks import Network


@torch.no_grad()
def validated(
    network: Network,
    loss: Loss,
    ds: TimeDataset,
    inputs: Inputs,
    layout: Layout,
    parameters: Tensor,
    rows: Mapping[int, np.ndarray],
    metrics: Sequence[str],
) -> dict[int, dict[str, float]]:
    """`val_loss` and the metrics of each member of `rows` on its own rows, which stand in the order of the loss."""

    def of(members: list[int]) -> list[dict[str, float]]:
        index = torch.tensor(members, device=ds.y.device)
        views = layout.views(parameters[index])
        table, weight = pad_rows([rows[member] for member in members], ROWS_AT_A_TIME)
        table, weight = table.to(ds.y.device), weight.to(ds.y.device)
        if ds.weight is not None:
            weight = weight * ds.weight[table]
        chunks = table.split(ROWS_AT_A_TIME, dim=1)
        forward = partial(network.forward, views)
        outputs = [outputs_of(loss, forward, inputs.gather_x(chunk, index)) for chunk in chunks]
        if isinstance(loss, Additive):
            losses = _means(loss, outputs, [inputs.y[chunk] for chunk in chunks], weight).tolist()
        else:
            own = rows[members[0]]
            output, seen = torch.cat(outputs, dim=1)[:, : len(own)], table[:, : len(own)]
            losses = loss(output, ds.y[seen], weight[:, : len(own)], panel_of(ds, [own])).tolist()
        records = [{"val_loss": value} for value in losses]
        if metrics:
            joined = torch.cat(outputs, dim=1)
            predicted = loss.prediction(joined[..., 0] if loss.differential else joined).double().cpu().numpy()
            labels = ds.y.double().cpu().numpy()
            for record, member, prediction in zip(records, members, predicted, strict=True):
                record |= measured(metrics, labels[rows[member]], prediction[: len(rows[member])], loss)
        return records

    if not rows:
        return {}
    if loss.additive:
        return dict(zip(rows, of(list(rows)), strict=True))
    return {member: of([member])[0] for member in rows}


def _means(loss: Additive, outputs: list[Tensor], labels: list[Tensor], weight: Tensor) -> Tensor:
    """Weighted means over the chunks, summed in double precision."""
    total = weight_sum = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
    for output, y, part in zip(outputs, labels, weight.split(ROWS_AT_A_TIME, dim=1), strict=True):
        chunk_weight = part.sum(1).double()
        total = total + loss(output, y, part).double() * chunk_weight
        weight_sum = weight_sum + chunk_weight
    return total / weight_sum
