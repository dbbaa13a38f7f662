"""Exporting a finished run by its folder, and what the reader of the files refuses."""

import ast
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from network_stacks import made_up_data

import qfml
from qfml.data import Standardise, TimeDataset
from qfml.errors import CheckpointError, DataError, UserError
from qfml.export import export_run, load_exported, reader
from qfml.export.model_file import written
from qfml.splits import WalkForward


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A finished walk-forward of two folds and two seeds, its folder and its data."""
    made = made_up_data(n=200)
    x, y = made.features.numpy(), made.y.numpy()
    ds = TimeDataset(x, y, time=made.time, label_end=made.label_end, returns=0.01 * y)
    result = qfml.walk_forward(
        ds,
        splitter=WalkForward(train_size=100, test_size=50),
        network=qfml.MLP(hidden=(4,)),
        trainer=qfml.Trainer(max_epochs=1, batch_size=64),
        loss=qfml.MSE(),
        transforms=(Standardise(),),
        n_seeds=2,
        cost_bps=1.0,
        n_bootstrap=10,
        baselines=(),
    )
    return result.save(tmp_path_factory.mktemp("runs") / "run"), result, ds


@pytest.fixture(scope="module")
def exported(saved):
    """The file of that run, and what was said."""
    said = []
    (path,) = export_run(saved[0], say=said.append)
    return path, said


def test_the_run_s_file_predicts_what_its_last_fold_predicts(saved, exported):
    folder, result, ds = saved
    path, said = exported
    assert path == folder / "model.onnx"
    assert len(said) == 1
    assert "largest difference" in said[0]
    model = load_exported(path)
    assert model.input_names == ds.feature_names
    assert model.metadata["config_hash"] == result.metrics["config_hash"]
    last = max(each.fold for each in result.fits)
    assert model.metadata["members"] == [{"fold": last, "seed": seed} for seed in (0, 1)]
    truth = np.mean([each.fit.predict(ds) for each in result.fits if each.fold == last], axis=0)
    np.testing.assert_allclose(model.predict(ds.features.numpy())["prediction"], truth, atol=1e-6)


@pytest.mark.slow
def test_single_networks_by_fold_and_seed(saved, tmp_path):
    folder, result, ds = saved
    x = ds.features.numpy()
    files = export_run(folder, tmp_path / "all", "all", say=str)
    assert [path.name for path in files] == [f"model-fold{each.fold}-seed{each.seed}.onnx" for each in result.fits]
    for each, path in zip(result.fits, files):
        found = load_exported(path).predict(x)["prediction"]
        np.testing.assert_allclose(found, each.fit.predict(ds), atol=1e-6)
    by_text, by_pair = (export_run(folder, tmp_path / str(i), m, say=str) for i, m in enumerate(["0:1", (0, 1)]))
    found = [load_exported(path).metadata["members"] for path in (*by_text, *by_pair)]
    assert found == [[{"fold": 0, "seed": 1}]] * 2
    (seed,) = export_run(folder, tmp_path / "seed", 1, say=str)
    assert load_exported(seed).metadata["members"] == [{"fold": max(each.fold for each in result.fits), "seed": 1}]


def test_unfinished_damaged_and_unknown_are_refused(saved, tmp_path):
    folder = saved[0]
    with pytest.raises(UserError, match="no network 9:9"):
        export_run(folder, member="9:9")
    for odd in ("../../x", "0:0:0", "-1", "", None.__class__, 1.5, "\u0661"):
        with pytest.raises(UserError, match="`member`"):
            export_run(folder, member=odd)
    for nothing, told in ((tmp_path, r"no finished run in .*config\.yaml"), (tmp_path / "nowhere", "no run folder")):
        with pytest.raises(UserError, match=told) as refused:
            export_run(nothing)
        assert "resume" not in str(refused.value)  # which would answer the same
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"no finished run.*qfml resume"):
        export_run(copy)
    shutil.rmtree(copy)
    shutil.copytree(folder, copy)
    content = bytearray((copy / "model" / "tensors.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model" / "tensors.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="SHA-256"):
        export_run(copy)
    (copy / "metrics.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        export_run(copy)
    good = json.loads((folder / "metrics.json").read_text())
    for bad in ([], 3, None, {}, good | {"data": None}, good | {"data": {"features": 5}}, good | {"config_hash": [1]}):
        (copy / "metrics.json").write_text(json.dumps(bad))
        shutil.copy2(folder / "model" / "tensors.safetensors", copy / "model" / "tensors.safetensors")
        with pytest.raises(UserError, match=r"metrics\.json .*damaged.*run it again"):
            export_run(copy)
    search = tmp_path / "search"
    shutil.copytree(folder, search / "winner")
    (search / "config.yaml").write_text("task: walk_forward\ntune: {}\n")
    for metrics in (False, True):  # unfinished, and finished
        if metrics:
            (search / "metrics.json").write_text("{}")
        with pytest.raises(UserError, match=r"is a search.*name its winner, .*search/winner"):
            export_run(search)
    shutil.rmtree(search / "winner")
    with pytest.raises(UserError, match=r"no winner yet.*qfml resume"):
        export_run(search)
    calibration = tmp_path / "calibration"
    calibration.mkdir()
    (calibration / "metrics.json").write_text("{}")
    (calibration / "config.yaml").write_text("task: calibration\n")
    with pytest.raises(UserError, match="holds no network"):
        export_run(calibration)


def test_a_changed_file_is_refused(exported, tmp_path):
    content = exported[0].read_bytes()
    for place in (0, 30, len(content) // 2, len(content) - 1):
        (tmp_path / "bad.onnx").write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(CheckpointError):
            load_exported(tmp_path / "bad.onnx")
    for other in (b"", b"hello", content[:-5], content + content, b"\x80\x04cos\nsystem\n."):
        (tmp_path / "bad.onnx").write_bytes(other)
        with pytest.raises(CheckpointError):
            load_exported(tmp_path / "bad.onnx")
    os.mkfifo(tmp_path / "pipe.onnx")  # nobody writes into it: reading would wait for ever
    for path in (tmp_path / "nowhere.onnx", tmp_path, tmp_path / "pipe.onnx"):
        with pytest.raises(CheckpointError, match="cannot read"):
            load_exported(path)


def test_names_shapes_and_numbers_are_checked(exported):
    model = load_exported(exported[0])
    names = model.input_names
    columns = {name: np.arange(3.0) for name in names}
    by_name = model.predict(dict(reversed(columns.items())))["prediction"]
    assert np.array_equal(by_name, model.predict(np.stack(list(columns.values()), 1))["prediction"])
    assert model.predict(dict.fromkeys(names, 0.5))["prediction"].shape == (1,)
    assert model.predict(np.empty((0, len(names))))["prediction"].shape == (0,)
    wrong = {
        "missing": dict.fromkeys(names[1:], 1.0),
        "unknown: 'spot'": columns | {"spot": 1.0},
        "one length": columns | {names[0]: np.arange(4.0)},
        "must be numbers": [["a"] * len(names)],
        "shape": np.zeros((3, len(names) + 1)),
        r"got \(5,\)": np.zeros(5),
        "not a finite number in row 1": [[0.0] * 5, [np.nan] * 5],
        "row 0": [[1e300] * 5],
    }
    for message, inputs in wrong.items():
        with pytest.raises(DataError, match=message):
            model.predict(inputs)
    with pytest.raises(DataError, match="`errors`"):
        model.predict(columns, errors="ignore")
    with pytest.raises(DataError, match="no input"):
        model.predict(columns, units={"spot": "cash"})


def test_files_are_replaced_all_or_none(exported, tmp_path, monkeypatch):
    content = exported[0].read_bytes()
    paths = [tmp_path / name for name in ("a.onnx", "b.onnx", "c.onnx")]
    for path in paths[1:]:
        path.write_bytes(b"older " + path.name.encode())
    other = tmp_path / "other.onnx"
    other.mkdir()

    def found():
        return {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    before, rename, failed = found(), os.replace, []
    with pytest.raises(UserError, match=r"cannot write .*other\.onnx: it is a folder"):
        written([(paths[0], content), (other, content)])
    assert found() == before

    def fails_once(source, target):
        if target == paths[1] and not failed:  # its older file lies aside, and a.onnx is there already
            failed.append(target)
            raise PermissionError(1, "not permitted", str(target))
        rename(source, target)

    monkeypatch.setattr(os, "replace", fails_once)
    with pytest.raises(UserError, match=r"cannot write .*b\.onnx: not permitted"):
        written([(paths[0], content), (paths[1], content)], outdated=[paths[2]])
    assert found() == before
    monkeypatch.undo()
    for left in (
        ".a.onnx.0123abcd.new",
        ".b.onnx.0123abcd.old",
        ".c.onnx.89abcdef.old",
    ):  # by an export that was killed
        (tmp_path / left).write_bytes(b"left")
    written([(paths[0], content), (paths[1], content)], outdated=[paths[2]])
    assert found() == {"a.onnx": content, "b.onnx": content}


def test_the_reader_needs_numpy_and_onnxruntime_alone():
    tree = ast.parse(Path(reader.__file__).read_text())
    imported = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in ast.walk(tree)
                if isinstance(node, (ast.Import, ast.ImportFrom))}  # fmt: skip
    standard = {"__future__", "hashlib", "json", "re", "collections.abc", "pathlib", "typing"}
    assert imported == standard | {"numpy", "onnxruntime", "qfml.errors"}


def test_plain_onnxruntime_reads_the_metadata(exported):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(exported[0]))
    found = json.loads(session.get_modelmeta().custom_metadata_map["qfml"])
    assert found["parity"]["points"] == 10_000
    assert found["parity"]["largest_difference"] <= 1e-5
