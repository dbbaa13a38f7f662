"""The dropout bytes of a stack: drawn per member from its own addressed stream, many steps at a time."""

from __future__ import annotations

import numpy as np
import torch

from qfml.engine.clock import Counters
from qfml.engine.streams import stream
from qfml.networks import Dropout

_BYTES = 2**20  # drawn at a time for one member


class DropoutBytes:
    """Random bytes (M, B, U) of each member's present step, addressed by its seed, epoch and step."""

    def __init__(self, units: int, clock: Counters, device: torch.device) -> None:
        self.units, self.device = units, device
        if units:
            self._steps = max(1, _BYTES // (units * clock.width))
            self._drawn = torch.zeros(len(clock.seeds), self._steps, clock.width, units, dtype=torch.uint8)
            self._drawn_of: list[tuple[int, int] | None] = [None] * len(clock.seeds)

    def next(self, clock: Counters) -> Dropout | None:
        """The bytes of the step that the clock stands at; None without dropout."""
        if not self.units:
            return None
        chunk, place = np.divmod(clock.step, self._steps)
        for i, (seed, epoch, part) in enumerate(zip(clock.seeds, clock.epoch.tolist(), chunk.tolist())):
            if self._drawn_of[i] != (epoch, part):
                self._drawn[i].random_(generator=stream(*seed, "dropout", epoch, part))
                self._drawn_of[i] = (epoch, part)
        own = self._drawn[torch.arange(len(self._drawn)), torch.from_numpy(place)]
        return Dropout(own.to(self.device))
