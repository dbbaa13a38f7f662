"""What TensorBoard, Weights & Biases and MLflow hold of a training, read back from their own files."""

import json
import os
import re
import struct
import subprocess
import sys
import tomllib
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from engine.tracked_training import train, train_cut_twice

from qfml.engine.tracking import MLflow, TensorBoard, WeightsAndBiases
from qfml.engine.tracking.services import allowed_name
from qfml.errors import MissingExtraError, UserError

ROOT = Path(__file__).parent.parent.parent


def histories(fits, cast=float):
    """(member, name) -> [(epoch, value)] of every number of the fits, as text: nan equals itself."""
    return {
        (member, name): [(r["epoch"], repr(float(cast(r[name])))) for r in fit.history]
        for member, fit in enumerate(fits)
        for name in ("train_loss", "val_loss")
        if fit.history[0][name] is not None
    }


# --- TensorBoard --------------------------------------------------------------------------------------------------


def scalars(folder, n_members=3):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    held = {}
    for member in range(n_members):
        run = accumulator(str(folder / f"member_{member}"), size_guidance={"scalars": 0}, purge_orphaned_data=False)
        run.Reload()
        for tag in run.Tags()["scalars"]:
            held[member, tag] = [(event.step, repr(event.value)) for event in run.Scalars(tag)]
    return held


@pytest.mark.parametrize("cut", [False, True])
def test_event_files_hold_every_number_once(tmp_path, cut):
    pytest.importorskip("tensorboard")
    folder = tmp_path / "events"
    make = lambda resume: TensorBoard(folder, resume)  # noqa: E731
    fits = train_cut_twice(make, tmp_path) if cut else train([make(False)])
    known = {(member, f"epoch/{name}"): values for (member, name), values in histories(fits, np.float32).items()}
    assert scalars(folder) == known


def test_event_files_keep_steps_apart_from_epochs(tmp_path):
    pytest.importorskip("tensorboard")
    for resume in (False, True):
        tracker = TensorBoard(tmp_path, resume)
        tracker.begin(1, 2)
        tracker.log(0, 5, {"train_loss": 0.5})
        tracker.epoch(0, {"epoch": 1, "train_loss": 0.25}, stopped=True)
        tracker.end([])
    assert scalars(tmp_path, 1) == {(0, "step/train_loss"): [(5, "0.5")], (0, "epoch/train_loss"): [(1, "0.25")]}
    with pytest.raises(UserError, match="already holds a training"):
        TensorBoard(tmp_path).begin(1, 2)


# --- Weights & Biases ---------------------------------------------------------------------------------------------


def records(path):
    """The records of an offline run: a LevelDB log after 7 bytes of header, in blocks of 32 KiB, checksums unread."""
    protocol = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    data, body, place = path.read_bytes(), b"", 7
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        body += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = protocol.Record()
            record.ParseFromString(body)
            yield record
            body = b""


def offline_runs(folder):
    """Of each run: settings, rows of the history, summary; in the order they were begun."""
    runs = []
    for path in folder.glob("wandb/offline-run-*/*.wandb"):
        settings, rows, summary = {}, [], {}
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                rows.append({item.nested_key[0]: json.loads(item.value_json) for item in record.history.item})
            elif kind == "summary":
                for item in record.summary.update:
                    summary[item.key or item.nested_key[0]] = json.loads(item.value_json)
            elif kind == "run":
                settings |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
                settings |= {"project": record.run.project, "group": record.run.run_group}
                settings["begun"] = record.run.start_time.ToNanoseconds()
        runs.append((settings, rows, summary))
    return sorted(runs, key=lambda run: run[0]["begun"])


@pytest.mark.slow  # starts the service
def test_the_last_offline_run_of_a_cut_training_holds_it_whole(tmp_path):
    wandb = pytest.importorskip("wandb")
    folder = tmp_path / "runs"
    make = lambda resume: WeightsAndBiases("study", folder=folder, group="first", config={"lr": 0.1})  # noqa: E731
    fits = train_cut_twice(make, tmp_path)
    wandb.teardown()  # its own process writes the files, and is only now waited for
    runs = offline_runs(folder)
    assert len(runs) == 3
    settings, rows, summary = runs[-1]
    known = {"project": "study", "group": "first", "lr": 0.1, "n_members": 3, "max_epochs": 6}
    assert {name: settings[name] for name in known} == known
    held = {}
    for member in range(3):
        for row in rows:
            for name in ("train_loss", "val_loss"):
                if f"member_{member}/{name}" in row:
                    value = float(row[f"member_{member}/{name}"])
                    held.setdefault((member, name), []).append((row[f"member_{member}/epoch"], repr(value)))
    assert held == histories(fits)
    assert [summary[f"member_{member}/status"] for member in range(3)] == [fit.status for fit in fits]


def test_a_mode_that_wandb_would_read_otherwise_is_refused():
    with pytest.raises(UserError, match="`mode` must be offline or online, got 'off'"):
        WeightsAndBiases("study", mode="off")


# --- MLflow -------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # makes a database
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # in MLflow's own tables
def test_the_last_run_of_a_cut_training_in_mlflow_holds_it_whole(tmp_path, monkeypatch):
    pytest.importorskip("alembic")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)
    tracking = pytest.importorskip("mlflow.tracking")
    store = f"sqlite:///{tmp_path}/mlflow.db"
    make = lambda resume: MLflow(store, "study", run_name="first", config={"lr": 0.1})  # noqa: E731
    fits = train_cut_twice(make, tmp_path)
    client = tracking.MlflowClient(tracking_uri=store)
    runs = client.search_runs([client.get_experiment_by_name("study").experiment_id], order_by=["start_time ASC"])
    assert [run.info.status for run in runs] == ["RUNNING", "RUNNING", "FINISHED"]
    data, run_id = runs[-1].data, runs[-1].info.run_id
    assert data.params == {"lr": "0.1", "n_members": "3", "max_epochs": "6"}
    held = {}
    for key in data.metrics:
        member, name = key.removeprefix("member_").split("/")
        history = sorted(client.get_metric_history(run_id, key), key=lambda metric: metric.step)
        held[int(member), name] = [(metric.step, repr(metric.value)) for metric in history]
    assert held == histories(fits)
    assert [data.tags[f"member_{member}.status"] for member in range(3)] == [fit.status for fit in fits]
    assert [data.tags.get(f"member_{member}.failure") for member in range(3)] == [fit.failure for fit in fits]


def test_mlflow_gets_names_that_it_allows_and_that_stay_apart():
    names = ["train_loss", "gradient_norm/0.weight", "a/b[0]", "a/b(0)", 'a\nb,"c"', "a//b", "a/b/", "../a", "/a", "é"]
    told = [allowed_name(name) for name in names]
    assert told[:2] == names[:2]
    assert len(set(told)) == len(names)
    for name in told:  # the rules of its store
        assert re.fullmatch(r"[/\w.\- :]+", name)
        whole = f"member_0/{name}"
        assert str(PurePosixPath(whole)) == whole
        assert ".." not in PurePosixPath(whole).parts


def test_a_store_without_a_scheme_is_refused():
    with pytest.raises(UserError, match="`store` must be a URI such as sqlite:"):
        MLflow("mlruns", "study")


# --- what is not installed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "make"),
    [
        ("tensorboard", lambda: TensorBoard("events")),
        ("wandb", lambda: WeightsAndBiases("study")),
        ("mlflow", lambda: MLflow("http://localhost:9", "study")),
    ],
)
def test_a_missing_package_is_said_at_construction_with_its_extra(monkeypatch, module, make):
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"`{module}` is not installed.*pip install 'qfml\[track\]'"):
        make()


def test_the_extra_brings_every_package():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert {"tensorboard", "wandb", "mlflow-skinny", "alembic"} <= {text.split(">=")[0] for text in extras["track"]}


def test_the_trackers_load_no_package_before_they_are_constructed():
    code = "import sys, qfml.engine.tracking; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"tensorboard", "torch.utils.tensorboard", "wandb", "mlflow", "alembic"} & set(done.stdout.split()) == set()


# --- nothing is sent ----------------------------------------------------------------------------------------------

CALLS = """
import json, os, socket, sys, threading
asked = []
def look_up(host, *args, **kwargs):
    asked.append(host)
    raise OSError("no network")
socket.getaddrinfo = look_up
from qfml.engine.tracking import MLflow
tracker = MLflow("sqlite:///mlflow.db", "study")
tracker.begin(1, 1)
tracker.epoch(0, {"epoch": 1, "train_loss": 0.5}, True)
tracker.end([])
for thread in threading.enumerate():
    if thread.name == "GetTelemetryConfig":
        thread.join()
print(json.dumps([asked, os.environ.get("MLFLOW_DISABLE_TELEMETRY")]))
"""


@pytest.mark.slow  # makes a database
def test_mlflow_asks_no_server_for_a_local_store(tmp_path):
    pytest.importorskip("mlflow.tracking")
    told = {"CI", "PYTEST_CURRENT_TEST", "GITHUB_ACTIONS", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"}
    environment = {name: value for name, value in os.environ.items() if name not in told} | {"HOME": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", CALLS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [[], None]
    assert {path.name for path in tmp_path.iterdir()} <= {"mlflow.db", "mlruns"}


def test_services_are_called_without_their_telemetry_and_the_environment_is_put_back(monkeypatch):
    pytest.importorskip("wandb")
    seen = []

    class Run:
        def define_metric(self, name, step_metric):
            seen.append((name, step_metric))

        def log(self, values):
            seen.append(values)

    def init(**settings):
        seen.append(os.environ["WANDB_ERROR_REPORTING"])
        return Run()

    monkeypatch.delenv("WANDB_ERROR_REPORTING", raising=False)
    tracker = WeightsAndBiases("study", folder=".")
    monkeypatch.setattr(tracker._wandb, "init", init)
    tracker.begin(1, 2)
    assert "WANDB_ERROR_REPORTING" not in os.environ
    tracker.epoch(3, {"epoch": 1, "train_loss": 0.5}, False)  # a member that joined
    tracker.epoch(3, {"epoch": 2, "train_loss": 0.4}, True)
    assert seen == [
        "false",
        ("member_3/*", "member_3/epoch"),
        {"member_3/epoch": 1, "member_3/train_loss": 0.5},
        {"member_3/epoch": 2, "member_3/train_loss": 0.4},
    ]
