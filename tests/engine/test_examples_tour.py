"""Every part of the tour runs as a user would run it, and says what its text promises."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "examples" / "engine_tour.py"


def tour(*words):
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=300)


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def printed():
    done = tour()
    assert done.returncode == 0, done.stderr
    return dict(re.findall(r"--- (\w+): .*?\n(.*?)\(\d", done.stdout, re.DOTALL))


def test_every_part_says_something(printed):
    assert list(printed) == [
        "stack",
        "step",
        "losses",
        "optimizers",
        "control",
        "checkpoints",
        "search",
        "overfit",
        "scikit_learn",
    ]
    assert all(text.strip() for text in printed.values())


def test_a_member_alone_and_a_resumed_run_have_the_same_bits(printed):
    assert "number 5 alone is the same to the last bit: True" in printed["stack"]
    assert "resumed at its end, same bits: True" in printed["checkpoints"]


def test_members_are_stopped_and_replaced(printed):
    ends = re.findall(r"member (\d): (\w+) after (\d+) epochs", printed["control"])
    assert [int(member) for member, _, _ in ends] == [0, 1, 2, 3, 4, 5]
    assert any(status == "stopped" and epochs == "2" for _, status, epochs in ends)


def test_an_unknown_part_is_refused_by_name():
    done = tour("--only", "stack,loses")
    assert done.returncode == 2
    assert "no part 'loses'" in done.stderr
