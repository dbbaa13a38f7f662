"""`task: calibration` and `qfml calibrate`: from quotes to parameters, tables and a page."""

import dataclasses
import json
import re
import shutil

import numpy as np
import polars as pl
import pytest
import torch
from calibration.known_cube import BETA, SHIFT, table
from command_line import qfml
from references_dax import BATES_SSE_DAYS, BATES_SSE_WEEKS, HESTON_OPTIMUM, HESTON_SSE_DAYS, HESTON_SSE_WEEKS
from rough_surrogate import rough_surface, rough_surrogate

import pricers as pr
from qfml.calibration import Surface, calibrate
from qfml.calibration.local_vol_table import read_local_vol
from qfml.config import build
from qfml.report.calibration import _warnings
from qfml.report.calibration_fit import _parameter_rows
from qfml.report.calibration_run import shown_surfaces
from qfml.summary import SUMMARIES
from qfml.task import CalibrationTask
from qfml.task import calibration as task
from qfml.task.calibration_tables import curve_table, fit_entry

DAX = "configs/calibration_heston_dax.yaml"
PRINTED = 0.005  # a sum of squares is published to two digits behind the point


@pytest.fixture(scope="module")
def dax(tmp_path_factory, pytestconfig):
    """The run of the config that comes with the library."""
    place = tmp_path_factory.mktemp("dax")
    done = qfml("run", pytestconfig.rootpath / DAX, "--out", "run", cwd=place)
    assert done.code == 0, done.err
    return place / "run", done


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_the_dax_has_the_published_optimum_under_both_conventions(dax):
    folder, _ = dax
    found = metrics(folder)
    assert found["sse_week_rounded"] <= HESTON_SSE_WEEKS + PRINTED
    assert found["sse_exact_days"] <= HESTON_SSE_DAYS + PRINTED
    fit = found["fit"]
    place = [surface["name"] for surface in fit["surfaces"]].index("week_rounded")
    for name, value in HESTON_OPTIMUM.items():
        assert fit["params"][name][place] == pytest.approx(value, rel=1e-4)
        assert 0 < fit["std_error"][name][place] < 0.2 * abs(value)


def test_the_optimum_is_printed_with_its_errors(dax):
    _, done = dax
    row = next(line for line in done.out.splitlines() if "kappa" in line)
    assert re.search(r"15\.66\d*\D+1\.4\d*", row)
    assert "report:" in done.out


def test_the_quotes_are_beside_the_vols_of_an_independent_engine(dax):
    folder, _ = dax
    quotes = pl.read_parquet(folder / "quotes.parquet").filter(pl.col("surface") == "exact_days")
    params = {name: values[1] for name, values in metrics(folder)["fit"]["params"].items()}
    for row in quotes.sample(12, seed=1).iter_rows(named=True):
        call = pr.European(strike=row["strike"] / row["forward"], expiry=row["expiry"], option="call")
        price = pr.price(call, pr.Heston(**params), pr.Market(spot=1.0)).value
        vol = pr.implied_vol(price, 1.0, row["strike"] / row["forward"], row["expiry"]).item()
        assert row["model_vol"] == pytest.approx(vol, abs=1e-7)
        assert row["residual_bps"] == pytest.approx(1e4 * (vol - row["vol"]), abs=1e-3)
    assert metrics(folder)["sse_exact_days"] == pytest.approx((quotes["residual_bps"] / 100).pow(2).sum(), rel=1e-9)


def test_the_drawn_smiles_pass_through_the_model_vols(dax):
    folder, _ = dax
    curves, quotes = (pl.read_parquet(folder / f"{name}.parquet") for name in ("curves", "quotes"))
    key = (pl.col("surface") == "exact_days") & (pl.col("expiry") == quotes["expiry"].max())
    curve, own = curves.filter(key), quotes.filter(key)
    read = np.interp(own["log_moneyness"], curve["log_moneyness"], curve["model_vol"])
    np.testing.assert_allclose(read, own["model_vol"], atol=2e-5)  # linear between 61 points


def test_the_page_shows_parameters_and_every_expiry(dax):
    folder, _ = dax
    page = (folder / "report.html").read_text()
    assert "15.663" in page
    assert "1.45" in page
    assert page.count("smile at ") == 16
    assert "butterfly arbitrage" in page


@pytest.mark.slow
def test_bates_fits_better_as_published(tmp_path, pytestconfig):
    done = qfml("run", pytestconfig.rootpath / DAX, "--set", "model.kind=bates", "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    found = metrics(tmp_path / "run")
    assert found["sse_week_rounded"] <= BATES_SSE_WEEKS + PRINTED
    assert found["sse_exact_days"] <= BATES_SSE_DAYS + PRINTED


@pytest.fixture(scope="module")
def quotes(tmp_path_factory):
    """The DAX as a file."""
    path = tmp_path_factory.mktemp("quotes") / "dax.csv"
    return Surface.dax_2002().write(path)


@pytest.mark.parametrize("model", ["sabr", "svi", "ssvi", pytest.param("local_vol", marks=pytest.mark.slow)])
def test_every_model_is_fitted_from_a_file_and_shown(model, quotes, tmp_path):
    done = qfml("calibrate", quotes, "--model", model, "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    quoted = pl.read_parquet(tmp_path / "run" / "quotes.parquet")
    error = float(np.sqrt((quoted["residual_bps"] ** 2).mean()))
    assert error < {"sabr": 43, "svi": 28, "ssvi": 77, "local_vol": 7}[model]
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("smile at ") == 8
    assert ("chart-local-vol-0" in page) == (model == "local_vol")
    if model == "local_vol":
        kept = read_local_vol(tmp_path / "run" / "local_vol.parquet")
        own = quoted.sort("expiry").tail(1).row(0, named=True)
        vol = kept.surface.vol(torch.tensor([own["log_moneyness"]]), own["expiry"]).item()
        assert vol == pytest.approx(own["model_vol"], abs=1e-8)


def changed(quotes, tmp_path, **columns):
    path = tmp_path / "changed.csv"
    pl.read_csv(quotes).with_columns(**columns).write_csv(path)
    return path


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"vol": pl.col("vol") * 100}, "percent"),
        ({"strike": pl.col("strike") / 44.6817}, "strike_unit"),
        ({"vol": pl.lit(0.0)}, "vol"),
        ({"expiry": -pl.col("expiry")}, "expiry"),
    ],
)
def test_quotes_that_cannot_be_are_refused_and_leave_no_folder(columns, told, quotes, tmp_path):
    path = changed(quotes, tmp_path, **columns)
    done = qfml("calibrate", path, "--out", "run", cwd=tmp_path)
    assert done.code == 2
    assert told in done.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--model", "hestn"), "did you mean `heston`"),
        (("--method", "neural"), "needs a `surrogate`"),
        (("--surrogate", "nowhere"), "nowhere"),
        (("--inverse", "nowhere"), "`inverse`: there is no folder nowhere"),
        (("--inverse", "."), "`inverse: .` cannot be used"),
        (("--set", "walk_forward={}"), "a history of 1 surfaces"),
        (("--set", "warm=true"), "`warm` goes from day to day, and there is one surface"),
        (("--set", "smoothness=1e-4"), "`smoothness` goes from day to day, and there is one surface"),
        (("--set", "inverse_training={}", "--set", "n_starts=8"), "`n_starts` is of a search for starts"),
        (("--set", "inverse_training={}", "--set", "n_polished=2"), "`n_polished` is of a search for starts"),
        (
            ("--set", "inverse_training={}", "--set", "warm=true"),
            "`warm` starts each day from the one before, and the inverse map",
        ),
        (("--set", "inverse_training={}", "--method", "inverse", "--set", "smoothness=1e-4"), "'polished'"),
        (("--set", "max_steps=-2"), "`max_steps` must be a whole number, 1 or more, got -2"),
        (("--set", "tolerance=5.0"), "`tolerance` must be a number between 0 and 1"),
        (("--model", "sabr", "--set", "n_polished=2"), "`n_polished` does not apply to sabr"),
        (("--set", "walk_forward={}", "--set", "n_polished=2"), "set `walk_forward.warm: false`"),
        (("--set", "surface.reading.separator=ab"), "`separator` must be one"),
        (("--set", "walk_forward={}", "--set", "n_starts=8"), "set `walk_forward.warm: false`"),
        (("--set", "inverse_training={}", "--method", "exact"), "the method 'exact' uses no network"),
        (("--set", "inverse_training={}", "--method", "neural"), "needs a `surrogate`"),
        (("--set", "walk_forward={warm: true}", "--set", "inverse_training={}"), "`walk_forward.warm` is for"),
        (("--set", "walk_forward={}", "--set", "smoothness=1e-4"), "leave out one of the two"),
        (("--set", "name=../../elsewhere"), "`name` must be one plain part of a path"),
        (("--set", "name=.hidden"), "`name` must be one plain part of a path"),
    ],
)
def test_settings_that_cannot_be_are_refused_and_leave_no_folder(arguments, told, quotes, tmp_path):
    (tmp_path / "empty").mkdir()
    done = qfml("calibrate", quotes, *arguments, "--out", "run", cwd=tmp_path)
    assert (done.code, told in done.err) == (2, True), done.err
    assert "Start anew" not in done.err  # there is nothing to start anew
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_dates_that_are_dropped_are_said_and_stand_in_the_report(tmp_path):
    rows = [f"2024-01-0{day},{k},0.5,{9 if day == 2 else 0.2},100" for day in (1, 2, 3) for k in (90, 95, 100, 105)]
    (tmp_path / "days.csv").write_text("\n".join(["date,strike,expiry,vol,forward", *rows]))
    words = (
        "days.csv",
        "--model",
        "svi",
        "--set",
        "surface.reading.errors=drop",
        "--set",
        "surface.reading.vol_unit=decimal",
    )
    done = qfml("calibrate", *words, "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "2024-01-02 is left out" in done.err
    assert [line[:10] for line in metrics(tmp_path / "run")["notes"]] == ["2024-01-02"]
    assert "4 of 4 quotes dropped: `vol` of a quote must be at most" in (tmp_path / "run" / "report.html").read_text()
    (tmp_path / "days.csv").write_text("\n".join(["date,strike,expiry,vol,forward", *rows[4:8]]))
    done = qfml("calibrate", *words, "--out", "none", cwd=tmp_path)
    assert (done.code, "no date is left: 2024-01-02" in done.err) == (2, True), done.err


@pytest.mark.parametrize(
    ("model", "rows", "told"),
    [
        ("heston", ["90,0.5,0.2,100,0", "100,0.5,0.2,100,0"], "the surface has no quotes"),
        ("local_vol", ["90,0.5,0.2,100,1"], "local_vol fits none of the 1 surface(s)"),
    ],
)
def test_a_run_that_fits_nothing_says_why_and_leaves_no_folder(model, rows, told, tmp_path):
    (tmp_path / "day.csv").write_text("\n".join(["strike,expiry,vol,forward,weight", *rows]))
    done = qfml("calibrate", "day.csv", "--model", model, "--out", "run", cwd=tmp_path)
    assert (done.code, told in done.err) == (2, True), done.err
    assert not (tmp_path / "run").exists()


def test_days_that_end_after_their_few_steps_are_not_counted_as_failed(dax, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(dax[0], folder)
    found = metrics(folder)
    for place, status in enumerate(("refined: the network's answer and as many steps", "not converged: the limit")):
        found["fit"]["surfaces"][place] |= {"status": status, "converged": False}
    (folder / "metrics.json").write_text(json.dumps(found))
    assert qfml("report", "run", cwd=tmp_path).code == 0
    page = (folder / "report.html").read_text()
    assert re.search(r"Not converged</dt>\s*<dd>1</dd>", page)


def test_warnings_of_a_history_are_counted_by_kind_each_surface_once():
    said = [
        ["expiry 0.08333: at its lower bound: m", "expiry 0.5: at its lower bound: sigma, m"],
        ["expiry 0.1: not identified: 3 quotes for 5 parameters"],
        ["the network's start: `v0` is at the lower edge of the surrogate's box, 0.01: the optimum may lie outside"],
        ["3 of 14 quotes lie outside of the surrogate's box by expiry or strike: its vols are extrapolated there"],
        ["4 of 14 quotes lie outside of the surrogate's box by expiry or strike: its vols are extrapolated there"],
    ]
    found = _warnings([{"name": str(i), "warnings": lines} for i, lines in enumerate(said)])
    assert sorted(found) == [
        "`v0` is at the lower edge of the surrogate's box, 0.01 (1 of 5 surfaces)",
        "at its lower bound (1 of 5 surfaces)",
        "not identified (1 of 5 surfaces)",
        "… of … quotes lie outside of the surrogate's box by expiry or strike (2 of 5 surfaces)",
    ]


def test_every_key_of_a_history_reaches_the_calibration(monkeypatch, tmp_path):
    """`warm` and `smoothness` the fit of all days, the options of the least squares also that of the walk-forward."""
    asked = []
    monkeypatch.setattr(task, "calibrate", lambda *_, **keys: asked.append(keys))
    monkeypatch.setattr(task, "walk_forward_calibration", lambda *_, **keys: asked.append(keys))
    surface = {"kind": "synthetic_heston", "n_days": 3, "seed": 1}
    options = {"n_starts": 9, "n_polished": 3, "max_steps": 7, "tolerance": 1e-8, "seed": 5}
    keys = {"surface": surface, "model": "heston"} | options
    made = build(CalibrationTask, keys | {"warm": True, "walk_forward": {"warm": False, "horizons": [1]}})
    made._calibrated([], {})
    with pytest.raises(AttributeError):  # nothing to save
        made._ahead(tmp_path, list(made.surface.read().values()), {})
    build(CalibrationTask, keys | {"smoothness": 2e-4})._calibrated([], {})
    seen = [{name: one.get(name) for name in (*options, "warm", "smoothness")} for one in asked]
    assert seen == [
        options | {"warm": True, "smoothness": 0.0},
        options | {"warm": False, "smoothness": None},
        options | {"warm": False, "smoothness": 2e-4},
    ]


def test_a_killed_calibration_starts_anew_and_ends_with_the_same_numbers(dax, tmp_path, pytestconfig):
    killed = "import qfml.task.calibration as t, os\nt.quote_table = lambda *_: os.kill(os.getpid(), 9)\n"
    done = qfml("run", pytestconfig.rootpath / DAX, "--out", "run", cwd=tmp_path, before=killed)
    assert done.code == -9
    done = qfml("resume", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    first, again = metrics(dax[0])["fit"], metrics(tmp_path / "run")["fit"]
    assert again["params"] == first["params"]


def test_a_history_is_judged_on_later_days(tmp_path):
    config = """
task: calibration
surface: {kind: synthetic_heston, n_days: 6, seed: 1, expiries: [0.25, 1.0], deltas: [0.1, 0.25, 0.5, 0.75, 0.9]}
model: {kind: heston}
walk_forward: {horizons: [1, 2]}
"""
    (tmp_path / "config.yaml").write_text(config)
    done = qfml("run", "config.yaml", "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    found = metrics(tmp_path / "run")
    assert len(found["fit"]["surfaces"]) == 6
    errors = found["out_of_sample"]["by_horizon"]["model"]
    assert errors["0"]["days"] == 6
    assert errors["2"]["days"] == 4
    assert errors["0"]["mean"] < errors["2"]["mean"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Out of sample" in page
    assert "Sticky moneyness" in page


@pytest.fixture(scope="module")
def rough(tmp_path_factory):
    """The folder of a surrogate, and three days: one expiry of the first and the whole second day have no weight."""
    place = tmp_path_factory.mktemp("rough")
    rough_surrogate().save(place / "surrogate")
    days = []
    for number, parameters in enumerate([(0.1, 0.04, -0.7), (0.2, 0.05, -0.6), (0.3, 0.06, -0.5)]):
        surface = rough_surface(*parameters, spread=0.002)
        columns = {name: getattr(surface, name) for name in ("strike", "expiry", "vol", "bid", "ask", "forward")}
        unweighted = (pl.col("expiry") == 0.5) if number == 0 else pl.lit(number == 1)
        weight = pl.when(unweighted).then(0.0).otherwise(1.0).alias("weight")
        days.append(pl.DataFrame(columns).with_columns(weight, date=pl.lit(f"2024-01-0{number + 2}")))
    pl.concat([days[0].filter(pl.col("expiry") < 1.5), *days[1:]]).write_csv(place / "days.csv")
    pl.concat([day.drop("bid", "ask") for day in days]).write_csv(place / "mids.csv")
    return place


ROUGH = ("--model", "rough_bergomi", "--surrogate", "surrogate")
DRAWS = "{n_chains: 2, n_draws: 12, n_warmup: 10, noise: half_spread}"


def test_what_only_a_surrogate_knows_is_calibrated_and_drawn_through_it(rough):
    done = qfml(
        "calibrate", "days.csv", *ROUGH, "--method", "neural", "--set", f"posterior={DRAWS}", "--out", "run", cwd=rough
    )
    assert done.code == 0, done.err
    found = metrics(rough / "run")
    assert (found["fit"]["model"], found["fit"]["method"]) == ("rough_bergomi", "neural")
    assert found["fit"]["params"]["rho"][0] == pytest.approx(-0.7, abs=0.15)
    assert [day["converged"] for day in found["fit"]["surfaces"]] == [True, False, True]
    assert found["posterior"]["through"] == "surrogate"
    assert found["posterior"]["noise_bps"] == pytest.approx(20.0)  # of the first day, which has fewer quotes
    draws = pl.read_parquet(rough / "run" / "posterior.parquet")
    assert draws.columns == ["chain", "hurst", "xi", "rho"]
    curves = pl.read_parquet(rough / "run" / "curves.parquet")
    drawn = curves.group_by("surface").agg(pl.col("expiry").unique().sort()).sort("surface")
    assert drawn["surface"].to_list() == ["2024-01-02", "2024-01-04"]
    assert drawn["expiry"].to_list() == [[0.2, 1.0], [0.2, 0.5, 1.0, 1.8]]
    assert "through the surrogate" in (rough / "run" / "report.html").read_text()


def test_the_network_is_named_by_its_hash_and_must_be_the_same_on_resume(rough, tmp_path):
    for name in ("surrogate", "days.csv"):
        (tmp_path / name).symlink_to(rough / name)
    killed = "import qfml.task.calibration as t, os\nt.quote_table = lambda *_: os.kill(os.getpid(), 9)\n"
    words = ("calibrate", "days.csv", *ROUGH, "--method", "neural", "--out", "run")
    assert qfml(*words, cwd=tmp_path, before=killed).code == -9
    (tmp_path / "elsewhere").mkdir()
    done = qfml("resume", "../run", cwd=tmp_path / "elsewhere")
    assert done.code == 2
    assert f"are those seen from {tmp_path}" in done.err
    (tmp_path / "surrogate").unlink()
    good = rough_surrogate()
    fits = [dataclasses.replace(fit, parameters=1.001 * fit.parameters) for fit in good.fits]
    dataclasses.replace(good, fits=type(good.fits)(fits)).save(tmp_path / "surrogate")
    done = qfml("resume", "run", cwd=tmp_path)
    assert (done.code, "`surrogate` is not what this run was begun with" in done.err) == (2, True), done.err
    shutil.rmtree(tmp_path / "surrogate")
    (tmp_path / "surrogate").symlink_to(rough / "surrogate")
    done = qfml("resume", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    found = metrics(tmp_path / "run")
    assert found["networks"] == {"surrogate": {"path": "surrogate", "hash": rough_surrogate().hash}}
    assert rough_surrogate().hash in (tmp_path / "run" / "report.html").read_text()


def test_a_posterior_that_cannot_be_drawn_leaves_the_fit(rough):
    done = qfml(
        *("calibrate", "mids.csv", *ROUGH, "--method", "neural", "--set", f"posterior={DRAWS}", "--out", "failed"),
        cwd=rough,
    )
    assert done.code == 0, done.err
    found = metrics(rough / "failed")
    assert "bid and ask" in found["posterior"]["failed"]
    assert found["fit"]["params"]["xi"][0] == pytest.approx(0.04, rel=0.1)
    assert "There are no draws" in (rough / "failed" / "report.html").read_text()


@pytest.mark.parametrize("model", ["sabr", "ssvi"])
def test_ragged_days_and_days_without_weights_are_told_apart(model, rough):
    done = qfml("calibrate", "days.csv", "--model", model, "--out", model, cwd=rough)
    assert done.code == 0, done.err
    days = metrics(rough / model)["fit"]["surfaces"]
    assert [day["converged"] for day in days] == [True, False, True], days
    assert days[1]["rmse_bps"] is None
    fit = metrics(rough / model)["fit"]
    if model == "ssvi":
        assert np.shape(fit["params"]["rho"]) == (3,)
        assert np.all(np.diff(fit["params"]["theta"][2]) > 0)
        assert min(fit["std_error"]["theta"][2]) > 0
        assert "theta at 1.8" in (rough / model / "report.html").read_text()
        assert "theta at 1.8" in done.out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (ROUGH, "method neural"),
        (("--model", "rough_bergomi", "--method", "neural"), "through a surrogate only"),
        ((*ROUGH, "--method", "neural", "--set", "inverse_training={}"), "needs exact vols"),
        (("--model", "sabr", "--set", "walk_forward={}"), "`walk_forward` is for models with parameters of a whole"),
        (("--model", "svi", "--set", "inverse_training={}"), "`inverse_training` is for models"),
        (("--model", "local_vol", "--set", "posterior={}"), "`posterior` is for models"),
        (("--set", "posterior={n_draws: 2}"), "`n_draws` must be at least 8, got 2"),
    ],
)
def test_sections_that_a_model_cannot_follow_are_refused(arguments, told, rough):
    done = qfml("calibrate", "days.csv", *arguments, "--out", "refused", cwd=rough)
    assert (done.code, told in done.err) == (2, True), done.err


@pytest.fixture(scope="module")
def cube(tmp_path_factory):
    """A file of swaption vols that SABR has made, and its parameters by node."""
    quotes, truth = table()
    path = tmp_path_factory.mktemp("cube") / "cube.csv"
    pl.DataFrame(quotes).with_columns(shift=pl.lit(SHIFT)).write_csv(path)
    return path, truth


SABR = ("--model", "sabr", "--set", f"model.beta={BETA}")


def test_a_swaption_cube_is_calibrated_node_by_node_and_shown(cube, tmp_path):
    path, truth = cube
    done = qfml("calibrate", path, *SABR, "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    nodes = pl.read_parquet(tmp_path / "run" / "nodes.parquet").sort("expiry", "tenor")
    for name, values in truth.items():
        np.testing.assert_allclose(nodes[name].to_numpy().reshape(values.shape), values, rtol=1e-5)
    found = metrics(tmp_path / "run")
    assert [one["name"] for one in found["fit"]["surfaces"]] == [
        f"tenor {t:g} y" for t in nodes["tenor"].unique().sort()
    ]
    assert found["fit"]["shift"] == SHIFT
    np.testing.assert_allclose(found["fit"]["params"]["rho"], truth["rho"].T, rtol=1e-5)
    assert all(one["rmse_bps"] < 1e-3 for one in found["fit"]["surfaces"])
    assert "sabr: tenor" in done.out
    page = (tmp_path / "run" / "report.html").read_text()
    assert all(f"chart-cube-{name}" in page for name in ("rmse_bps", "alpha", "rho", "nu"))
    assert "Through time" not in page  # tenors are no days


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "a swaption cube is fitted by `sabr` with one `beta`"),
        ((*SABR, "--method", "polished"), "fitted by the method exact, got polished"),
        ((*SABR, "--set", "smoothness=1e-3"), "`smoothness` does not apply to a swaption cube"),
        ((*SABR, "--set", "walk_forward={}"), "`walk_forward` does not apply to a swaption cube"),
        ((*SABR, "--surrogate", "nowhere"), "`surrogate` does not apply to a swaption cube"),
        ((*SABR, "--set", "surface.shift=0.5"), "leave out one of them"),
        (("--model", "sabr", "--set", "model.beta=null"), "`beta` of a cube must be one number"),
    ],
)
def test_what_no_cube_has_is_refused_and_leaves_no_folder(arguments, told, cube, tmp_path):
    done = qfml("calibrate", cube[0], *arguments, "--out", "run", cwd=tmp_path)
    assert (done.code, told in done.err) == (2, True), done.err
    assert not list(tmp_path.iterdir())


def test_null_errors_say_why():
    fit = {
        "parameters": [{"name": name, "lower": 0.0, "upper": 1.0} for name in ("a", "b", "c", "d")],
        "params": {"a": [0.5], "b": [1.0], "c": [0.5], "d": [0.5]},
        "std_error": {"a": [0.1], "b": [None], "c": [None], "d": [None]},
        "identified": {"a": [True], "b": [True], "c": [False], "d": [True]},
        "at_bound": {"a": [False], "b": [True], "c": [False], "d": [False]},
    }
    rows = _parameter_rows(fit, 0)
    assert [row[-1] for row in rows] == ["", "at its bound", "not identified", "no standard error"]


def test_many_failed_surfaces_are_summed_up(capsys):
    surface = {"name": "x", "rmse_bps": None, "max_bps": None, "n_quotes": 1, "sse": None, "status": "failed"}
    surfaces = [surface | {"converged": False, "warnings": []}] * 5
    empty = {"a": [None] * 5}
    fit = {"model": "heston", "method": "exact", "surfaces": surfaces, "params": empty, "std_error": empty}
    SUMMARIES["calibration"]({"fit": fit, "seconds": {"calibration": 1.0}})
    assert "none has a fit" in capsys.readouterr().out


def test_the_surfaces_of_the_page_have_curves_however_long_the_history(monkeypatch):
    monkeypatch.setattr("qfml.task.calibration_tables.MOST_CURVES", 2)
    named = {f"day {i}": Surface.dax_2002() for i in range(8)}
    fitted = [{"rmse_bps": error} for error in (1.0, 9.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0)]

    class Flat:
        def smile(self, places, expiry, surface):
            return np.full(len(places), 0.2)

    assert shown_surfaces(fitted) == [1, 3, 7]
    drawn = curve_table(Flat(), named, fitted)["surface"].unique(maintain_order=True).to_list()
    assert drawn == ["day 1", "day 3", "day 6", "day 7"]


def test_smiles_of_three_quotes_are_not_called_unidentified(tmp_path):
    quotes = {"strike": [1.05, 1.1, 1.16] * 2, "expiry": [0.5] * 3 + [1.0] * 3, "forward": [1.1] * 6}
    quotes["vol"] = [0.085, 0.08, 0.082, 0.09, 0.083, 0.086]
    pl.DataFrame(quotes).write_csv(tmp_path / "fx.csv")
    done = qfml("calibrate", "fx.csv", "--model", "sabr", "--out", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    fit = metrics(tmp_path / "run")["fit"]
    assert fit["identified"] == {name: [[True, True]] for name in ("alpha", "beta", "rho", "nu")}
    assert fit["std_error"] == {"beta": [[0.0] * 2]} | {name: [[None] * 2] for name in ("alpha", "rho", "nu")}
    assert fit["surfaces"][0]["warnings"] == [
        f"expiry {years}: no standard errors: 3 quotes for 3 parameters" for years in ("0.5", "1")
    ]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "not identified" not in page
    assert page.count("no standard error<") == 6


def test_the_page_says_which_numbers_of_a_smile_are_at_their_bounds(tmp_path):
    steep = {"strike": [80.0, 90.0, 100.0, 110.0, 120.0], "expiry": [0.5] * 5, "forward": [100.0] * 5}
    steep["vol"] = [0.25, 0.22, 0.35, 0.19, 0.19]
    pl.DataFrame(steep).write_csv(tmp_path / "steep.csv")
    bounds = {"sabr": ("at its lower bound: rho", {"rho"}), "ssvi": ("rho at its", {"rho", "eta", "gamma"})}
    for model, (warned, at_most) in bounds.items():
        done = qfml("calibrate", "steep.csv", "--model", model, "--out", model, cwd=tmp_path)
        assert done.code == 0, done.err
        fit = metrics(tmp_path / model)["fit"]
        held = {name for name, flags in fit["at_bound"].items() if np.any(flags)}
        assert any(warned in text for text in fit["surfaces"][0]["warnings"]), fit["surfaces"][0]["warnings"]
        assert {"rho"} <= held <= at_most
        page = (tmp_path / model / "report.html").read_text()
        assert page.count("at its bound<") == len(held)
        assert "no standard error<" not in page


def test_what_is_warned_of_is_what_is_recorded_as_not_identified():
    vols = [[0.25, 0.22, 0.35, 0.19, 0.19], [0.15, 0.12, 0.1, 0.09, 0.09]]  # of no model
    surface = Surface.from_grid([80.0, 90.0, 100.0, 110.0, 120.0], [0.5, 1.0], vols, spot=100.0)
    found = calibrate([surface], "bates", n_starts=8, n_polished=1, max_steps=30)
    warned = {name for name in found.params for line in found.warnings[0] if f"`{name}` is not identified" in line}
    recorded = fit_entry(found.model, found, {"wild": surface})["identified"]
    assert warned
    assert {name for name, flags in recorded.items() if flags == [False]} == warned
