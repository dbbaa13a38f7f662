"""A policy that remembers: gated recurrent units, or long short-term memory, over the dates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qfml.errors import ConfigError
from qfml.hedging.policy_base import Policy, State
from qfml.networks.base import Parameters, affine, check_count, linear, uniform
from qfml.networks.recurrent import gru_cell, layer_parameters, lstm_cell

__all__ = ["Recurrent"]

GATES = {"gru": 3, "lstm": 4}


@dataclass(frozen=True, kw_only=True)
class Recurrent(Policy):
    """A recurrent cell, the same at every date, of the features of the dates so far and of the holdings before.

    What it remembers are the hidden states of its layers, and the memories of an LSTM, zero before the first date.

    Args:
        cell: gru or lstm; see `qfml.networks.GRU` and `LSTM` for the formulas.
        hidden: units of each layer.
        layers: layers, each reading the hidden states of the one below.
        holding, sees_holdings, truncate, checkpoint, rules, feature_names, n_instruments: as of `Policy`.

    References:
        Buehler, Gonon, Teichmann and Wood (2019), "Deep Hedging", section 4.3, for recurrence through the holdings;
        the cells as cited in `qfml.networks`.

    Example:
        >>> policy = Recurrent(hidden=4, feature_names=("log_moneyness", "time_left"))
        >>> drawn = policy.init(2, 3, torch.Generator().manual_seed(0), n_outputs=3)
        >>> policy.forward({name: value[None] for name, value in drawn.items()}, torch.zeros(1, 5, 3, 2)).shape
        torch.Size([1, 5, 3])
    """

    kind: ClassVar[str] = "recurrent"
    cell: str = "gru"
    hidden: int = 32
    layers: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cell not in GATES:
            raise ConfigError(f"`cell` must be one of {', '.join(GATES)}, got {self.cell!r}")
        check_count("hidden", self.hidden)
        check_count("layers", self.layers)

    def init(
        self, n_features: int, window: int | None, generator: torch.Generator, n_outputs: int = 1
    ) -> dict[str, Tensor]:
        """Parameters of one member, as of `qfml.networks.GRU` and `LSTM`, whose forget gates begin open."""
        assert window is not None
        drawn: dict[str, Tensor] = {}
        for i in range(self.layers):
            inputs = self.hidden if i else self.n_inputs(n_features)
            drawn |= layer_parameters(i, inputs, self.hidden, GATES[self.cell], generator)
            if self.cell == "gru":
                drawn[f"candidate_bias{i}"] = uniform((self.hidden,), self.hidden, generator)
            else:
                drawn[f"bias{i}"][self.hidden : 2 * self.hidden] += 1.0
        drawn |= affine("head", self.hidden, self.holding.n_outputs(self.n_instruments), generator)
        return drawn | {"level": torch.zeros(self.n_levels(window, n_outputs))}

    def state_shapes(self, members: int, paths: int, date: int) -> list[tuple[int, ...]]:
        """Of each layer the hidden state and, of an LSTM, its memory behind it."""
        return [(members, paths, self.hidden)] * (self.layers * (2 if self.cell == "lstm" else 1))

    def step(
        self, parameters: Parameters, x: Tensor, before: Tensor, date: int, state: State = ()
    ) -> tuple[Tensor, State]:
        """See `Policy.step`."""
        out, after = self.inputs(x, before), []
        for i in range(self.layers):
            recurrent = parameters[f"recurrent_weight{i}"]
            now = linear(out, parameters[f"input_weight{i}"], parameters[f"bias{i}"]).to(recurrent.dtype)
            if self.cell == "gru":
                own = (gru_cell(now, state[i], recurrent, parameters[f"candidate_bias{i}"]),)
            else:
                own = lstm_cell(now, state[2 * i], state[2 * i + 1], recurrent)
            out = own[0]
            after += own
        raw = self.raw(out, parameters["head_weight"], parameters["head_bias"])
        return self.rule.of(raw, before, self.hedge(x)), tuple(after)
