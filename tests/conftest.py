"""Options and fixtures that every test shares."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two OpenMP threads beside any other process can be 50 times slower

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="torch device the tests run on: cpu or cuda")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))
