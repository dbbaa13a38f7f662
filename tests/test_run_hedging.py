"""`task: hedging` from the command line: training, judgement, page, resume and what is refused of a small one."""

import itertools
import json
import math
import shlex
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
import yaml
from command_line import qfml, start, wait_until

import pricers as pr
from qfml import config
from qfml.errors import CheckpointError, ConfigError, UserError
from qfml.export import load_exported
from qfml.hedging import Book, Entropic, ModelMarket, Proportional
from qfml.hedging.judgement import JudgementSettings, judge
from qfml.hedging.saved import load_hedger, save_hedger
from qfml.report.hedging_settings import settings_text
from qfml.task import read_task

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("hedging_*.yaml"))
FRESH = [path for path in CONFIGS if "walk_forward" not in yaml.safe_load(path.read_text())]  # judged on fresh paths
DAY = 1 / 365
SMALL = {
    "task": "hedging",
    "name": "small",
    "market": {
        "kind": "model",
        "model": {"kind": "black_scholes", "vol": 0.2},
        "market": {"spot": 1.0},
        "n_steps": 4,
        "horizon": 4 * DAY,
        "information": ["log_moneyness", "time_to_horizon", "call_delta"],
    },
    "book": {"positions": [{"quantity": 1.0, "instrument": {"kind": "european", "strike": 1.0, "expiry": 4 * DAY}}]},
    "objective": {"kind": "entropic", "risk_aversion": 10.0},
    "costs": [{"kind": "proportional", "rate": 1e-3}],
    "policy": {"kind": "feed_forward", "hidden": [8], "holding": {"kind": "band", "hedge": ["call_delta"]}},
    "trainer": {
        "max_epochs": 3,
        "batch_size": 256,
        "optimizer": {"kind": "adamw", "lr": 1e-2},
        "checkpoint_seconds": 0.0,
    },
    "seeds": [0, 1],
    "aversions": [1.0, 10.0],
    "steps_per_epoch": 4,
    "n_validation": 256,
    "judgement": {"n_paths": 2000, "stress": {"wild": {"model": {"kind": "black_scholes", "vol": 0.5}}}},
}
SMALL_TAIL = {"kind": "expected_shortfall", "tail": 1e-3}


def write(place, **changes):
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
    found, folder = metrics(small / "run"), small / "run"
    cases = found["judgement"]["cases"]
    assert [(case["aversion"], len(case["policies"])) for case in cases] == [(1.0, 2), (10.0, 2)]
    names = [hedge["name"] for hedge in cases[0]["baselines"]]
    assert names == ["none", "black_scholes_delta", "leland", "whalley_wilmott"]
    assert [each["name"] for each in found["judgement"]["stress"]] == ["wild"]
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert {(row["member"], row["epoch"]) for row in log} == set(itertools.product(range(4), (1, 2, 3)))
    for name in ("config.yaml", "judgement.json", "judgement.safetensors", "report.html", "model/manifest.json"):
        assert (folder / name).is_file(), name


def test_the_figures_are_those_of_the_policies_that_were_saved(small):
    """Once more by hand: fresh paths of the same address, the formula of the risk, quantiles by sorting."""
    found = metrics(small / "run")["judgement"]
    hedger = load_hedger(small / "run")
    pnl = safetensors.numpy.load_file(small / "run" / "judgement.safetensors")["pnl"].astype(np.float64)
    assert pnl.shape == (6, 2000)  # two seeds of the first case, four baselines
    own = next(row for row, member in enumerate(hedger.members) if (member.seed, member.aversion) == (0, 1.0))
    from pricers.noise import address

    paths = hedger.paths(2000, address(1, "judgement"))
    made = hedger.gains(paths)
    np.testing.assert_allclose(made.pnl[own].numpy(), pnl[0], atol=1e-7)
    hedge = found["cases"][0]["policies"][0]
    weight = np.exp(-pnl[0])
    assert math.isclose(hedge["price"]["value"], math.log(weight.mean()), abs_tol=1e-7)
    assert math.isclose(hedge["price"]["std_error"], weight.std(ddof=1) / weight.mean() / 2000**0.5, rel_tol=1e-4)
    assert math.isclose(hedge["mean"], pnl[0].mean(), abs_tol=1e-7)
    assert math.isclose(hedge["expected_shortfall"]["value"], -np.sort(pnl[0])[:100].mean(), abs_tol=1e-6)
    assert math.isclose(hedge["quantiles"]["0.05"], np.quantile(pnl[0], 0.05), abs_tol=1e-6)
    assert math.isclose(hedge["cost"]["value"], float(made.cost[own].double().mean()), rel_tol=1e-5)
    assert math.isclose(hedge["turnover"], 1e3 * hedge["cost"]["value"], rel_tol=1e-4)  # at ten basis points


def test_differences_are_of_paired_paths(small):
    """The bootstrap over paths, policy and baseline resampled together, gives the same error."""
    case = metrics(small / "run")["judgement"]["cases"][0]
    pnl = safetensors.numpy.load_file(small / "run" / "judgement.safetensors")["pnl"].astype(np.float64)
    own = case["policies"][0]["against"]["black_scholes_delta"]
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, 2000, (400, 2000))
    risk = [np.log(np.exp(-pnl[row][chosen]).mean(1)) for row in (0, 3)]
    assert math.isclose(own["std_error"], (risk[0] - risk[1]).std(), rel_tol=0.15)
    assert own["low"] < own["difference"] < own["high"]
    assert math.isclose(own["high"] - own["low"], 2 * 1.96 * own["std_error"], rel_tol=1e-3)


def test_the_page_holds_all_its_parts(small):
    page = (small / "run" / "report.html").read_text()
    told = ("Whalley-Wilmott band", "Price by risk aversion", "wild", "European", "today&#x27;s money", "Left out")
    assert [text for text in told if text not in page] == ["Left out"]  # every textbook hedge has a formula here
    assert qfml("report", "run", cwd=small).code == 0


def test_trading_rules_are_told_where_there_are_some():
    policy = {
        "kind": "feed_forward",
        "hidden": [8, 8],
        "rules": {"min_holding": None, "max_holding": None, "lot": None},
    }
    assert settings_text(policy) == "feed forward (hidden 8-8)"
    policy["rules"] |= {"min_holding": 0.0, "lot": 0.1}
    assert settings_text(policy) == "feed forward (hidden 8-8, rules min holding 0.0, lot 0.1)"


def test_names_from_a_file_are_text_in_charts_too(small, tmp_path):
    """Plotly reads titles as markup: what a column or a stress is called must not become a link."""

    from qfml.report import write_report

    shutil.copytree(small / "run", tmp_path / "run")
    path = tmp_path / "run" / "metrics.json"
    found = json.loads(path.read_text())
    found["judgement"]["paths"]["instruments"] = found["judgement"]["surface"]["instruments"] = ["<a href='x'>spot</a>"]
    found["judgement"]["stress"][0]["name"] = "<b>wild</b>"
    path.write_text(json.dumps(found))
    page = write_report(tmp_path / "run").read_text()
    figures = page.split('id="figures">')[1].split("</script>")[0]
    assert "href" not in json.dumps(json.loads(figures)).replace("&lt;a href", "")
    assert "<b>wild</b>" not in page
    assert "<a href='x'>" not in page


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
    for name in ("judgement.safetensors", "judgement.json", "log.jsonl", "model/tensors.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (small / "run" / name).read_bytes(), name


EUROPEAN = {"kind": "european", "strike": 1.0, "expiry": 4 * DAY}
RECORDED = {"kind": "recorded", "array": [[1.0, 1.1, 1.2]] * 32, "times": [0.0, 2 * DAY, 4 * DAY]}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"market": SMALL["market"] | {"horizon": 0.1}}, "horizon of the book is not on the grid"),
        ({"market": SMALL["market"] | {"information": ["log_moneynes"]}}, "did you mean 'log_moneyness'"),
        ({"book": {"positions": [{"quantity": 0.0, "instrument": EUROPEAN}]}}, "positions.0.quantity"),
        ({"objective": {"kind": "entropic", "risk_aversion": 0.0}}, "risk_aversion"),
        ({"objective": {"kind": "quadratic"}}, "the objective `quadratic` has none"),
        ({"aversions": [1.0, -1.0]}, "must be positive"),
        ({"aversions": [1.0, 1.0]}, "`aversions` must hold different numbers"),
        ({"cost_levels": [2000.0]}, "100 %"),
        ({"costs": [{"kind": "proportional", "rate": 1.5}]}, "rate"),
        ({"policy": SMALL["policy"] | {"holding": {"kind": "band", "hedge": ["vol"]}}}, "`policy`: `hedge`"),
        ({"policy": {"kind": "recurrent", "cell": "rnn"}}, "`cell` must be one of gru, lstm"),
        ({"policy": {"kind": "transformer", "width": 12}}, "take 16"),
        ({"rules": {"lot": 0.0}}, "`lot` must be above 0"),
        ({"rules": {"lot": [1.0, 2.0]}}, "one for each of 1 instrument"),
        ({"rules": {"min_holding": 0.2, "max_holding": 0.4, "lot": 0.5}}, "no multiple of `lot`"),
        ({"rules": {"lots": 1.0}}, "unknown key `lots` (did you mean"),
        ({"trainer": SMALL["trainer"] | {"batch_size": 100}}, "a multiple of 16"),
        ({"trainer": SMALL["trainer"] | {"metrics": ["mse"]}}, "`trainer`: `metrics` compare predictions"),
        ({"trainer": SMALL["trainer"] | {"sampler": {"kind": "sequential"}}}, "`trainer`: `sampler`"),
        (
            {"objective": SMALL_TAIL, "aversions": None, "n_validation": 1024, "exact": True},
            "`trainer`: `batch_size` must be 1000 or more, for a tail of 0.001",
        ),
        ({"steps_per_epoch": 0}, "`steps_per_epoch`"),
        ({"baselines": [{"kind": "minimum_variance_delta"}], "seed": 3}, "unknown key `seed`"),
        ({"judgement": {"n_paths": 10}}, "`n_paths` must be 100 or more"),
        ({"judgement": {"stress": {"x": {"n_steps": 5}}}}, "`judgement`: `stress.x`: trading dates"),
        ({"judgement": {"stress": {"x": {"information": ["call_delta"]}}}}, "`stress.x`: features"),
        ({"judgement": {"stress": {"x": {"vol": 0.3}}}}, "`stress.x`"),
        ({"market": RECORDED, "policy": "feed_forward"}, "recorded paths that were trained on are not fresh"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, told):
    with pytest.raises(UserError) as caught:
        read_task(SMALL | changes)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "policy",
    [
        {"kind": "recurrent", "cell": "lstm", "hidden": 4, "truncate": 2},
        {"kind": "transformer", "width": 8, "hidden": 8, "checkpoint": True},
    ],
    ids=lambda policy: policy["kind"],
)
def test_a_run_of_another_policy_in_lots_is_judged_and_saved_in_lots(policy, tmp_path):
    rules = {"min_holding": 0.0, "max_holding": 1.0, "lot": 0.25}
    write(tmp_path, policy=policy, rules=rules, seeds=[0], aversions=[10.0], judgement={"n_paths": 500})
    done = qfml("run", "config.yaml", "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    told = metrics(tmp_path / "run")["training"]["policy"]
    assert (told["kind"], told["rules"]) == (policy["kind"], rules)
    hedger = load_hedger(tmp_path / "run")
    held = hedger.holdings(hedger.paths(64, seed=1))
    assert torch.equal(held, (4 * held).round() / 4)
    surface = safetensors.numpy.load_file(tmp_path / "run" / "judgement.safetensors")["surface_delta"]
    assert np.nanmax(surface) <= 1.0


def test_a_baseline_without_a_formula_is_refused_before_the_training():
    asian = {"kind": "asian", "strike": 1.0, "times": [2 * DAY, 4 * DAY]}
    book = {"positions": [{"quantity": 1.0, "instrument": asian}]}
    leland = {"kind": "leland", "vol": 0.2, "cost": 1e-3}
    with pytest.raises(ConfigError, match=r"`baselines`: leland: .*European options"):
        read_task(SMALL | {"book": book, "policy": "feed_forward", "baselines": [leland]})


def test_a_refused_config_leaves_no_folder(tmp_path):
    write(tmp_path, steps_per_epoch=0)
    done = qfml("run", "config.yaml", "--out", "run", cwd=tmp_path)
    assert (done.code, "`steps_per_epoch` must be a whole number, 1 or more, got 0" in done.err) == (2, True)
    assert not (tmp_path / "run").exists()


def test_policies_that_were_saved_do_the_same(small, tmp_path):
    hedger = load_hedger(small / "run")
    save_hedger(hedger, tmp_path / "again")
    again = load_hedger(tmp_path / "again")
    paths = hedger.paths(64, seed=5)
    assert torch.equal(hedger.holdings(paths), again.holdings(paths))
    assert again.aversions is not None
    assert again.aversions.tolist() == [1.0, 10.0, 1.0, 10.0]
    with pytest.raises(CheckpointError, match="exists"):
        save_hedger(hedger, tmp_path / "again")
    state = tmp_path / "again" / "state.json"
    state.write_text(state.read_text().replace('"seed":0', '"seed":7').replace('"seed": 0', '"seed": 7'))
    with pytest.raises(CheckpointError):
        load_hedger(tmp_path / "again")


@pytest.mark.slow  # tests/export/test_hedgers_parity.py does it with hedgers that were not run
def test_the_run_is_exported_policy_by_policy(small, tmp_path):
    done = qfml("export", "run", "--out", tmp_path / "all", cwd=small)
    assert done.code == 0, done.err
    files = sorted((tmp_path / "all").glob("*.onnx"))
    assert [path.name for path in files] == [f"model-{place}.onnx" for place in range(4)]
    hedger, models = load_hedger(small / "run"), [load_exported(path) for path in files]
    assert {model.metadata["config_hash"] for model in models} == {metrics(small / "run")["config_hash"]}
    paths = hedger.paths(2500, seed=9)
    wanted, spot = hedger.holdings(paths), paths.prices[..., 0]
    for place, model in enumerate(models):
        held = np.zeros(2500)
        for date in range(4):
            found = model.predict({"spot": spot[:, date].numpy(), "date": date, "before spot": held})
            held = found["holdings"][:, 0]
            np.testing.assert_allclose(held, wanted[place, :, date, 0], rtol=0, atol=1e-5)
    done = qfml("export", "run", "--out", tmp_path / "one", "--member", "2", cwd=small)
    assert done.code == 0, done.err
    assert load_exported(tmp_path / "one" / "model.onnx").metadata["member"]["number"] == 2
    for odd in ("4", "-1", "1:0", "x"):
        done = qfml("export", "run", "--member", odd, cwd=small)
        assert (done.code, "number of a policy, 0 to 3" in done.err) == (2, True), done.err
    assert not list((small / "run").glob("*.onnx"))


def test_stress_keeps_the_unit_of_the_features(small):
    """A policy that has learned in units of a vol of 20 % is shown those units, and the liability is the market's."""
    hedger = load_hedger(small / "run")
    from qfml.hedging.judgement import stressed_markets

    market = stressed_markets(
        hedger.market, {"wild": {"model": {"kind": "black_scholes", "vol": 0.5}}}, hedger.book, 1000
    )
    wild = market["wild"].paths(4096, hedger.book, 3)
    end = wild.prices[:, -1, 0].double()
    assert abs(float(end.log().std()) / (0.5 * math.sqrt(4 * DAY)) - 1) < 0.05
    expected = -end.log() / (0.2 * math.sqrt(4 * DAY))  # log(K / F) in the unit of the training
    np.testing.assert_allclose(wild.features[:, -1, 0].double().numpy(), expected.numpy(), atol=1e-4)


def test_a_market_of_the_judgement_keeps_the_unit_of_the_features(small):
    """Paths of another vol are not seen in their own: their spread is nothing that was known on the first date."""
    hedger = load_hedger(small / "run")
    wild = ModelMarket(pr.BlackScholes(0.5), pr.Market(1.0), n_steps=4, horizon=4 * DAY)
    fresh = JudgementSettings(market=wild).fresh(hedger.market)
    assert math.isclose(fresh.vol, 0.2, rel_tol=1e-12)
    assert JudgementSettings().fresh(hedger.market) is hedger.market


def test_textbook_hedges_of_a_cost_level_have_its_cost(small):
    """Leland's vol and the band's width follow the cost level of the case."""
    hedger = load_hedger(small / "run")
    from dataclasses import replace

    from qfml.hedging.textbook import Case, textbook_hedges

    loss = replace(hedger.loss, costs=(Proportional(1e-3), Proportional((2e-3,))))
    few = hedger.paths(16, 0)
    hedges, left_out = textbook_hedges(hedger.market, hedger.book, Entropic(1.0), loss.costs, Case(7.0, 2.0), few)
    assert not left_out
    assert config.to_dict(hedges["whalley_wilmott"]) == {
        "kind": "whalley_wilmott",
        "vol": pytest.approx(0.2),
        "risk_aversion": 7.0,
        "cost": pytest.approx(6e-3),
    }


def test_textbook_hedges_without_a_formula_are_named():
    from qfml.hedging.textbook import Case, textbook_hedges

    market = ModelMarket(pr.BlackScholes(0.2), pr.Market(1.0), n_steps=4, horizon=4 * DAY)
    book = Book(((1.0, pr.Asian(1.0, [2 * DAY, 4 * DAY])),))
    few = market.paths(16, book, 0)
    hedges, left_out = textbook_hedges(market, book, Entropic(1.0), [Proportional(1e-3)], Case(1.0, 1.0), few)
    assert list(hedges) == ["none"]
    assert set(left_out) == {"black_scholes_delta", "leland", "whalley_wilmott"}


def test_the_judgement_of_a_known_hedge_is_that_of_its_gains(small):
    """The baseline `none` has the risk of the liability itself, exactly."""
    hedger = load_hedger(small / "run")
    found = judge(hedger, JudgementSettings(n_paths=500, seed=3)).metrics["cases"][1]
    from pricers.noise import address

    owed = hedger.paths(500, address(3, "judgement")).liability.double()
    none = next(hedge for hedge in found["baselines"] if hedge["name"] == "none")
    assert math.isclose(none["price"]["value"], float((10 * owed).exp().mean().log()) / 10, rel_tol=1e-6)
    assert (none["cost"]["value"], none["turnover"]) == (0.0, 0.0)


def minute_recipe(path):
    """The words behind `qfml` of the command for a minute, as the head of a config shows it."""
    head = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    text = "\n".join(line.removeprefix("#") for line in head).replace("\\\n", " ")
    (recipe,) = [line for line in text.splitlines() if "qfml run" in line and "--set" in line]
    command, told = recipe.split("#")
    words = shlex.split(command)
    assert (words[:3], told.strip()) == (["qfml", "run", f"configs/{path.name}"], "the same in a minute")
    return words[1:]


@pytest.mark.slow
@pytest.mark.parametrize("path", FRESH, ids=lambda path: path.stem)
def test_the_recipe_for_a_minute_beats_the_delta(path, tmp_path):
    words = minute_recipe(path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    done = qfml(*words, "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    case = metrics(tmp_path / "run")["judgement"]["cases"][0]
    own = case["policies"][case["best"]]["against"]["black_scholes_delta"]
    assert own["high"] < 0


DRIFTING = {
    "market": {
        "kind": "drift_removed",
        "market": SMALL["market"] | {"drift": 0.5},
        "trainer": {
            "max_epochs": 2,
            "batch_size": 256,
            "optimizer": {"kind": "adamw", "lr": 1e-2},
            "checkpoint_seconds": 0.0,
        },
        "steps_per_epoch": 40,
        "n_validation": 256,
        "n_measured": 2**14,
    },
    "seeds": [0],
    "aversions": [10.0],
}


@pytest.fixture(scope="module")
def drifting(tmp_path_factory):
    """A finished run on a market whose drift was removed."""
    place = tmp_path_factory.mktemp("drifting")
    write(place, **DRIFTING)
    done = qfml("run", "config.yaml", "--out", "run", cwd=place)
    assert done.code == 0, done.err
    return place


def test_a_drift_that_is_left_is_said(small, drifting, tmp_path):
    told = "Prices may drift on these paths"
    assert metrics(small / "run")["judgement"]["paths"]["martingale"] is True
    for run in (small, drifting):
        assert told not in (run / "run" / "report.html").read_text()
    market = ModelMarket(pr.BlackScholes(0.2), pr.Market(1.0), n_steps=4, horizon=4 * DAY, drift=0.1)
    assert not market.martingale
    shutil.copytree(small / "run", tmp_path / "run")
    found = metrics(tmp_path / "run")
    found["judgement"]["paths"]["martingale"] = False
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(found))
    assert qfml("report", "run", cwd=tmp_path).code == 0
    assert told in (tmp_path / "run" / "report.html").read_text()


def test_a_run_without_drift_says_so(drifting):
    found = metrics(drifting / "run")["judgement"]["paths"]
    assert found["market"] == "model"
    (one,) = found["measure"]["drift"]
    assert one["before"] == pytest.approx(0.5 * 4 * DAY, rel=0.2)
    assert abs(one["after"]) < 0.3 * one["before"]
    page = (drifting / "run" / "report.html").read_text()
    assert [text for text in ("Drift removed", "Under the measure", "Effective paths") if text not in page] == []
    hedger = load_hedger(drifting / "run")
    assert float(hedger.paths(4096, 1).prices[:, -1].mean()) == pytest.approx(
        1.0, abs=4 * 0.2 * (4 * DAY / 4096) ** 0.5
    )


def test_a_run_that_is_killed_while_the_measure_is_learned_ends_with_the_same_bits(drifting, tmp_path):
    write(tmp_path, **DRIFTING)
    slow = "import time, qfml.hedging.training as t\nbefore = t.PathFeed.next\n"
    slow += "t.PathFeed.next = lambda self: (time.sleep(0.02), before(self))[1]"
    process = start("run", "config.yaml", "--out", "run", cwd=tmp_path, before=slow)
    wait_until(lambda: any((tmp_path / "run").glob("measures/*/checkpoints/checkpoint-*")))
    process.signal(signal.SIGKILL)
    assert process.wait().code != 0
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "metrics.json").exists()
    done = qfml("resume", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    for name in ("model/tensors.safetensors", "judgement.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (drifting / "run" / name).read_bytes(), name
