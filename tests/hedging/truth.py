"""The dynamic program of `benchmarks/hedging_truth.py`, for tests that hold policies against it."""

import importlib.util
import sys
from pathlib import Path

_FILE = Path(__file__).parents[2] / "benchmarks" / "hedging_truth.py"
_SPEC = importlib.util.spec_from_file_location("hedging_truth", _FILE)
assert _SPEC is not None
assert _SPEC.loader is not None
hedging_truth = importlib.util.module_from_spec(_SPEC)
sys.modules["hedging_truth"] = hedging_truth  # its dataclasses look their module up
_SPEC.loader.exec_module(hedging_truth)
