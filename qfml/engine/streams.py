"""Addressed random streams: a stream is named by what it is for, never by what was drawn before it."""

from __future__ import annotations

import hashlib

import torch


def stream(*address: int | str) -> torch.Generator:
    """A CPU generator seeded by its address, e.g. `stream(seed, "shuffle", epoch)`.

    Drawn on the CPU also for a GPU, so that a member sees the same rows and the same initial weights on both.

    Example:
        >>> float(torch.rand(1, generator=stream(0, "init"))) == float(torch.rand(1, generator=stream(0, "init")))
        True
    """
    digest = hashlib.blake2b(repr(address).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))
