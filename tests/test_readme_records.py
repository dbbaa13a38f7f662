"""The times that the README names are those of the records."""

import json
import re
from pathlib import Path

import pytest

from qfml.config import config_hash, read_yaml

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def record(name):
    return json.loads((ROOT / "benchmarks" / "records" / f"{name}.json").read_text())


def fastest(rows, name, key):
    """Of the rows of one contender, which may have been run on several numbers of threads, the fastest."""
    return min(
        (row for told, row in rows.items() if told == name or told.startswith(f"{name}, ")), key=lambda r: r[key]
    )


def test_the_table_of_the_stack_is_its_record():
    rows = record("stack")["results"]
    shown = re.findall(r"^\| (.+?) \| ([\d.]+) s \| ([\d.]+) s \| ([\d.]+) \|$", README, re.MULTILINE)
    assert [name for name, *_ in shown] == list(dict.fromkeys(re.sub(r", \d threads?$", "", name) for name in rows))
    for name, least, median, error in shown:
        row = rows[name] if name in rows else fastest(rows, name, "seconds_min")
        told = (f"{row['seconds_min']:.2f}", f"{row['seconds_median']:.2f}", f"{row['mse_on_unseen_rows']:.3f}")
        assert (name, least, median, error) == (name, *told)


def test_a_step_and_loading_are_as_their_record_has_them():
    step, loading = record("engine")["cases"].values()
    text = " ".join(README.split())
    for sentence in (
        f"takes {step['qfml']['microseconds_a_step_min']:.0f} µs a step",
        f"the bare loop {fastest(step, 'bare loop', 'min_seconds')['microseconds_a_step_min']:.0f} µs",
        f"loads in {1e3 * loading['qfml']['min_seconds']:.0f} ms",
        f"with `DataLoader(TensorDataset)` in {loading['DataLoader(TensorDataset)']['min_seconds']:.2f} s",
    ):
        assert sentence in text


def test_the_search_and_checkpoints_are_as_their_records_have_them():
    rows, (writing, share) = record("tune")["contenders"], record("checkpoint")["cases"].values()
    ours, peer = rows["qfml, one stack"], fastest(rows, "Optuna + skorch", "min_seconds")
    added = share["with checkpoints"]["min_seconds"] / share["without"]["min_seconds"] - 1
    text = " ".join(README.split())
    for sentence in (
        f"takes {ours['min_seconds']:.1f} s, with Optuna and skorch trial by trial {peer['min_seconds']:.1f} s",
        f"medians {ours['median_seconds']:.1f} and {peer['median_seconds']:.1f}",
        f"written in {1e3 * writing['qfml, whole']['median_seconds']:.0f} ms",
        f"add {100 * added:.1f} % to a training",
    ):
        assert sentence in text


def test_the_table_of_widths_is_its_record():
    cases = record("stack_table")["cases"]
    told = {(case["width"], case["batch"], case["members"]): f"{case['times_bare_loop']:.1f}" for case in cases}
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    shown = {}
    for width, batch, row in re.findall(r"^\| (\d+), (\d+) \| (.+) \|$", page, re.MULTILINE):
        shown |= {(int(width), int(batch), m): x for m, x in zip((1, 4, 16, 64, 256), row.split(" | "), strict=True)}
    assert shown == told


def test_the_bars_are_kept_by_the_records():
    """One member, loading, 64 members, checkpoints, a search: what the engine is held to."""
    stack, (step, loading) = record("stack")["results"], record("engine")["cases"].values()
    ours = stack["qfml, one stack"]["seconds_min"]
    for name, least in (("qfml, one at a time", 7), ("bare PyTorch loop", 12), ("skorch", 35), ("Lightning", 35)):
        row = stack[name] if name in stack else fastest(stack, name, "seconds_min")
        assert row["seconds_min"] / ours >= least, name
    assert step["qfml"]["min_seconds"] <= 1.05 * fastest(step, "bare loop", "min_seconds")["min_seconds"]
    assert loading["DataLoader(TensorDataset)"]["min_seconds"] >= 30 * loading["qfml"]["min_seconds"]
    search = record("tune")["contenders"]
    peer = fastest(search, "Optuna + skorch", "min_seconds")
    assert peer["min_seconds"] >= 10 * search["qfml, one stack"]["min_seconds"]
    writing, share = record("checkpoint")["cases"].values()
    assert writing["qfml, whole"]["median_seconds"] < 0.1
    assert share["with checkpoints"]["min_seconds"] < 1.05 * share["without"]["min_seconds"]


def test_the_table_of_calibration_is_its_record():
    found = record("calibration")
    rows, n = found["contenders"], found["surfaces"]
    shown = re.findall(r"^\| (.+?) \| ([\d.]+) ms.*? \| ([\d.]+) bps \|$", README, re.MULTILINE)
    names = {
        "exact, from a given start": "exact",
        "QuantLib, one core, from the given start": "QuantLib, one core",
    }
    whole = 'calibrate(method="inverse")'
    names[f"the same, judged exactly and with standard errors: `{whole}`"] = whole
    assert len(shown) == 5
    for name, milliseconds, excess in shown:
        own = [row for told, row in rows.items() if re.sub(r", \d threads?$", "", told) == names.get(name, name)]
        row = min(own, key=lambda row: row["min_seconds"])
        told = 1e3 * row["min_seconds"] / n
        assert milliseconds == (f"{told:.0f}" if told > 100 else f"{told:.2f}" if told < 1 else f"{told:.1f}")
        assert excess == f"{row['max_excess_bps']:.3f}"


def test_the_surrogate_is_as_its_record_has_it():
    found, text = record("surrogate"), " ".join(README.split())
    batch = fastest(found["contenders"], "surrogate", "min_seconds")["min_seconds"]
    prices = fastest(found["contenders"], "surrogate, prices of contracts", "min_seconds")["min_seconds"]
    settings = ROOT / "configs" / "surrogate_heston.yaml"
    assert found["config_hash"] == config_hash(read_yaml(settings))  # the record is of the config as it is
    for sentence in (
        f"takes {found['minutes']:.1f} minutes from nothing, {found['n_labels']:,} labels included",
        f"off by {found['vol_bps']['rmse']:.2f} bps of vol (root mean square)",
        f"99 % of them within {found['vol_bps']['q99']:.2f}",
        f"100,000 vols take {1e3 * batch:.0f} ms, prices {1e3 * prices:.0f} ms",
        f"{found['simulation']['times_surrogate']:,.0f} times as long",
    ):
        assert sentence in text


def test_the_guide_tells_what_derivatives_gain_as_the_record_has_it():
    found, text = record("differential_labels"), " ".join((ROOT / "docs" / "surrogates.md").read_text().split())
    rows = [row for row in found["rows"] if row["times_fewer_labels"] is not None]
    fewer, slower = [row["times_fewer_labels"] for row in rows], [1.0 / row["times_less_time"] for row in rows]
    exact = [row["plain"]["rmse_bps"] / row["differential"]["rmse_bps"] for row in found["rows_on_exact_labels"]]
    for numbers, words in (
        (fewer, "{} to {} times fewer labels then reach the same error"),
        (slower, "in {} to {} times the whole time"),
        (exact, "on exact labels the error is {} to {} times smaller"),
    ):
        assert words.format(f"{min(numbers):.1f}", f"{max(numbers):.1f}") in text


def test_the_bars_of_calibration_and_of_the_surrogate_are_kept():
    rows = record("calibration")["contenders"]
    assert fastest(rows, "exact", "min_seconds")["times_quantlib"] >= 30
    assert fastest(rows, "inverse map and 3 steps", "min_seconds")["times_quantlib"] >= 300
    found = record("surrogate")
    assert found["vol_bps"]["rmse"] < 3
    assert found["vol_bps"]["q99"] < 10
    assert found["minutes"] <= 20
    assert found["simulation"]["times_surrogate"] >= 1000


def test_the_table_of_hedging_is_its_record():
    found = record("hedging")
    rate = {name: row["million_path_steps_per_second"] for name, row in found["contenders"].items()}
    prices = found["after_equal_time"]
    names = {
        "qfml, holdings by the network": "qfml, 2 threads",
        "qfml, no-transaction band": "qfml, no-transaction band, 2 threads",
        "qfml, eight risk aversions as one stack": "qfml, 8 risk aversions as one stack, 2 threads",
        "pfhedge": "pfhedge, 2 threads",
        "the matrix products of such a network alone": "matrix products alone, 2 threads",
    }
    shown = re.findall(r"^\| (.+?) \| ([\d.]+) million \| (.*?) ?\|$", README, re.MULTILINE)
    assert [name for name, *_ in shown] == list(names)
    for name, speed, price in shown:
        assert speed == f"{rate[names[name]]:.1f}"
        own = prices.get(names[name])
        assert price == ("" if own is None else f"{own['price']:.6f} ± {own['std_error']:.6f}".replace("0.", "."))
    text = " ".join(README.split())
    assert f"On one core it is {rate['qfml, 1 thread']:.1f} against {rate['pfhedge, 1 thread']:.1f} million" in text
    assert f"after {found['seconds_of_training']:.0f} s of training" in text
    assert f"(exact optimum {found['exact']['optimum']:.6f})".replace("0.", ".") in text


def test_the_bars_of_hedging_are_kept():
    """On all cores, by medians; on one core, and by minima, the products themselves are too near."""
    found = record("hedging")
    rows, prices = found["contenders"], found["after_equal_time"]
    ours, peer = rows["qfml, 2 threads"], rows["pfhedge, 2 threads"]
    assert peer["median_seconds"] >= 1.5 * ours["median_seconds"]
    assert prices["qfml, 2 threads"]["price"] <= prices["pfhedge, 2 threads"]["price"]


def test_the_guide_tells_the_memory_of_hedging_as_the_record_has_it():
    rows, text = record("hedging_memory")["rows"], " ".join((ROOT / "docs" / "hedging.md").read_text().split())
    kept, whole = (rows[f"feed_forward, {way}, 4096 dates"]["peak_memory_mib"] for way in ("checkpoint", "whole"))
    assert f"128 paths of 4,096 dates need {kept:.0f} MiB in place of {whole:.0f}" in text


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "benchmarks" / "records").glob("*.json")))
def test_every_record_has_its_benchmark(name):
    assert (ROOT / "benchmarks" / f"bench_{name}.py").is_file()
