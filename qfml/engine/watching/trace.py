"""A trace of some steps, by torch's profiler."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from qfml.engine.watching.settings import Profile
from qfml.errors import UserError


class Tracer:
    """Runs the profiler around the steps that were chosen, and writes the trace."""

    def __init__(self, profile: Profile, device: torch.device) -> None:
        self.profile, self.device, self.n_steps = profile, device, 0
        path = Path(profile.path)
        path.parent.mkdir(parents=True, exist_ok=True)  # here, and not after the steps
        if path.is_dir():
            raise UserError(f"`path` of a profile must name a file such as trace.json, and {path} is a folder")
        self._profiler: torch.profiler.profile | None = None

    def traced(self, step: Callable[[], Any]) -> Callable[[], Any]:
        """`step`, traced when its turn comes."""

        def run() -> Any:
            self.n_steps += 1
            if self.n_steps == self.profile.first:
                self._begin()
            try:
                result = step()
            except BaseException:
                self._write()  # what there is; and a process has one profiler, which the next training may want
                raise
            if self.n_steps == self.profile.last:
                self._write()
            return result

        return run

    def end(self) -> None:
        """Training is over: write what there is."""
        self._write()
        if self.n_steps < self.profile.first:
            warnings.warn(
                f"no trace was written to {self.profile.path}: the training had {self.n_steps} steps, and the first to "
                f"be traced is step {self.profile.first}",
                UserWarning,
                stacklevel=2,
            )

    def _begin(self) -> None:
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(activities=kinds, record_shapes=True)
        self._profiler.start()

    def _write(self) -> None:
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return
        profiler.stop()
        profiler.export_chrome_trace(self.profile.path)
