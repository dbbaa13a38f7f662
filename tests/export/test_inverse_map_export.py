"""An inverse map as ONNX: what it knows, what it refuses, and that a run exports the map that it has used."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import torch
from formula_smile import EXPIRIES, STRIKES, FormulaSmile

import qfml
from qfml.calibration import CALIBRATION_MODELS
from qfml.calibration import inverse as inverse_module
from qfml.calibration.inverse import EDGE, InverseMap, InverseTraining
from qfml.calibration.layout import Layout
from qfml.errors import CheckpointError, DataError, UserError
from qfml.export import export_run, load_exported

LAYOUT = Layout(EXPIRIES, (tuple(np.log(STRIKES)),), widest=50.0)
SMALL = InverseTraining(
    n_surfaces=800,
    network=qfml.MLP(hidden=(16,), activation="silu"),
    n_seeds=1,
    max_epochs=5,
    batch_size=64,
    lr=3e-2,
    n_judged=20,
)


@pytest.fixture(scope="module")
def inverse():
    """With answers at the edge of its box, too: the parameters are larger than training made them."""
    trained = InverseMap.train(FormulaSmile(), LAYOUT, SMALL)
    return dataclasses.replace(trained, parameters=2 * trained.parameters)


@pytest.fixture(scope="module")
def place(inverse, tmp_path_factory):
    """A directory with the map, and with a calibration that has used it."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "run").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CALIBRATION_MODELS, FormulaSmile.kind, FormulaSmile)
        inverse.save(folder / "map")
        yield folder


def written(folder, digest, named="map", networks=None):
    """The files of a finished calibration."""
    (folder / "run" / "config.yaml").write_text(f"task: calibration\ninverse: {named}\n")
    networks = {"inverse": {"path": "map", "hash": digest}} if networks is None else networks
    (folder / "run" / "metrics.json").write_text(json.dumps({"config_hash": "ab12", "networks": networks}))
    (folder / "run" / "inputs.json").write_text(json.dumps({"directory": str(folder), "hashes": {}}))


@pytest.fixture(scope="module")
def exported(inverse, place):
    written(place, inverse.hash)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        (path,) = export_run("run", "out", say=str)
        return load_exported(path)


def test_inside_is_what_a_calibration_does_not_warn_of(inverse, exported):
    made = inverse_module._surfaces(FormulaSmile(), LAYOUT, inverse.box, SMALL, n=400, seed=5)
    vols = torch.cat([made.vols, made.vols[:50] * 20, made.vols[:50] / 20])
    found = exported.predict(vols.flatten(1).numpy(), errors="flag")
    parameters = inverse._parameters(vols).numpy()
    np.testing.assert_allclose(found["parameters"], parameters, rtol=1e-4, atol=1e-5)
    low, high, log = (np.array(ends) for ends in (inverse.box.low, inverse.box.high, inverse.box.log))
    place = np.where(log, np.log(np.abs(parameters) / np.where(log, low, 1)) / np.log(np.where(log, high / low, 2)),
                     (parameters - low) / (high - low))  # fmt: skip
    x = np.log(vols.flatten(1).numpy()).astype(np.float32)
    trained = np.log(inverse_module._surfaces(FormulaSmile(), LAYOUT, inverse.box, SMALL).vols.flatten(1).numpy())
    trained = trained.astype(np.float32)
    seen = ((x >= trained.min(0)) & (x <= trained.max(0))).all(1)
    at_the_edge = ((place < EDGE) | (place > 1 - EDGE)).any(1)
    undecided = (np.minimum(np.abs(place - EDGE), np.abs(place - 1 + EDGE)) < 1e-4).any(1)
    assert np.array_equal(found["inside"][~undecided], (seen & ~at_the_edge)[~undecided])
    assert found["inside"].sum() > 20
    assert not found["inside"][400:].any()
    assert (at_the_edge & seen).any(), "a case of each kind"


def test_what_lies_outside_is_refused_with_the_reason(inverse, exported):
    middle = np.exp(0.5 * (inverse.lowest + inverse.highest).double().numpy())[None]
    far = middle.copy()
    far[0, 3] = 40.0
    with pytest.raises(DataError, match=r"outside of what the map was trained on.*vol\[.*\] = 40 is not within"):
        exported.predict(far)
    wrong = exported.predict(-middle, errors="flag")
    assert np.isnan(wrong["parameters"]).all()
    assert not wrong["inside"].any()
    trained_on = exported.metadata["trained_on"]
    np.testing.assert_allclose(trained_on["lowest"], np.exp(inverse.lowest.double().numpy()))
    np.testing.assert_allclose(trained_on["highest"], np.exp(inverse.highest.double().numpy()))


def test_a_run_exports_the_map_that_it_has_used(inverse, exported):
    about = exported.metadata
    assert (about["map_hash"], about["config_hash"]) == (inverse.hash, "ab12")


def test_a_run_exports_no_other_map(inverse, place, monkeypatch):
    run, out = place / "run", place / "nothing"
    monkeypatch.chdir(place)
    for networks in ({}, [], {"inverse": 3}, {"inverse": {"hash": None}}):
        written(place, inverse.hash, networks=networks)
        with pytest.raises(UserError, match=r"lacks the hash of the inverse map.*damaged; run it again"):
            export_run(run, out)
    written(place, inverse.hash, named=5)
    with pytest.raises(UserError, match=r"config\.yaml is damaged: `inverse` must be a folder, got 5"):
        export_run(run, out)
    written(place, inverse.hash)
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    started = re.escape(str(place))
    with pytest.raises(UserError, match=rf"folder map, which is not seen from .*elsewhere; .*started in {started}:"):
        export_run(run, out)
    (run / "inputs.json").write_text("[")
    with pytest.raises(UserError, match=r"not seen from .*elsewhere: export the run from"):
        export_run(run, out)
    other = dataclasses.replace(inverse, parameters=inverse.parameters * 1.01)
    other.save("map")  # another map where the first one is looked for
    with pytest.raises(CheckpointError, match=f"{other.hash}.*{inverse.hash}"):
        export_run(run, out)
    other.save(run / "inverse")  # in place of the map that the run has trained itself
    with pytest.raises(CheckpointError, match=f"{other.hash}.*{inverse.hash}"):
        export_run(run, out)
    shutil.rmtree(run / "inverse")
    assert not out.exists()
