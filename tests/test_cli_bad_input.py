"""What a tired person types: exit code 2, one sentence that names the thing and the way out, never a traceback."""

import re
import subprocess
import sys
import textwrap

import numpy as np
import polars as pl
import pytest
import yaml
from command_line import ENVIRONMENT, prices, qfml, settings, workplace

from qfml.data import TimeDataset
from qfml.errors import DataError


def refused(done, *messages):
    assert done.code == 2, (done.code, done.out, done.err)
    assert "Traceback" not in done.err + done.out
    said = " ".join(done.err.split())
    for message in messages:
        assert re.search(message, said), f"{message!r} is not in {said!r}"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return workplace(tmp_path_factory.mktemp("bad"))


# ---- settings -------------------------------------------------------------------------------------------------------

SETTINGS = {
    "unknown key": ("trainer.max_epoch=3", r"trainer.*unknown key `max_epoch` \(did you mean `max_epochs`\?\)"),
    "unknown key at the top": ("n_sedes=3", r"unknown key `n_sedes` \(did you mean `n_seeds`\?\)"),
    "unknown key deep inside": ("data.features.1.perod=5", r"data\.features.*`perod` \(did you mean `period`\?\)"),
    "unknown kind": ("network.kind=mpl", r"network: `kind: mpl` is not known \(did you mean `mlp`\?\)"),
    "unknown task": (
        "task=walk_foward",
        r"`task` must be one of walk_forward, surrogate, calibration, hedging, got 'walk_foward'",
    ),
    "task that is a list": ("task=[walk_forward]", r"`task` must be one of"),
    "text for a number": ("trainer.batch_size=sixty-four", r"trainer\.batch_size.*sixty-four"),
    "quoted number": ('n_seeds="2"', r"n_seeds.*'2'"),
    "number for a flag": ("warm_start=1", r"warm_start"),
    "fraction for a count": ("n_seeds=2.5", r"n_seeds.*2\.5"),
    "number for a section": ("trainer=3", r"trainer.*got 3"),
    "list for a section": ("data=[1]", r"data: expected a mapping"),
    "section left empty": ("network=", r"network"),
    "required section dropped": ("backtest={cost_bps: 1.0}", r"backtest: .*needs `positions`"),
    "no costs": ("backtest={positions: sign}", r"backtest: .*needs `cost_bps`"),
    "no seeds": ("n_seeds=0", r"`n_seeds` must be at least 1, got 0"),
    "no epochs": ("trainer.max_epochs=0", r"`max_epochs` must be .*at least 1, got 0"),
    "negative costs": ("backtest.cost_bps=-1", r"cost_bps.*-1"),
    "negative lag": ("backtest.execution_lag=-1", r"execution_lag.*-1"),
    "negative resamples": ("backtest.n_bootstrap=-5", r"n_bootstrap.*-5"),
    "negative learning rate": ("trainer.optimizer.lr=-0.1", r"lr.*-0\.1"),
    "dropout of one": ("network.dropout=1", r"dropout.*1"),
    "validation above one": ("validation=1.5", r"1\.5|150"),
    "rule that reads something else": ("backtest.positions=bet_size", r"bet_size.*reads a probability"),
    "loss for other labels": ("loss=bce", r"label|bce"),
    "device that is not there": ("trainer.device=warp", r"trainer.*device.*warp"),
    "gpu that is not there": ("trainer.device=cuda:63", r"`trainer\.device: cuda:63` cannot be used"),
    # data and splits
    "no such file": ("data.source.path=price.csv", r"there is no file price\.csv"),
    "no such column": ("data.price=clos", r"no column `clos`.*(close|mean)"),
    "no such time column": ("data.source.time=date", r"no column `date`.*time"),
    "frame in a config": ("data.source={kind: frame, frame: x}", r"from a script"),
    "empty date range": ("data.start=2030-01-01", r"no rows from 2030-01-01.*reaches from 2015-01-01"),
    "range the wrong way round": ("data={start: 2016-01-01, end: 2015-01-01}", r"data"),
    "no such day": ("data.start=2015-02-30", r"`start` must be a date such as"),
    "horizon longer than the history": ("data.label.horizon=5000", r"label.*horizon|horizon.*history"),
    "look-back longer than the history": ("data.features.1.period=5000", r"5000|look"),
    "gap longer than stated": ("data.max_gap=1D", r"gap"),
    "training window longer than the history": ("split.train_size=100000", r"100000|train_size"),
    "size that is no length of time": ("split.train_size=5Z", r"5Z"),
    "more folds than rows": ("split={kind: purged_kfold, n_splits: 5000}", r"5000|fold"),
    "test block of nothing": ("split.test_size=0", r"test_size.*0"),
    # the assignment itself
    "no value": ("trainer.max_epochs", r"`--set trainer\.max_epochs` must read key\.key=value"),
    "no key": ("=3", r"must read key\.key=value"),
    "two dots": ("trainer..max_epochs=3", r"must read key\.key=value"),
    "beyond the list": ("data.features.9.period=3", r"`9` is not a position in a list of 2"),
    "below a number": ("n_seeds.x=3", r"a plain value"),
    "open bracket": ("network.hidden=[8,", r"`--set network\.hidden=\[8,` is not valid YAML"),
    "python tag": ("name=!!python/object/apply:os.system [touch owned]", r"not valid YAML"),
}


@pytest.mark.parametrize("what", SETTINGS)
def test_a_setting_that_cannot_be_is_refused(place, what):
    assignment, message = SETTINGS[what]
    refused(qfml("run", "config.yaml", "--out", "out", "--set", assignment, cwd=place), message)
    assert not (place / "out").exists()  # the name is free for the next attempt
    assert not (place / "owned").exists()
    assert not (place / "ledger.jsonl").exists()  # what did not run is no trial


def test_an_attempt_that_was_refused_does_not_take_the_name(tmp_path):
    place = workplace(tmp_path)
    refused(qfml("run", "config.yaml", "--out", "out", "--set", "data.start=2030-01-01", cwd=place), "no rows")
    assert qfml("run", "config.yaml", "--out", "out", cwd=place).code == 0


# ---- files ----------------------------------------------------------------------------------------------------------


def test_a_missing_config_is_named(place):
    refused(qfml("run", "confg.yaml", cwd=place), r"no config file at confg\.yaml")
    refused(qfml("run", ".", cwd=place), r"no config file at \.")


CONFIGS = {
    "malformed": ("task: walk_forward\n  data: {", r"bad\.yaml is not valid YAML.*line 2"),
    "tab": ("task: walk_forward\ndata:\n\tsource: x\n", r"not valid YAML"),
    "empty": ("", r"must hold a mapping"),
    "list": ("- task\n- data\n", r"must hold a mapping"),
    "text": ("walk_forward", r"must hold a mapping"),
    "no task": ("data: {}\n", r"`task` must be one of"),
    "key twice": ("task: walk_forward\ntask: walk_forward\n", r"`task` stands twice, again in line 2"),
    "python object": ("task: !!python/object/apply:os.system ['touch owned']\n", r"not valid YAML"),
    "python name": ("task: !!python/name:os.system ''\n", r"not valid YAML"),
    "python module": ("task: walk_forward\ndata: !!python/module:antigravity ''\n", r"not valid YAML"),
    "binary": ("\x00\x01\x02", r"not valid YAML"),
    "deep": ("[" * 5000, r"nested too deeply|not valid YAML"),
}


@pytest.mark.parametrize("what", CONFIGS)
def test_a_config_that_is_none_is_refused_and_nothing_in_it_is_executed(place, what):
    content, message = CONFIGS[what]
    (place / "bad.yaml").write_text(content)
    refused(qfml("run", "bad.yaml", "--out", "out", cwd=place), message)
    assert not (place / "out").exists()
    assert not (place / "owned").exists()


def test_a_config_in_another_encoding_is_refused(place):
    (place / "bad.yaml").write_bytes("name: Zürich".encode("latin-1"))
    refused(qfml("run", "bad.yaml", cwd=place), r"not UTF-8")


def test_out_must_be_an_empty_folder(place):
    (place / "full").mkdir()
    (place / "full" / "thesis.txt").write_text("years of work")
    refused(qfml("run", "config.yaml", "--out", "full", cwd=place), r"full is not empty.*`--out`.*`qfml resume full`")
    refused(qfml("run", "config.yaml", "--out", "prices.csv", cwd=place), r"prices\.csv")
    refused(qfml("run", "config.yaml", "--out", "prices.csv/run", cwd=place), r"[Nn]ot a directory.*prices\.csv")
    refused(qfml("run", "config.yaml", "--out", "x" * 300, cwd=place), r"[Ff]ile name too long")
    assert (place / "full" / "thesis.txt").read_text() == "years of work"
    assert [path.name for path in (place / "full").iterdir()] == ["thesis.txt"]


# ---- data -----------------------------------------------------------------------------------------------------------


def at(row, **values):
    """The prices with `values` in one row."""
    frame = prices()
    here = pl.int_range(pl.len()) == row
    return frame.with_columns(
        pl.when(here).then(value).otherwise(pl.col(name)).alias(name) for name, value in values.items()
    )


def constant(name):
    return prices().with_columns(pl.lit(5.0).alias(name))


VOLUME = {"features": [{"kind": "volume_ratio", "window": 5}]}
FIRST = prices()["time"][0].isoformat()

FRAMES = {
    "constant feature": (constant("volume"), VOLUME, r"feature `volume_ratio_5` is constant \(.*leave it out"),
    "constant price": (constant("close"), {}, r"constant|rsi"),
    "feature that is all missing": (
        prices().with_columns(volume=pl.lit(None, pl.Float64)),
        VOLUME,
        r"`volume`.*420",
    ),
    "the same, dropped": (
        prices().with_columns(volume=pl.lit(None, pl.Float64)),
        VOLUME | {"missing": {"kind": "drop"}},
        r"no rows|every row|all 420|420 rows",
    ),
    "a hole": (at(100, close=None), {}, r"`close`.*1"),
    "an infinite price": (at(100, close=float("inf")), {}, r"`close`.*inf"),
    "a negative price": (at(100, close=-1.0), {}, r"`close`.*positive"),
    "the same day twice": (pl.concat([prices(), prices().head(2)]), {}, rf"`time`.*{FIRST}"),
    "fewer rows than a fold": (prices(50), {}, r"train_size|fold|rows"),
    "one row": (prices(1), {}, r"row|look"),
    "no rows": (prices().head(0), {}, r"no rows"),
}


@pytest.mark.parametrize("what", FRAMES)
def test_prices_that_break_a_rule_are_refused(tmp_path, what):
    frame, data, message = FRAMES[what]
    place = workplace(tmp_path, frame, data=data)
    refused(qfml("run", "config.yaml", "--out", "out", cwd=place), message)
    assert not (place / "out").exists()


def test_two_rows_of_one_asset_at_one_time_are_named(tmp_path):
    frame = pl.concat([prices().with_columns(ticker=pl.lit(name)) for name in ("A", "B")])
    day = frame["time"][7]
    twice = pl.concat([frame, frame.filter((pl.col("time") == day) & (pl.col("ticker") == "B"))])
    place = workplace(tmp_path, twice, data={"source": {"kind": "csv", "path": "prices.csv", "group": "ticker"}})
    refused(qfml("run", "config.yaml", "--out", "out", cwd=place), rf"(?i)duplicate|twice|same.*{day}.*B|B.*{day}")


def test_text_among_the_prices_is_named(tmp_path):
    place = workplace(tmp_path)
    text = (place / "prices.csv").read_text().splitlines()
    text[50] = re.sub(r",[^,]*,", ",n/a,", text[50], count=1)
    (place / "prices.csv").write_text("\n".join(text))
    refused(qfml("run", "config.yaml", "--out", "out", cwd=place), r"close|n/a")


def test_a_label_that_ends_before_its_time_is_refused():
    days = np.datetime64("2020-01-01", "ns") + np.arange(5).astype("timedelta64[D]")
    end = days + np.timedelta64(1, "D")
    end[3] = days[3] - np.timedelta64(1, "D")
    with pytest.raises(DataError, match="label_end"):
        TimeDataset(np.ones((5, 1)), np.ones(5), time=days, label_end=end)


# ---- the command itself, extras, and our own defects ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rum", "config.yaml"], r"No such command 'rum'"),
        (["run"], r"(?i)missing argument 'config'"),
        (["run", "config.yaml", "--otu", "x"], r"No such option.*--otu"),
        (["predict", "run"], r"(?i)missing argument 'new'"),
        (["report", "nowhere"], r"nowhere"),
    ],
)
def test_a_command_that_cannot_be_is_refused(place, words, message):
    refused(qfml(*words, cwd=place), message)


def test_a_missing_extra_is_named_with_the_command_that_installs_it(tmp_path):
    place = workplace(tmp_path, data={"source": {"kind": "skfolio"}})
    without = "import sys\nsys.modules['skfolio'] = None"
    done = qfml("run", "config.yaml", "--out", "out", cwd=place, before=without)
    refused(done, r"`skfolio` is not installed.*extra `samples`: pip install 'qfml\[samples\]'")
    assert not (place / "out").exists()


def test_a_full_disk_before_the_run_begins(place):
    full = """
        import errno, os, sys
        def full(*rest):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "config.yaml")
        sys.modules["qfml.run"].config.write_yaml = full
    """
    done = qfml("run", "config.yaml", "--out", "disk", cwd=place, before=textwrap.dedent(full))
    refused(done, r"error: No space left on device: config\.yaml")


@pytest.mark.parametrize("defect", ["1 / 0", "open('no such file')", "[][1]"])
def test_a_defect_of_ours_is_exit_code_1_with_a_traceback(place, tmp_path, defect):
    broken = f"import sys\nsys.modules['qfml.run'].WalkForwardTask._audit = lambda *rest: {defect}"
    done = qfml("run", "config.yaml", "--out", tmp_path / "out", cwd=place, before=broken)
    assert done.code == 1
    assert "Traceback" in done.err


def test_the_exit_codes_are_those_of_the_real_process(place):
    """No server in between: the interpreter and the installed entry point's function."""
    command = [sys.executable, "-m", "qfml.cli", "run", "nowhere.yaml"]
    done = subprocess.run(command, cwd=place, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: no config file at nowhere.yaml\n"


def test_the_config_of_these_tests_is_a_good_one(tmp_path):
    """Each refusal above is of one change to this config."""
    place = workplace(tmp_path)
    assert yaml.safe_load((place / "config.yaml").read_text()) == settings()
    assert qfml("run", "config.yaml", "--out", "out", cwd=place).code == 0
