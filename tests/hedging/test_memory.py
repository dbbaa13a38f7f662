"""Memory of a walk along many dates: with `checkpoint` it grows with their square root."""

import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qfml.hedging.policies import FeedForward, Recurrent

PATHS, NAMES = 64, ("x", "time_left")
POLICIES = {"feed-forward": FeedForward(hidden=(64, 64)), "gru": Recurrent(hidden=64)}


class Peak(TorchDispatchMode):
    """Most bytes of storages, made since it was entered, that were alive at once."""

    def __init__(self):
        super().__init__()
        self.alive = self.most = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for value in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(value, torch.Tensor) and value.untyped_storage() not in self.known:
                storage = value.untyped_storage()
                self.known.add(storage)
                self.alive += storage.nbytes()
                weakref.finalize(storage, self.freed, storage.nbytes())
        self.most = max(self.most, self.alive)
        return found

    def freed(self, size):
        self.alive -= size


def peak(policy, n_dates):
    """Of one gradient in all parameters."""
    policy = replace(policy, feature_names=NAMES)
    drawn = policy.init(len(NAMES), n_dates + 1, torch.Generator().manual_seed(0), n_dates)
    parameters = {name: value[None].requires_grad_() for name, value in drawn.items() if name != "level"}
    parameters["level"] = torch.zeros(1, 0)
    leaves = [value for value in parameters.values() if value.requires_grad]
    x = torch.randn(1, PATHS, n_dates + 1, len(NAMES), generator=torch.Generator().manual_seed(1))
    with Peak() as memory:
        torch.autograd.grad(policy.forward(parameters, x).square().mean(), leaves)
    return memory.most


@pytest.mark.parametrize("name", POLICIES)
def test_memory_grows_with_the_root_of_the_dates(name):
    """Nine times the dates: three times the memory, and nine times without; holdings of all dates are kept anyway."""
    policy = POLICIES[name]
    few, many = (peak(replace(policy, checkpoint=True), n_dates) for n_dates in (36, 324))
    assert many < 4.2 * few
    whole = peak(policy, 36)
    assert whole > 2.5 * few
    assert peak(policy, 108) > 2.8 * whole


def test_the_peak_is_that_of_tensors_that_live_at_once():
    with Peak() as memory:
        for _ in range(3):
            torch.zeros(1000) + 1.0
        kept = torch.zeros(500)
    assert memory.most in (8000, 10_000)  # two of a thousand numbers at a time
    del kept
