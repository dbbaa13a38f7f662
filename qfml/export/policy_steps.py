"""One step of each kind of policy, every row at a date of its own: what a graph of ONNX holds.

What a policy remembers is one row of numbers, of the same length at every date, in place of the tuples of
`Policy.step`. A transformer's holds a place for the keys and values of each date, of which those of dates to come are
not looked at.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qfml.errors import UserError
from qfml.hedging import Attention, FeedForward, Policy, Recurrent, TradingRules
from qfml.hedging.policy_base import State
from qfml.networks.base import ACTIVATIONS, Parameters, layer_norm, linear
from qfml.networks.transformer import sinusoids

__all__ = ["decided", "next_memory", "state_of", "step", "width_of_memory"]

UNDECIDED = 1e-4  # of a lot: so near to where two lots are equally near rounding decides


def width_of_memory(policy: Policy, n_steps: int) -> int:
    """Numbers that a policy of `n_steps` trading dates remembers of a path.

    Raises:
        UserError: a policy that is none of ours, whose step may depend on the date in a way of its own.
    """
    if not isinstance(policy, (FeedForward, Recurrent, Attention)):
        raise UserError(
            f"a policy of kind {policy.kind!r} cannot be exported, those of kind "
            f"{', '.join(cls.kind for cls in (FeedForward, Recurrent, Attention))} can: serve it with `Hedger.hedge`"
        )
    return sum(shape[-1] for shape in policy.state_shapes(1, 1, n_steps - 1))


def state_of(policy: Policy, memory: Tensor, date: int) -> State:
    """What `Policy.step` remembers before a date, of rows (N, S) of memory."""
    shapes = policy.state_shapes(1, len(memory), date)
    widths = [shape[-1] for shape in shapes]
    return tuple(part.reshape(shape) for part, shape in zip(memory[:, : sum(widths)].split(widths, -1), shapes))


def next_memory(state: State, memory: Tensor) -> Tensor:
    """Rows of memory (N, S) with the state (of one member) in their first places, as far as there are any."""
    joint = torch.cat([part[0].flatten(1) for part in state], -1)[:, : memory.shape[1]]
    return torch.cat([joint, memory[:, joint.shape[1] :]], -1)


def step(
    policy: Policy, parameters: Parameters, x: Tensor, before: Tensor, date: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """Holdings (N, K) and memory (N, S) of one member, each row at its own date.

    Args:
        policy: without trading rules.
        parameters: of the member, each (1, ...).
        x: features (N, F).
        before: units held until now (N, K).
        date: number of the trading date of each row (N,), int64.
        memory: (N, S).
    """
    if isinstance(policy, Attention):
        return _attention_step(policy, parameters, x, before, date, memory)
    if isinstance(policy, FeedForward) and policy.per_date:  # each row is a member of its own
        own = {name: value[0][date][:, None] for name, value in parameters.items()}
        return policy.step(own, x[:, None], before[:, None], 0)[0][:, 0], memory
    widths = [shape[-1] for shape in policy.state_shapes(1, 1, 0)]
    state = tuple(part[None] for part in memory.split(widths, -1)) if widths else ()
    held, after = policy.step(parameters, x[None], before[None], 0, state)
    return held[0], torch.cat(after, -1)[0] if widths else memory


def _attention_step(
    policy: Attention, parameters: Parameters, x: Tensor, before: Tensor, date: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """`Attention.step` over places for all dates, those from a row's own date on being covered."""
    p, width, heads, layers = parameters, policy.width, policy.heads, policy.layers
    places = memory.shape[1] // (2 * width * layers)
    kept = memory.unflatten(1, (places, layers, 2 * width))
    past = torch.arange(places)[None] < date[:, None]  # (N, P)
    open_to = torch.cat([past, torch.ones_like(date[:, None], dtype=torch.bool)], 1)

    def normalised(h: Tensor, name: str) -> Tensor:
        return layer_norm(h[None], p[f"{name}_scale"], p[f"{name}_shift"])[0]

    def mapped(h: Tensor, name: str) -> Tensor:
        return linear(h[None], p[f"{name}_weight"], p[f"{name}_bias"])[0]

    own_layers: list[Tensor] = []
    h = mapped(policy.inputs(x, before), "embed") + sinusoids(places + 1, width, x)[date]
    for i in range(layers):
        query, own = mapped(normalised(h, f"attention_norm{i}"), f"attention{i}").split([width, 2 * width], -1)
        own_layers.append(own)
        joint = torch.cat([torch.where(past[..., None], kept[:, :, i], 0.0), own[:, None]], 1)
        key, value = joint.unflatten(-1, (2, heads, -1)).unbind(2)  # each (N, P + 1, H, W / H)
        score = (query.unflatten(-1, (heads, -1))[:, None] * key).sum(-1) * (width // heads) ** -0.5
        share = torch.softmax(torch.where(open_to[..., None], score, -torch.inf), dim=1)
        h = h + mapped((share[..., None] * value).sum(1).flatten(1), f"mix{i}")
        h = h + mapped(ACTIVATIONS[policy.activation](mapped(normalised(h, f"norm{i}"), f"inner{i}")), f"outer{i}")
    raw = mapped(normalised(h, "norm"), "head")
    now = torch.arange(places)[None] == date[:, None]
    after = torch.where(now[..., None, None], torch.stack(own_layers, 1)[:, None], kept)
    return policy.rule.of(raw, before, policy.hedge(x)), after.flatten(1)


def decided(rules: TradingRules, wish: Tensor) -> Tensor:
    """Rows (N,) of wishes (N, K) of which no number is so near to the middle of two lots that rounding decides."""
    found = torch.ones(len(wish), dtype=torch.bool)
    for place, lot in enumerate(rules.lots(wish.shape[-1])):
        if lot is not None:
            lots = wish[:, place].double() / lot
            found &= ((lots - lots.floor()) - 0.5).abs() > UNDECIDED
    return found
