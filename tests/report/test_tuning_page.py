"""The page of a search says what the search found, and nothing in it becomes markup."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from hostile_text import HOSTILE, Elements

from qfml.errors import UserError
from qfml.report import write_tuning_report

LR, HIDDEN = "trainer.optimizer.lr", "network.hidden"
CONFIG = "task: walk_forward\ntune: {n_trials: 12}\n"


def found_by_a_search(n_trials: int = 12) -> dict[str, Any]:
    """Metrics by the schema; every third trial was dropped, the lowest objective is trial 5's."""
    rng = np.random.default_rng(3)
    trials = []
    for place in range(n_trials):
        pruned = place % 3 == 2
        curve = np.minimum.accumulate(1 + 0.2 * rng.random(5 if pruned else 20) - (0.3 if place == 4 else 0)).tolist()
        params = {LR: float(10 ** rng.uniform(-4, -2)), HIDDEN: ["[16]", "[32, 32]"][place % 2]}
        trials.append(
            {"place": place, "number": place, "state": "pruned" if pruned else "complete", "value": curve[-1]}
            | {"params": params, "curve": curve, "epochs": [len(curve)] * 10, "sharpe_ratio": 0.1 * place}
        )
    fold = {"train": 900, "judged": 120, "from": "2003-01-02", "to": "2003-07-01", "purged": 5, "embargoed": 0}
    return {
        "task": "tune",
        "created": "2024-05-17T14:03:22+00:00",
        "versions": {"python": "3.11.9", "qfml": "0.1.0", "optuna": "4.5.0"},
        "provenance": {"platform": "Linux", "threads": 1, "seeds": [0, 1]}
        | {"git": {"revision": "ab" * 20, "dirty": False}},
        "winner": {"place": 4, "value": trials[4]["value"], "params": trials[4]["params"]},
        "significance": {
            "n_trials": 17,
            "n_periods": 504,
            "trial_variance": 0.0021,
            "sharpe_ratio": 1.234,
            "probabilistic_sharpe_ratio": 0.93,
            "deflated_sharpe_ratio": 0.617,
            "pbo": 0.284,
            "pbo_blocks": 16,
            "pbo_missing": None,
        },
        "importance": {LR: 0.81, HIDDEN: 0.19},
        "trials": trials,
        "objective": {"name": "val_loss", "mode": "min"},
        "space": {
            LR: {"kind": "log_uniform", "low": 1e-4, "high": 1e-2},
            HIDDEN: {"kind": "choice", "values": [[16], [32, 32]]},
        },
        "search": {"n_trials": n_trials, "halving": {"first": 5, "factor": 3}, "timeout": None},
        "n_planned": n_trials,
        "data": {"source": "arch: S&P 500", "n_samples": 4000, "data_hash": "c0ffee12"},
        "folds": [fold | {"looking_back": 0}, fold | {"looking_back": 1092}],
        "config_hash": "5f2a8c0d",
        "backtest": {"verdict": "The network adds nothing.", "deflated_sharpe_ratio": 0.311},
        "seconds": {"search": 12.3, "total": 15.0},
    }  # fmt: skip


@pytest.fixture
def page(tmp_path: Path, read_page: Callable[[Path], Any]) -> Callable[..., Any]:
    def write(found: dict[str, Any] | None = None, config: str = CONFIG) -> Any:
        (tmp_path / "metrics.json").write_text(json.dumps(found_by_a_search() if found is None else found))
        (tmp_path / "config.yaml").write_text(config)
        return read_page(write_tuning_report(tmp_path))

    return write


def test_winner_luck_importance_and_counts_are_told(page: Callable[..., Any]) -> None:
    text = page().text
    assert "Trial 5 of 12 won" in text
    assert "Deflated Sharpe 0.617 17 trials in the ledger" in text
    assert "PBO 0.284 probability of overfitting" in text
    assert "Deflated Sharpe 0.311 of its backtest" in text
    assert "Trials of this search 12 Trials in the ledger, all on these data 17" in text
    assert "12 trials: 8 trained to the end, 4 dropped by successive halving. All of them count as tried." in text
    assert f"{LR} 81.0% {HIDDEN} 19.0%" in text
    assert "1,092 training rows lie after their block and look back into it" in text
    assert f"Config hash 5f2a8c0d Data hash c0ffee12 Seeds 0, 1 Git revision {'ab' * 20} (nothing changed)" in text


def test_every_trial_has_a_row_from_the_best_and_a_line(page: Callable[..., Any]) -> None:
    found, made = found_by_a_search(), page()
    ended = sorted((t for t in found["trials"] if t["state"] == "complete"), key=lambda t: t["value"])
    dropped = sorted((t for t in found["trials"] if t["state"] == "pruned"), key=lambda t: t["value"])
    rows = [f" {t['place'] + 1} {'to the end' if t in ended else 'dropped'} " for t in [*ended, *dropped]]
    places = [made.text.index(row, made.text.index("Epochs")) for row in rows]
    assert places == sorted(places)
    lines = made.figures["trials"]["data"]
    assert len(lines) == 12
    drawn = sorted((tuple(line["y"]) for line in lines), key=lambda y: (len(y), y))
    assert drawn == sorted((tuple(t["curve"]) for t in found["trials"]), key=lambda y: (len(y), y))
    assert lines[-1]["name"] == "Winner"
    assert {line["name"]: line.get("showlegend") for line in reversed(lines)}.keys() == {
        "Winner",
        "To the end",
        "Dropped",
    }
    assert sum(line["showlegend"] for line in lines) == 3
    for figure in made.figures.values():
        go.Figure(data=figure["data"], layout=figure["layout"])  # raises on a property plotly does not know


def test_a_panel_a_parameter_has_a_dot_a_trial_at_its_place(page: Callable[..., Any]) -> None:
    found, body = found_by_a_search(), page().body
    assert body.count("<svg") == 2
    assert body.count("<circle") == 2 * 12
    assert body.index(f"objective by {LR}") < body.index(f"objective by {HIDDEN}")  # the most important first
    panel = body[body.index(f"objective by {LR}") : body.index(f"objective by {HIDDEN}")]
    for trial in found["trials"]:
        share = (np.log(trial["params"][LR]) - np.log(1e-4)) / np.log(1e2)
        assert f'cx="{48 + share * 200:.1f}"' in panel


def test_what_was_not_done_is_said(page: Callable[..., Any]) -> None:
    found = found_by_a_search()
    found |= {"importance": None, "n_planned": 32, "search": found["search"] | {"halving": None}}
    found["trials"] = [trial for trial in found["trials"] if trial["state"] == "complete"]
    found["significance"] |= {"pbo": None, "pbo_missing": "too few periods"}
    for fold in found["folds"]:
        fold["looking_back"] = 0
    text = page(found).text
    assert "8 trials, all trained to the end; there was no successive halving. The time limit ended the search" in text
    assert "before the other 24." in text
    assert "Importance is not told: it needs at least four trials" in text
    assert "No probability of overfitting: too few periods." in text
    assert "look back" not in text


def hostile(value: Any) -> Any:
    """Every string turned hostile; the names of parameters too, which come from the config."""
    if isinstance(value, dict):
        return {HOSTILE + key if key in (LR, HIDDEN) else key: hostile(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


def test_hostile_names_parameters_and_paths_stay_text(tmp_path: Path, read_page: Callable[[Path], Any]) -> None:
    folder = tmp_path / "<img src=x onerror=alert(3)>"
    folder.mkdir()
    found = hostile(found_by_a_search())
    for trial, plain in zip(found["trials"], found_by_a_search()["trials"]):
        trial["state"] = plain["state"]
        trial["params"] = dict(zip(trial["params"], (plain["params"][LR], HOSTILE)))
    found["space"][HOSTILE + LR]["kind"] = "log_uniform"
    found["versions"][HOSTILE] = found["seconds"][HOSTILE] = HOSTILE
    (folder / "metrics.json").write_text(json.dumps(found))
    (folder / "config.yaml").write_text(f"name: {HOSTILE}\n")
    made = read_page(write_tuning_report(folder))
    elements = Elements()
    elements.feed(made.markup)
    assert elements.started.count("script") == 4  # two of data, plotly, ours
    assert elements.handlers == []
    assert not {"img", "b"} & set(elements.started)
    assert made.text.count(" ".join(HOSTILE.split())) > 30
    assert "<img src=x onerror=alert(3)>" in made.text
    title = made.figures["trials"]["layout"]["yaxis"]["title"]["text"]
    assert "<" not in title  # plotly reads a small part of HTML


def test_a_search_that_is_not_finished_or_of_another_version_is_refused(
    page: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"no finished search in .*qfml tune"):
        write_tuning_report(tmp_path)
    found = found_by_a_search()
    del found["folds"], found["n_planned"]
    with pytest.raises(UserError, match=r"lacks n_planned, folds"):
        page(found)
