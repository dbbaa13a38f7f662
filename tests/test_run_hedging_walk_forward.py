"""`task: hedging` with `walk_forward`: the run folder, its page, resume after a kill, the ledger, what is refused."""

import json
import shutil
import signal
from pathlib import Path

import polars as pl
import pytest
import torch
import yaml
from command_line import prices, qfml, start, wait_until
from test_run_hedging import minute_recipe

from qfml.errors import UserError
from qfml.hedging import load_hedger
from qfml.ledger import Ledger
from qfml.report import write_report
from qfml.task import read_task

ROOT = Path(__file__).parents[1]
SMALL = {
    "task": "hedging",
    "name": "small",
    "market": {
        "kind": "bootstrap",
        "source": {"kind": "csv", "path": "prices.csv"},
        "n_steps": 5,
        "block_length": 5,
        "keep_drift": False,
        "window": 4,
        "information": ["log_moneyness", "time_to_horizon", "call_delta", "realised_vol"],
    },
    "book": {"positions": [{"quantity": 1.0, "instrument": {"kind": "european", "strike": 1.0, "expiry": 5 / 252}}]},
    "objective": {"kind": "entropic", "risk_aversion": 10.0},
    "costs": [{"kind": "proportional", "rate": 1e-3}],
    "policy": {"kind": "feed_forward", "hidden": [8], "holding": {"kind": "band", "hedge": ["call_delta"]}},
    "trainer": {
        "max_epochs": 3,
        "batch_size": 64,
        "optimizer": {"kind": "adamw", "lr": 1e-2},
        "checkpoint_seconds": 0.0,
    },
    "seeds": [0, 1],
    "aversions": [5.0, 20.0],
    "steps_per_epoch": 4,
    "n_validation": 128,
    "walk_forward": {
        "split": {"kind": "walk_forward", "train_size": "6M", "test_size": "4M", "expanding": True},
        "start_every": 2,
        "n_bootstrap": 100,
        "ledger": "ledger.jsonl",
    },
}


def write(place, **changes):
    prices().write_csv(place / "prices.csv")
    (place / "config.yaml").write_text(yaml.safe_dump(SMALL | changes, sort_keys=False))


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A finished run."""
    place = tmp_path_factory.mktemp("small")
    write(place)
    done = qfml("run", "config.yaml", "--out", "run", cwd=place)
    assert done.code == 0, done.err
    return place


def test_a_run_writes_what_it_found(small):
    folder, found = small / "run", metrics(small / "run")["walk_forward"]
    assert [(case["aversion"], len(case["policies"])) for case in found["cases"]] == [(5.0, 3), (20.0, 3)]
    n_folds = len(found["folds"])
    assert n_folds > 2
    table = pl.read_parquet(folder / "episodes.parquet")
    held = pl.read_parquet(folder / "paths.parquet")
    n_hedges = 3 + len(found["cases"][0]["baselines"])
    assert len(table) == 2 * n_hedges * found["episodes"]["n"]
    assert len(held) == 5 * len(table)
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert len(log) == n_folds * 4 * 3  # members and epochs
    members = metrics(folder)["training"]["members"]
    assert [(one["fold"], one["seed"]) for one in members[:4]] == [(0, 0), (0, 0), (0, 1), (0, 1)]
    for number in range(n_folds):
        assert (folder / "folds" / str(number) / "manifest.json").is_file()


def test_the_policies_that_were_saved_hold_what_the_tables_say(small, monkeypatch):
    """Read back, and walked along the real prices of a test episode, date by date as in live use."""
    monkeypatch.chdir(small)  # where the prices of its market are
    folder = small / "run"
    held = pl.read_parquet(folder / "paths.parquet").filter(hedge="policy_seed_1", aversion=20.0)
    table = pl.read_parquet(folder / "episodes.parquet").filter(hedge="policy_seed_1", aversion=20.0)
    last = metrics(folder)["walk_forward"]["folds"][-1]["fold"]
    hedger, live = load_hedger(folder / "folds" / str(last)), load_hedger(folder)
    assert torch.equal(hedger.fits[0].parameters, live.fits[0].parameters)
    (place,) = [i for i, one in enumerate(hedger.members) if (one.seed, one.aversion) == (1, 20.0)]
    begun = table.filter(fold=last)["start"][0]
    own = held.filter(start=begun).sort("date")
    closes = prices()
    row = closes["time"].to_list().index(begun.date())
    returns = closes["close"].log().diff()
    before, state = torch.zeros(1), ()
    for date in range(5):
        left = (5 - date) / 252
        vol = (returns[row + date - 3 : row + date + 1].pow(2).mean() * 252) ** 0.5
        moneyness = -torch.tensor(own["spot"][date]).log()
        unit = hedger.market.vol
        d1 = -moneyness / (unit * left**0.5) + 0.5 * unit * left**0.5
        by_hand = [moneyness / (unit * (5 / 252) ** 0.5), (5 - date) / 5, torch.special.ndtr(d1), vol / unit]
        seen = torch.tensor([float(one) for one in by_hand])
        before, state = hedger.hedge(seen, before, date, place, state)
        assert float(before) == pytest.approx(own["held"][date], abs=1e-6)
    assert hedger.policy.feature_names == ("log_moneyness", "time_to_horizon", "call_delta", "realised_vol")


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_run_that_was_stopped_ends_with_the_same_bits(small, number, tmp_path):
    write(tmp_path)
    slow = "import time, qfml.hedging.training as t\nbefore = t.PathFeed.next\n"
    slow += "t.PathFeed.next = lambda self: (time.sleep(0.05), before(self))[1]"
    process = start("run", "config.yaml", "--out", "run", cwd=tmp_path, before=slow)
    wait_until(lambda: any((tmp_path / "run" / "checkpoints").glob("checkpoint-*")))
    process.signal(number)
    assert process.wait().code != 0
    assert not (tmp_path / "run" / "metrics.json").exists()
    done = qfml("resume", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    last = max(int(path.name) for path in (small / "run" / "folds").iterdir())
    names = ("episodes.parquet", "paths.parquet", "log.jsonl", "model/tensors.safetensors", f"folds/{last}/state.json")
    for name in names:
        assert (tmp_path / "run" / name).read_bytes() == (small / "run" / name).read_bytes(), name
    before, after = (metrics(place / "run")["walk_forward"] for place in (small, tmp_path))
    assert before == after


def test_the_ledger_counts_each_configuration_once(tmp_path):
    """Another seed or name is the same trial, a shorter training another one."""
    quick = {"seeds": [0], "aversions": [5.0], "trainer": SMALL["trainer"] | {"max_epochs": 1}}
    longer = quick | {"trainer": SMALL["trainer"] | {"max_epochs": 2}}
    for place, (count, changes) in enumerate(((1, quick), (1, quick | {"seeds": [3], "name": "other"}), (2, longer))):
        write(tmp_path, **changes)
        done = qfml("run", "config.yaml", "--out", f"run{place}", cwd=tmp_path)
        assert done.code == 0, done.err
        assert metrics(tmp_path / f"run{place}")["walk_forward"]["trials"] == count
    page = (tmp_path / "run2" / "report.html").read_text()
    assert "one of 2 configurations that were tried" in page
    entries, damaged = Ledger(tmp_path / "ledger.jsonl").entries()
    assert (len(entries), damaged) == (3, [])
    table = pl.read_parquet(tmp_path / "run2" / "episodes.parquet")
    policy, delta = (table.filter(hedge=name)["pnl"].to_numpy() for name in ("policy", "black_scholes_delta"))
    gained = policy - delta
    assert entries[-1].sharpe == pytest.approx(gained.mean() / gained.std(ddof=1))


def test_the_page_holds_all_its_parts(small):
    page = (small / "run" / "report.html").read_text()
    told = ("Whalley-Wilmott band, realised vol", "Earned, one book sold", "Worst episodes", "Premium asked", "2016")
    assert [text for text in (*told, "Left out") if text not in page] == ["Left out"]
    assert "<details open" in page  # of two aversions, the first
    assert qfml("report", "run", cwd=small).code == 0


def test_a_damaged_folder_says_what_is_missing(small, tmp_path):
    shutil.copytree(small / "run", tmp_path / "run")
    table = pl.read_parquet(tmp_path / "run" / "episodes.parquet")
    table.drop("premium").write_parquet(tmp_path / "run" / "episodes.parquet")
    with pytest.raises(UserError, match="lacks `premium`"):
        write_report(tmp_path / "run")
    (tmp_path / "run" / "episodes.parquet").write_bytes(b"no table")
    with pytest.raises(UserError, match="cannot be read"):
        write_report(tmp_path / "run")
    (tmp_path / "run" / "episodes.parquet").unlink()
    with pytest.raises(UserError, match=r"has no `episodes\.parquet`"):
        write_report(tmp_path / "run")


def test_names_from_a_file_are_text(small, tmp_path):
    shutil.copytree(small / "run", tmp_path / "run")
    path = tmp_path / "run" / "metrics.json"
    found = json.loads(path.read_text())
    found["walk_forward"]["history"]["source"] = found["walk_forward"]["folds"][0]["train_start"] = "<b>wild</b>"
    path.write_text(json.dumps(found))
    assert "<b>wild</b>" not in write_report(tmp_path / "run").read_text()


MODEL = {"kind": "model", "model": {"kind": "black_scholes", "vol": 0.2}, "market": {"spot": 1.0}, "n_steps": 5}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"market": MODEL | {"horizon": 5 / 252}, "policy": "feed_forward"},
            "needs a market of kind bootstrap, got model",
        ),
        ({"judgement": {"n_paths": 1000}}, "`judgement` is of fresh paths"),
        ({"walk_forward": {"start_every": 2}}, "needs `split`"),
        ({"walk_forward": SMALL["walk_forward"] | {"split": {"kind": "purged_kfold"}}}, "walk_forward"),
        ({"walk_forward": SMALL["walk_forward"] | {"start_every": "fortnight"}}, "`start_every` must be"),
        ({"walk_forward": SMALL["walk_forward"] | {"n_bootstrap": 5}}, "100 resamples or more"),
        ({"walk_forward": SMALL["walk_forward"] | {"n_resamples": 500}}, "unknown key `n_resamples`"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prices().write_csv("prices.csv")
    with pytest.raises(UserError) as caught:
        read_task(SMALL | changes)
    assert told in str(caught.value)


def test_a_history_with_a_gap_leaves_no_folder(tmp_path):
    write(tmp_path)
    prices().filter(~pl.int_range(pl.len()).is_between(50, 60)).write_csv(tmp_path / "prices.csv")
    done = qfml("run", "config.yaml", "--out", "run", cwd=tmp_path)
    assert done.code == 2
    assert "gap longer than 10D" in " ".join(done.err.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_recipe_for_a_minute_hedges_the_real_history(tmp_path):
    """Better than no hedge in spread and tail; what it is beside the textbook is for the page to say."""
    path = ROOT / "configs" / "hedging_real.yaml"
    words = minute_recipe(path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    done = qfml(*words, "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    case = metrics(tmp_path / "run")["walk_forward"]["cases"][0]
    policy = case["policies"][0]
    none = next(hedge for hedge in case["baselines"] if hedge["name"] == "none")
    assert policy["std"] < 0.7 * none["std"]
    assert policy["expected_shortfall"]["value"] < none["expected_shortfall"]["value"]
