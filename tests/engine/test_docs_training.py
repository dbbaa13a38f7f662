"""docs/training.md: its tables name what there is, its search is one that `qfml tune` takes."""

import re
from pathlib import Path

import pytest

import qfml
from qfml import config
from qfml.engine import OPTIMIZERS, SAMPLERS, SCHEDULES
from qfml.engine.fit import Fit
from qfml.engine.monitor import KNOWN
from qfml.engine.tracking import TRACKERS
from qfml.losses import LOSSES
from qfml.networks import NETWORKS
from qfml.tuning import Search

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "training.md"
TEXT = PAGE.read_text(encoding="utf-8")
TABLES = {
    "samplers": SAMPLERS,
    "losses": LOSSES,
    "optimizers": OPTIMIZERS,
    "schedules": SCHEDULES,
    "trackers": TRACKERS,
    "networks": NETWORKS,
}


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_name_all_there_is_and_nothing_else(name):
    table = TEXT.split(f"<!-- {name} -->\n")[1].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in table]
    named = {name: kind for row in cells for name, kind in zip(row[0].split(", "), row[1].split(", "), strict=True)}
    assert named == {f"`{cls.__name__}`": kind for kind, cls in TABLES[name].items()}


def test_every_status_callback_and_metric_is_named():
    statuses = re.search(r"status: (.*?)\n        history", Fit.__doc__, re.DOTALL)[1]
    shown = re.findall(r"^\| (\w+) \|", section("Control"), re.MULTILINE)
    assert set(re.findall(r'"(\w+)"', statuses)) == set(shown)
    hooks = [name for name in vars(qfml.Callback) if not name.startswith("_")]
    assert [name for name in hooks if f"`{name}`" not in section("Control")] == []
    assert [name for name in KNOWN if name not in section("Control")] == []


def test_the_search_shown_is_one_that_the_command_takes(tmp_path):
    shown = tmp_path / "shown.yaml"
    shown.write_text(re.search(r"```yaml\n(.*?)```", TEXT, re.DOTALL)[1])
    search = Search.of(config.read_yaml(ROOT / "configs" / "tune_sp500.yaml") | config.read_yaml(shown))
    assert sorted(search.spaces) == sorted(
        ["network.hidden", "network.dropout", "trainer.optimizer.lr", "trainer.batch_size"]
    )
    assert search.plan.halving.rungs(search.first.trainer.max_epochs) == [5, 15, 45]


def section(name):
    return TEXT.split(f"\n## {name}\n")[1].split("\n## ")[0]
