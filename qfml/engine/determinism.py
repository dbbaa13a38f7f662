"""Deterministic algorithms on a GPU, for the time of a training."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from qfml.errors import UserError

_WORKSPACES = (":4096:8", ":16:8")


@contextmanager
def deterministic(wanted: bool, device: torch.device) -> Iterator[None]:
    """Let torch choose deterministic algorithms only, and leave its settings as they were.

    On a CPU nothing has to be changed: training is deterministic there in any case. On CUDA an operation that has no
    deterministic algorithm raises torch's RuntimeError, which names it.

    Args:
        wanted: whether to do anything.
        device: where the training runs.

    Raises:
        UserError: cuBLAS was not given a fixed workspace, without which its sums differ from run to run.
    """
    if not wanted or device.type != "cuda":
        yield
        return
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    if workspace not in _WORKSPACES:
        raise UserError(
            "`deterministic` on CUDA needs the environment variable CUBLAS_WORKSPACE_CONFIG, which cuBLAS reads when "
            f"CUDA is first used, to be {' or '.join(_WORKSPACES)}, got {workspace!r}: start Python with "
            "CUBLAS_WORKSPACE_CONFIG=:4096:8, or set `deterministic` to False"
        )
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn_before = cudnn.benchmark, cudnn.deterministic
    try:
        torch.use_deterministic_algorithms(True)
        cudnn.benchmark, cudnn.deterministic = False, True
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.benchmark, cudnn.deterministic = cudnn_before
