"""What a training spends its time on, epoch by epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch

PARTS: tuple[str, ...] = ("data", "copy", "forward", "backward", "step", "validation", "checkpoint", "other")
MOST_EVENTS = 4096  # of a GPU that are kept before they are added up

# what the time goes into, and what would make it less
_ADVICE = {
    "data": ("waiting for data", "keep it in memory, or read it with more workers and further ahead"),
    "copy": ("copying batches to the device", "pin the loader's memory, or keep the data on the device"),
    "computing": ("computing outputs and gradients", "the rest hardly matters; a smaller network is faster, or a GPU"),
    "step": ("optimizer steps, with guard and clipping", "larger batches need fewer of them"),
    "validation": ("validation", "validate on fewer rows, or on fewer metrics"),
    "checkpoint": ("writing checkpoints", "raise `checkpoint_seconds`, or write to a faster disk"),
    "other": ("callbacks and the ends of epochs", "log less often, or give callbacks less to do"),
}


AFTER = "after the last epoch"  # in place of a verdict


def verdict(seconds: Mapping[str, float]) -> str:
    """One line on what most of the time goes into, and what to do about it.

    Args:
        seconds: by part, as in `Callback.split`.

    Example:
        >>> verdict({"data": 6.2, "forward": 2.0, "backward": 1.0, "step": 0.8})
        '62 % of the time is spent waiting for data: keep it in memory, or read it with more workers and further ahead'
    """
    total = sum(seconds.values())
    if total <= 0:
        return "no time was spent"
    grouped = {name: seconds.get(name, 0.0) for name in _ADVICE if name != "computing"}
    grouped["computing"] = seconds.get("forward", 0.0) + seconds.get("backward", 0.0)
    most = max(grouped, key=lambda name: grouped[name])
    what, advice = _ADVICE[most]
    verb = "on " if most != "data" else ""
    return f"{100 * grouped[most] / total:.0f} % of the time is spent {verb}{what}: {advice}"


class Stopwatch:
    """Seconds by part; a part that runs within another stops that one's clock.

    On a GPU the times are those of events in its queue, not of the calls that fill the queue: a part lasts as long as
    the GPU is busy with it or waits for it.

    Args:
        device: where the training runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self._parts = ["other"]
        self._events: list[tuple[str, Any]] = []
        self._last = time.perf_counter()
        self._mark("other")

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, with its time counted as that of `part`."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self._mark(self._parts[-1], part)
            self._parts.append(part)
            try:
                return call(*args, **kwargs)
            finally:
                self._mark(self._parts.pop(), self._parts[-1])

        return run

    def take(self) -> dict[str, float]:
        """The seconds since the last call, by part."""
        self._mark(self._parts[-1])
        self._add_up()
        taken, self.seconds = self.seconds, dict.fromkeys(PARTS, 0.0)
        return taken

    def _mark(self, ends: str, begins: str | None = None) -> None:
        """The part `ends` ends here, and `begins` (by default the same again) begins."""
        if self.on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append((begins or ends, event))
            if len(self._events) > MOST_EVENTS:
                self._add_up()
        else:
            now = time.perf_counter()
            self.seconds[ends] += now - self._last
            self._last = now

    def _add_up(self) -> None:
        if not self._events:
            return
        self._events[-1][1].synchronize()
        for (part, event), (_, following) in pairwise(self._events):
            self.seconds[part] += event.elapsed_time(following) / 1000
        self._events = self._events[-1:]
