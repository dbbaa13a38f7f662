"""Every config that comes with the library is accepted by the command that reads it."""

from pathlib import Path

import pytest
import yaml
from command_line import qfml

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
READ_NOTHING = """
import sys
sys.modules["qfml.task.walk_forward"].DataConfig.read = lambda self: sys.exit(7)
sys.modules["qfml.task.surrogate"].make_labels = lambda *_, **__: sys.exit(7)
sys.modules["qfml.task.hedging"].deep_hedge = lambda *_, **__: sys.exit(7)
sys.modules["qfml.hedging.walk_forward"].deep_hedges = lambda *_, **__: sys.exit(7)
for source in sys.modules["qfml.calibration.sources"].SURFACE_SOURCES.values():
    source.read = lambda self: sys.exit(7)
"""


SLOW = {"hedging_heston"}  # its checks make tables of option prices
MARKED = [pytest.param(path, marks=[pytest.mark.slow] * (path.stem in SLOW), id=path.stem) for path in CONFIGS]


@pytest.mark.parametrize("path", MARKED)
def test_a_config_is_accepted_up_to_the_reading_of_its_data(path, tmp_path):
    command = "tune" if "tune" in yaml.safe_load(path.read_text()) else "run"
    done = qfml(command, path, "--out", "out", cwd=tmp_path, before=READ_NOTHING)
    assert (done.code, done.err) == (7, "")


def test_there_are_configs_for_both_commands():
    assert {"tune" in yaml.safe_load(path.read_text()) for path in CONFIGS} == {True, False}
