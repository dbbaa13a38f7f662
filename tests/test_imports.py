"""What importing a package loads, touches and leaves alone; each in a fresh interpreter."""

import subprocess
import sys

import pytest

# refuses every socket before it is opened, lookups included
NO_NETWORK = """
import sys
def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request"):
        raise RuntimeError(f"network at import: {event} {args}")
sys.addaudithook(refuse)
"""

EVERY_MODULE = """
import importlib, pkgutil
for package in (pricers, qfml):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_after(statement: str) -> set[str]:
    return set(run(f"{NO_NETWORK}\n{statement}\nprint(*sys.modules, sep='\\n')").split())


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("pricers", {"qfml", "pandas", "polars", "onnx", "matplotlib", "sklearn", "pydantic", "yaml"}),
        (
            "qfml",
            {"ray", "fastapi", "tensorboard", "torch.utils.tensorboard", "wandb", "mlflow", "quantstats", "yfinance"}
            | {"onnx", "onnxscript", "onnxruntime"}  # the exporter's, loaded where it is asked for
            | {"skfolio", "moto", "boto3", "pytest", "hypothesis", "beartype", "lightning", "skorch"},
        ),
    ],
)
def test_import_loads_no_stranger(package, forbidden):
    assert loaded_after(f"import {package}") & forbidden == set()


def test_no_module_reaches_for_the_network_when_imported():
    assert "qfml.config" in loaded_after(f"import pricers, qfml\n{EVERY_MODULE}")


def test_the_network_check_would_notice():
    code = f"{NO_NETWORK}\nimport urllib.request\nurllib.request.urlopen('http://localhost:9')"
    with pytest.raises(AssertionError, match="network at import"):
        run(code)


def test_imports_leave_the_global_state_alone():
    """Seeds, default dtype, threads, environment, warning filters and signal handlers are the caller's."""
    code = f"""
import os, random, signal, warnings
import numpy as np, torch
# what dependencies change is not ours: rich draws from `random` when it is imported
import arch, matplotlib.pyplot, pandas, polars, rich.progress, scipy.stats, sklearn.base, typer
warnings.simplefilter("error", append=True)
def state():
    return (
        random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes(),
        torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads(), dict(os.environ),
        np.geterr(), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), os.getcwd(),
        torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled(),
    )
before = state()
import pricers, qfml
{EVERY_MODULE}
changed = [i for i, (old, new) in enumerate(zip(before, state())) if old != new]
assert not changed, changed
"""
    run(code)
