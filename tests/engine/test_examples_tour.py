"""Every part of the tour runs as a user would run it, and says what its text promises."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from qfml.engine import OPTIMIZERS, SAMPLERS
from qfml.networks import NETWORKS

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "examples" / "engine_tour.py"


def tour(*words):
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=600)


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def printed():
    done = tour()
    assert done.returncode == 0, done.stderr
    return dict(re.findall(r"--- (\w+): .*?\n(.*?)\(\d+\.\d s\)", done.stdout, re.DOTALL))


def test_every_part_says_something(printed):
    first = ["stack", "streams", "sampling", "step", "losses", "twin", "optimizers", "networks", "modules", "control"]
    then = ["watching", "tracking", "checkpoints", "finding", "overfit", "scikit_learn", "search"]
    assert list(printed) == first + then
    assert all(text.strip() for text in printed.values())


def test_a_member_alone_and_a_resumed_run_have_the_same_bits(printed):
    assert "number 5 alone is the same to the last bit: True" in printed["stack"]
    assert "two worker processes change no bit: True" in printed["streams"]
    assert "a script would exit with 143" in printed["checkpoints"]
    assert "resumed, the same bits as uninterrupted: True" in printed["checkpoints"]


@pytest.mark.parametrize(
    ("part", "registry"), [("optimizers", OPTIMIZERS), ("sampling", SAMPLERS), ("networks", NETWORKS)]
)
def test_every_registered_class_is_shown_and_trains(printed, part, registry):
    losses = dict(re.findall(r"^(\w+) .*(\d\.\d{4})", printed[part], re.MULTILINE))
    assert [kind for kind in registry if kind not in losses] == []
    assert all(0 < float(loss) < 1 for loss in losses.values())


def test_what_needs_a_gpu_is_refused_with_the_reason(printed):
    assert printed["step"].count("needs a CUDA device") == 2


def test_slopes_help(printed):
    errors = dict(re.findall(r"(\w+): root mean square error of the value (\S+)", printed["twin"]))
    assert float(errors["twin"]) < 0.8 * float(errors["mse"])


def test_a_module_that_cannot_be_stacked_says_so(printed):
    assert "Recurrent is trained member by member, not as a stack" in printed["modules"]
    assert "Gated is trained" not in printed["modules"]


def test_members_are_stopped_and_replaced(printed):
    ends = re.findall(r"member (\d): (\w+) after (\d+) epochs", printed["control"])
    assert [int(member) for member, _, _ in ends] == [0, 1, 2, 3, 4, 5]
    assert any(status == "stopped" and epochs == "2" for _, status, epochs in ends)


def test_watching_tells_of_the_birth_of_a_nan_and_of_the_time(printed):
    text = printed["watching"]
    assert re.search(r"member 1 is lost, step 2, epoch 1: .* is not finite, first on row \d+", text)
    assert "its neighbour ended as finished" in text
    assert re.search(r"\d+ % of the time is spent ", text)


def test_the_search_drops_trials_and_deflates_the_winner(printed):
    dropped, n_trials = map(int, re.search(r"dropped at a rung: (\d+) of (\d+)", printed["search"]).groups())
    assert 0 < dropped < n_trials == 8
    assert "deflated Sharpe ratio among 8 trials" in printed["search"]


def test_an_unknown_part_is_refused_by_name():
    done = tour("--only", "stack,loses")
    assert done.returncode == 2
    assert "no part 'loses'" in done.stderr
