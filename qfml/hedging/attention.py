"""A policy that looks back: causal attention over the history of what it has seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qfml.errors import ConfigError
from qfml.hedging.policy_base import Policy, State
from qfml.networks.base import ACTIVATIONS, Parameters, affine, check_count, check_hidden, each_position, layer_norm
from qfml.networks.transformer import sinusoids

__all__ = ["Attention"]


@dataclass(frozen=True, kw_only=True)
class Attention(Policy):
    """A pre-norm transformer over the dates so far, each attending to itself and those before.

    h = E x + e + position;  for each layer h = h + attention(norm(h)), then h = h + W' act(W norm(h) + b) + b'; the raw
    outputs are an affine map of norm(h). What it remembers are keys and values of the dates so far, (M, B, T, 2 width)
    of each layer. If it does not see its own holdings, all dates of a path go through it at once.

    Its memory in training grows with the square of the dates, and with `checkpoint` with their power of 3/2: keys and
    values of all dates stay, and a piece that is walked again attends to all of them.

    Args:
        width: units of a date; a multiple of 4 x `heads`.
        heads: attention heads, each of width / heads units.
        layers: layers, each attention and a feed-forward network.
        hidden: units of the feed-forward network.
        activation: of the feed-forward network.
        holding, sees_holdings, truncate, checkpoint, rules, feature_names, n_instruments: as of `Policy`.

    References:
        Vaswani et al. (2017), "Attention Is All You Need", sections 3.1 to 3.5; norms before the maps as in
        `qfml.networks.Transformer`.

    Example:
        >>> policy = Attention(width=8, heads=2, layers=1, hidden=16, feature_names=("log_moneyness", "time_left"))
        >>> drawn = policy.init(2, 3, torch.Generator().manual_seed(0), n_outputs=3)
        >>> policy.forward({name: value[None] for name, value in drawn.items()}, torch.zeros(1, 5, 3, 2)).shape
        torch.Size([1, 5, 3])
    """

    kind: ClassVar[str] = "transformer"
    width: int = 16
    heads: int = 2
    layers: int = 1
    hidden: int = 32
    activation: str = "relu"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "heads", "layers", "hidden"):
            check_count(name, getattr(self, name))
        check_hidden("hidden", (self.hidden,), self.activation, 0.0)
        if self.width % (4 * self.heads):
            nearest = 4 * self.heads * math.ceil(self.width / (4 * self.heads))
            raise ConfigError(
                f"`width` must be a multiple of 4 x `heads` = {4 * self.heads}, got {self.width}: take {nearest}, or "
                "change `heads`"
            )

    def init(
        self, n_features: int, window: int | None, generator: torch.Generator, n_outputs: int = 1
    ) -> dict[str, Tensor]:
        """Parameters of one member; weights as in torch.nn.Linear, queries, keys and values side by side."""
        assert window is not None
        drawn = affine("embed", self.n_inputs(n_features), self.width, generator)
        for i in range(self.layers):
            drawn |= self._norm(f"attention_norm{i}")
            drawn |= affine(f"attention{i}", self.width, 3 * self.width, generator)
            drawn |= affine(f"mix{i}", self.width, self.width, generator)
            drawn |= self._norm(f"norm{i}")
            drawn |= affine(f"inner{i}", self.width, self.hidden, generator)
            drawn |= affine(f"outer{i}", self.hidden, self.width, generator)
        drawn |= self._norm("norm")
        drawn |= affine("head", self.width, self.holding.n_outputs(self.n_instruments), generator)
        return drawn | {"level": torch.zeros(self.n_levels(window, n_outputs))}

    def _norm(self, name: str) -> dict[str, Tensor]:
        return {f"{name}_scale": torch.ones(self.width), f"{name}_shift": torch.zeros(self.width)}

    def state_shapes(self, members: int, paths: int, date: int) -> list[tuple[int, ...]]:
        """Keys and values of each date and layer."""
        return [(members, paths, 1, 2 * self.width)] * (date * self.layers)

    def n_kept(self, state: State) -> int:
        """All: keys and values of later dates come behind them."""
        return len(state)

    def step(
        self, parameters: Parameters, x: Tensor, before: Tensor, date: int, state: State = ()
    ) -> tuple[Tensor, State]:
        """See `Policy.step`."""
        raw, state = self._seen(parameters, self.inputs(x, before)[:, :, None], date, state)
        return self.rule.of(raw[:, :, 0], before, self.hedge(x)), state

    def advance(
        self, parameters: Parameters, x: Tensor, before: Tensor, date: int, state: State
    ) -> tuple[list[Tensor], State]:
        """See `Policy.advance`."""
        if self.sees_holdings:
            return super().advance(parameters, x, before, date, state)
        raw, state = self._seen(parameters, x, date, state)
        found = []
        for place in range(x.shape[2]):
            before = self.rule.of(raw[:, :, place], before, self.hedge(x[:, :, place]))
            found.append(before)
        return found, state

    def _seen(self, parameters: Parameters, inputs: Tensor, date: int, state: State) -> tuple[Tensor, State]:
        """Raw outputs (M, B, T, R) of T dates in a row, the first being `date`, and keys and values with theirs."""
        p, end = parameters, date + inputs.shape[2]

        def normalised(h: Tensor, name: str) -> Tensor:
            return layer_norm(h, p[f"{name}_scale"], p[f"{name}_shift"])

        def mapped(h: Tensor, name: str) -> Tensor:
            return each_position(h, p[f"{name}_weight"], p[f"{name}_bias"])

        after: list[Tensor] = []
        h = mapped(inputs, "embed")
        h = h + sinusoids(end, self.width, h)[date:]
        for i in range(self.layers):
            query, own = mapped(normalised(h, f"attention_norm{i}"), f"attention{i}").split(
                [self.width, 2 * self.width], -1
            )
            after.append(own)
            h = h + mapped(self._mixed(query, torch.cat([*state[i :: self.layers], own], 2)), f"mix{i}")
            inner = ACTIVATIONS[self.activation](mapped(normalised(h, f"norm{i}"), f"inner{i}"))
            h = h + mapped(inner, f"outer{i}")
        h = normalised(h, "norm")
        raw = self.raw(h.flatten(1, 2), p["head_weight"], p["head_bias"]).unflatten(1, h.shape[1:3])
        return raw, (*state, *after)  # piece by piece: a piece that is walked again shares those before it

    def _mixed(self, query: Tensor, joint: Tensor) -> Tensor:
        """Mixed values (M, B, T, W) of the last T dates from their queries and all keys and values (M, B, S, 2W)."""
        length, known = query.shape[2], joint.shape[2]
        query = query.unflatten(-1, (self.heads, -1)).transpose(2, 3)  # (M, B, N, T, W/N)
        key, value = joint.unflatten(-1, (2, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)  # each (M, B, N, S, W/N)
        scale = (self.width // self.heads) ** -0.5
        if length == 1:  # no matrix: products and sums, whose bits do not depend on the stack
            share = torch.softmax((query * key).sum(-1) * scale, dim=-1)
            mixed = (value.transpose(-1, -2).contiguous() * share[..., None, :]).sum(-1)
            return mixed.flatten(-2)[:, :, None]
        # rows are filled up behind the dates until every matrix begins on a cache line, see `networks.base.padded`; the
        # mask keeps them out of what earlier rows read
        query = torch.nn.functional.pad(query, (0, 0, 0, -length % 4))
        key, value = (torch.nn.functional.pad(part, (0, 0, 0, -known % 4)) for part in (key, value))
        later = torch.full((query.shape[-2], key.shape[-2]), -torch.inf, dtype=key.dtype, device=key.device)
        share = torch.softmax(query @ key.transpose(-1, -2) * scale + later.triu(1 + known - length), dim=-1)
        return (share @ value)[..., :length, :].transpose(2, 3).flatten(-2)
