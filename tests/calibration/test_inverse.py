"""The map from surfaces to parameters: what it is trained on, what it finds, what its files keep."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from formula_smile import EXPIRIES, STRIKES, FormulaSmile, history_of, quotes_at, surface_of
from scipy import stats

from qfml.calibration import inverse as inverse_module
from qfml.calibration.calibrate import calibrate
from qfml.calibration.inverse import Box, InverseMap, InverseTraining
from qfml.calibration.layout import Layout
from qfml.calibration.model import CALIBRATION_MODELS, Quotes
from qfml.calibration.surface import as_quotes
from qfml.calibration.walk_forward import walk_forward_calibration
from qfml.errors import CheckpointError, ConfigError
from qfml.networks import MLP

LAYOUT = Layout(EXPIRIES, (tuple(np.log(STRIKES)),), widest=50.0)
SMALL = InverseTraining(
    n_surfaces=800,
    network=MLP(hidden=(32, 32), activation="silu"),
    max_epochs=10,
    batch_size=64,
    lr=3e-2,
    n_judged=200,
)


@pytest.fixture(scope="module")
def trained() -> InverseMap:
    return InverseMap.train(FormulaSmile(), LAYOUT, SMALL)


def fresh(n: int) -> tuple[torch.Tensor, Quotes]:
    """Parameters and surfaces of the formula that no training has seen."""
    x = Box.of(FormulaSmile()).inside(Box.of(FormulaSmile()).draw(n, seed=77))
    expiry, k = (grid.flatten() for grid in np.meshgrid(EXPIRIES, np.log(STRIKES), indexing="ij"))
    quotes = quotes_at(k, expiry, n)
    vols = FormulaSmile().vols(x, quotes)
    kept = (vols > 0).all(1)  # the formula knows vols below 0 too
    return x[kept], Quotes(**(vars(quotes.at(kept)) | {"vol": vols[kept]}))


def test_parameters_of_fresh_surfaces_give_back_their_vols(trained: InverseMap) -> None:
    x, quotes = fresh(300)
    found = trained.start(quotes)
    middle = trained.box.inside(torch.zeros_like(x))
    error, blind = (
        (FormulaSmile().vols(at, quotes) - quotes.vol).square().mean(1).sqrt().median() for at in (found, middle)
    )
    assert error < 0.02
    assert error < 0.2 * blind
    assert 1e4 * error == pytest.approx(trained.report["vol_error_bps"]["0.5"], rel=0.3)
    low, high = (torch.tensor(ends) for ends in (trained.box.low, trained.box.high))
    assert ((found > low) & (found < high)).all()


def test_prediction_does_not_depend_on_the_batch_or_on_how_quotes_are_listed(trained: InverseMap) -> None:
    _, quotes = fresh(5)
    order = torch.randperm(quotes.vol.shape[1], generator=torch.Generator().manual_seed(0))
    shuffled = Quotes(**{name: value[:, order] for name, value in vars(quotes).items()})
    torch.testing.assert_close(trained.start(shuffled), trained.start(quotes), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(trained.start(quotes.at(slice(0, 1))), trained.start(quotes)[:1], rtol=1e-4, atol=1e-6)


def test_missing_quotes_are_filled_in(trained: InverseMap) -> None:
    _, quotes = fresh(50)
    weight = quotes.weight.clone()
    weight[:, 1::7] = 0.0
    thinned = Quotes(**(vars(quotes) | {"weight": weight, "vol": torch.where(weight > 0, quotes.vol, torch.nan)}))
    error = FormulaSmile().vols(trained.start(thinned), quotes) - quotes.vol
    assert error.square().mean(1).sqrt().median() < 0.025


def test_calibration_by_the_map_and_polished_from_it(trained: InverseMap) -> None:
    surface = surface_of([0.25, -0.2, 0.3, 1.0])
    read_off = calibrate(surface, FormulaSmile(), "inverse", inverse=trained, max_steps=0)
    assert read_off.params["level"] == pytest.approx(0.25, abs=0.04)
    polished = calibrate(surface, FormulaSmile(), inverse=trained)
    assert polished.method == "polished"
    assert polished.params["decay"] == pytest.approx(1.0, rel=1e-5)


def test_box_has_the_ranges_and_slopes_that_it_says() -> None:
    box = Box(("a", "b"), (0.1, -1.0), (10.0, 3.0), (True, False))
    z = box.draw(4096, seed=3)
    x = box.inside(z).numpy()
    assert stats.kstest(np.log10(x[:, 0]), stats.uniform(-1, 2).cdf).pvalue > 0.9  # Sobol points: more even than chance
    assert stats.kstest(x[:, 1], stats.uniform(-1, 4).cdf).pvalue > 0.9
    assert torch.equal(box.draw(10, seed=3), z[:10])
    assert not torch.equal(box.draw(10, seed=4), z[:10])
    step = 1e-6
    some = z[:50]
    slope = (box.inside(some + step) - box.inside(some - step)) / (2 * step)
    torch.testing.assert_close(box.slope(some), slope, rtol=1e-6, atol=1e-8)
    far = box.inside(torch.tensor([[-40.0, 40.0]], dtype=torch.float64))
    assert far[0, 0] > 0.1
    assert far[0, 1] < 3.0


def test_loss_is_the_mean_square_error_of_the_vols_to_first_order() -> None:
    model, box = FormulaSmile(), Box.of(FormulaSmile())
    made = inverse_module._surfaces(model, LAYOUT, box, SMALL, n=64)
    loss = inverse_module._VolError.of(made)
    rows = torch.arange(64)[None].float()
    shift = 1e-3 * torch.randn(1, 64, 4, generator=torch.Generator().manual_seed(0))
    output = made.z[None].float() + shift
    moved = model.vols(box.inside(made.z + shift[0].double()), made.quotes) - made.quotes.vol
    relative = (moved / made.quotes.vol.mean(1, keepdim=True)).square().mean(1)
    size = made.metric.diagonal(dim1=1, dim2=2).mean()
    ridge = inverse_module.RIDGE * shift[0].double().square().sum(1)
    torch.testing.assert_close(loss.rows(output, rows)[0].double(), relative / size + ridge, rtol=0.02, atol=1e-9)
    leaf = output.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(loss.rows(leaf, rows).sum(), leaf)
    torch.testing.assert_close(loss.slopes(output, rows), slopes, rtol=1e-3, atol=1e-9)


def test_saved_map_answers_alike_and_is_refused_once_changed(
    trained: InverseMap, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="FormulaSmile is none"):
        trained.save(tmp_path / "unknown")
    monkeypatch.setitem(CALIBRATION_MODELS, FormulaSmile.kind, FormulaSmile)
    folder = trained.save(tmp_path / "map")
    loaded = InverseMap.load(folder)
    _, quotes = fresh(20)
    assert torch.equal(loaded.start(quotes), trained.start(quotes))
    assert loaded.report == trained.report
    assert loaded.layout == LAYOUT
    with pytest.raises(ConfigError, match="exists"):
        trained.save(folder)
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"version": 99}))
    with pytest.raises(CheckpointError, match="SHA-256"):
        InverseMap.load(folder)
    with pytest.raises(CheckpointError):
        InverseMap.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"version": 99}, "version 99"),
        ({"version": 1}, "version 1 .*train it anew"),
        ({"what": "surrogate"}, "no inverse map"),
        ({"model": {"kind": "?"}}, "known"),
    ],
)
def test_map_of_another_kind_or_version_is_refused(
    trained: InverseMap, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], word: str
) -> None:
    monkeypatch.setitem(CALIBRATION_MODELS, FormulaSmile.kind, FormulaSmile)
    tensors, state = inverse_module.read_folder(trained.save(tmp_path / "map"))
    inverse_module.write_folder(tmp_path / "other", tensors, state | change)
    with pytest.raises(CheckpointError, match=word):
        InverseMap.load(tmp_path / "other")


def test_vols_that_the_training_never_came_to_are_said(trained: InverseMap) -> None:
    surface, far = surface_of([0.25, -0.2, 0.3, 1.0]), surface_of([4.0, -0.2, 0.3, 1.0])
    n = LAYOUT.n_places
    assert trained.answer(as_quotes([surface, far]))[1].tolist() == [0, n]
    for method in ("inverse", "polished"):
        found = calibrate([surface, far], FormulaSmile(), method, inverse=trained)
        said = [[line for line in lines if "extrapolates" in line] for lines in found.warnings]
        assert [len(lines) for lines in said] == [0, 1]
        assert f"the vols at {n} of {n} places of the surface lie outside" in said[1][0]
    made = inverse_module._surfaces(FormulaSmile(), LAYOUT, trained.box, SMALL)
    assert not trained._beyond(made.vols).any()
    edge = made.vols.amax(0, keepdim=True)
    assert not trained._beyond(edge).any()
    assert trained._beyond(edge * (1 + 1e-6)).all()


def test_settings_that_make_no_sense_are_refused(trained: InverseMap) -> None:
    with pytest.raises(ConfigError, match="`nu` is no parameter"):
        Box.of(FormulaSmile(), {"nu": (0.0, 1.0)})
    with pytest.raises(ConfigError, match="within its bounds"):
        Box.of(FormulaSmile(), {"level": (0.1, 3.0)})
    with pytest.raises(ConfigError, match="range of `bend`"):
        Box.of(FormulaSmile(), {"bend": (0.5, 0.5)})
    with pytest.raises(ConfigError, match="range of `bend` must be two numbers, low and high, got 3"):
        Box.of(FormulaSmile(), {"bend": 3.0})
    with pytest.raises(ConfigError, match=r"`model` 'hestn' is not known \(did you mean 'heston'"):
        InverseMap.train("hestn", LAYOUT, SMALL)
    with pytest.raises(ConfigError, match="`n_surfaces`"):
        InverseTraining(n_surfaces=5)
    with pytest.raises(ConfigError, match="the model has"):
        calibrate(surface_of([0.25, -0.2, 0.3, 1.0]), "heston", inverse=trained)


def test_answers_are_neither_moved_nor_silent_about_the_edge(
    trained: InverseMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small level on a logarithmic scale, far below a thousandth of the linear range."""
    surface = surface_of([0.25, -0.2, 0.3, 1.0])
    own = torch.tensor([[0.0101, -0.2, 0.3, 1.0]], dtype=torch.float64)
    monkeypatch.setattr(InverseMap, "answer", lambda self, quotes: (own, torch.zeros(1, dtype=torch.int64)))
    found = calibrate(surface, FormulaSmile(), "inverse", inverse=trained, max_steps=0)
    assert found.x.tolist() == own.tolist()
    assert any("`level` is at the lower edge of the inverse map's box, 0.1" in said for said in found.warnings[0])
    assert not any("`bend` is at the" in said for said in found.warnings[0])
    polished = calibrate(surface, FormulaSmile(), inverse=trained)
    said = "the network's start: `level` is at the lower edge of the inverse map's box, 0.1"
    assert polished.warnings[0][0].startswith(said)
    with pytest.raises(ConfigError, match="starts nowhere"):
        calibrate(surface, FormulaSmile(), "inverse", inverse=trained, start=own[0].tolist())


def test_every_day_of_a_walk_starts_from_the_map(trained: InverseMap) -> None:
    history = history_of([[0.25 + 0.05 * day, -0.2, 0.3, 1.0] for day in range(3)])
    found = walk_forward_calibration(history, FormulaSmile(), horizons=(1,), method="inverse", inverse=trained)
    assert found.metrics["n_failed"] == 0
    alone = [calibrate(day, FormulaSmile(), "inverse", inverse=trained).params["level"] for day in history]
    assert found.path("level")["value"].to_list() == pytest.approx(alone, rel=1e-12)


def test_surface_without_quotes_leaves_the_others_alone(trained: InverseMap) -> None:
    quotes = as_quotes([surface_of([0.25, -0.2, 0.3, 1.0]), surface_of([0.3, -0.2, 0.3, 1.0])])
    weight = quotes.weight.clone()
    weight[0] = 0.0
    found = calibrate(Quotes(**(vars(quotes) | {"weight": weight})), FormulaSmile(), inverse=trained)
    assert found.converged.tolist() == [False, True]
    assert found.params["level"][1] == pytest.approx(0.3, rel=1e-6)


def test_a_run_that_has_trained_a_map_stands_for_it(
    trained: InverseMap, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CALIBRATION_MODELS, FormulaSmile.kind, FormulaSmile)
    (tmp_path / "config.yaml").write_text("task: calibration\n")
    with pytest.raises(CheckpointError, match="holds no inverse map: its config has no `inverse_training`, or"):
        InverseMap.load(tmp_path)
    (tmp_path / "config.yaml").write_text("task: surrogate\n")
    with pytest.raises(CheckpointError, match="run of the task surrogate, which trains no inverse map"):
        InverseMap.load(tmp_path)
    trained.save(tmp_path / "inverse")
    assert InverseMap.load(tmp_path).hash == trained.hash
