"""The dropout bytes of a stack: drawn per member from its own addressed stream, many steps at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from qfml.engine.clock import Counters
from qfml.engine.streams import stream
from qfml.networks import Dropout, Network, dropout_threshold

_BYTES = 2**20  # drawn at a time for one member


class DropoutBytes:
    """Random bytes (M, B, U) of each member's present step, addressed by its seed, epoch and step.

    Args:
        layers: the network that runs for all members; its layers name its own probability.
        networks: of the members; of one architecture, but each with a probability of its own.
        clock: where the members stand.
        device: where the bytes are wanted.
    """

    def __init__(self, layers: Network, networks: Sequence[Network], clock: Counters, device: torch.device) -> None:
        self.units, self.device = layers.dropout_units if networks else 0, device
        self._thresholds = None
        if self.units:
            own = [getattr(network, "dropout", 0.0) for network in networks]
            if set(own) != {getattr(layers, "dropout", 0.0)}:  # it may have stopped, and others of one mind be left
                self._thresholds = torch.tensor([dropout_threshold(p) for p in own], dtype=torch.uint8, device=device)
            self._steps = max(1, _BYTES // (self.units * clock.width))
            wanted = min(self._steps, int(clock.steps_per_epoch.max())) * clock.width * self.units
            self._words = torch.zeros(len(networks), wanted // 8, dtype=torch.int64)  # rows come in sixteens
            self._drawn = self._words.view(torch.uint8).view(-1, clock.width, self.units)
            self._drawn_of: list[tuple[int, int] | None] = [None] * len(networks)

    def next(self, clock: Counters) -> Dropout | None:
        """The bytes of the step that the clock stands at; None without dropout."""
        if not self.units:
            return None
        chunk, place = np.divmod(clock.step, self._steps)
        for i, (seed, epoch, part) in enumerate(zip(clock.seeds, clock.epoch.tolist(), chunk.tolist())):
            if self._drawn_of[i] != (epoch, part):
                # eight bytes a draw; of a stream only what comes first is wanted, whatever the other members need
                self._words[i].random_(-(2**63), None, generator=stream(*seed, "dropout", epoch, part))
                self._drawn_of[i] = (epoch, part)
        first = np.arange(len(place)) * (len(self._drawn) // len(place))
        own = self._drawn.index_select(0, torch.from_numpy(first + place))
        return Dropout(own.to(self.device), self._thresholds)
