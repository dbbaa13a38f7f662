"""Options, fixtures and run-time checks that every test shares."""

import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two OpenMP threads beside any other process can be 50 times slower
os.environ.setdefault("MPLBACKEND", "Agg")  # a test never opens a window

import shape_checks

if os.environ.get("JAXTYPING_DISABLE", "0").lower() in ("0", "", "false"):
    # must come before the first import of the library; tests of torch.compile run with JAXTYPING_DISABLE=1
    shape_checks.install()

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile(
    "deterministic",
    derandomize=True,  # the same examples on every machine: a red test stays red
    deadline=None,  # a busy machine is no failure
    suppress_health_check=[hypothesis.HealthCheck.too_slow],  # it measures wall time, see `deadline`
    print_blob=True,
)
hypothesis.settings.load_profile("deterministic")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="torch device the tests run on: cpu or cuda")
    parser.addoption("--dtype", default="float32", choices=["float32", "float64"], help="floating point type of inputs")
    parser.addoption("--slow", action="store_true", help="run the long proofs too")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out `slow` tests without `--slow` and `gpu` tests without `--device cuda`; `-m` decides alone."""
    if config.option.markexpr:
        return
    left_out = set() if config.option.slow else {"slow"}
    if not config.option.device.startswith("cuda"):
        left_out.add("gpu")
    kept = [item for item in items if not left_out.intersection(mark.name for mark in item.iter_markers())]
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return getattr(torch, request.config.getoption("--dtype"))


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Fail the test that leaves another number of threads behind: it would change the bits of those after it."""
    yield
    left = torch.get_num_threads()
    torch.set_num_threads(1)
    assert left == 1, f"the test left torch with {left} threads"
