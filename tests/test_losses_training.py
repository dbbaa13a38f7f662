"""Each registered loss trains a network to what it is for; a member's result is its solo result, to the last bit."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import qfml
from qfml.backtest import Direct, Sign
from qfml.data import TimeDataset
from qfml.losses import LOSSES, Loss, PnLLoss
from qfml.splits import WalkForward

N = 260
CLASSES = ("bce", "weighted_bce", "focal", "cross_entropy")
EXAMPLES: dict[str, Loss] = {
    loss.kind: loss
    for loss in (
        qfml.MSE(),
        qfml.MAE(),
        qfml.Huber(delta=0.5),
        qfml.Pinball(level=0.2),
        qfml.BCE(),
        qfml.WeightedBCE(class_weight=(1.0, 4.0)),
        qfml.Focal(gamma=2.0),
        qfml.NegativeSharpe(cost_bps=5.0),
        qfml.ExpectedShortfall(cost_bps=5.0, tail=0.8),
        qfml.EntropicRisk(cost_bps=5.0, risk_aversion=20.0),
        qfml.MeanVariance(cost_bps=5.0, risk_aversion=20.0),
        qfml.CrossEntropy(n_classes=2),
        qfml.Quantiles(levels=(0.2, 0.8)),
        qfml.Twin(label_scale=1.0, gradient_scale=(1.0,) * 5),
    )
}


@dataclass(frozen=True)
class Case:
    """Two assets whose labels follow their first feature, and a trainer for the loss."""

    loss: Loss
    ds: TimeDataset
    trainer: qfml.Trainer


def case(kind: str, max_epochs: int = 4) -> Case:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N, 5))
    y = X[:, 0] + 0.3 * rng.standard_normal(N)
    loss = EXAMPLES[kind]
    if kind in CLASSES:
        y = (y > 0.5).astype(float)
    elif isinstance(loss, PnLLoss):
        y = 0.01 * y
    time = np.repeat(np.datetime64("2020-01-01") + np.arange(N // 2), 2)
    weight = rng.uniform(0.5, 2.0, N)
    slopes = np.tile([1.0, 0.0, 0.0, 0.0, 0.0], (N, 1)) if loss.differential else None
    group = np.tile(["a", "b"], N // 2)
    ds = TimeDataset(X, y, time=time, label_end=time + 1, group=group, weight=weight, label_gradient=slopes)
    batch_size = 40 if loss.additive else None
    return Case(loss, ds, qfml.Trainer(max_epochs=max_epochs, batch_size=batch_size, optimizer=qfml.AdamW(lr=1e-2)))


def member(seed: int, activation: str = "relu") -> qfml.Member:
    """Rows, validation rows and learning rate of its own."""
    start = 2 * seed
    train, val = np.arange(start, start + 190), np.arange(start + 190, start + 230)
    return qfml.Member(qfml.MLP(hidden=(9, 6), activation=activation), train, val, seed=seed, lr=0.003 * (1 + seed))


def smooth(loss: Loss) -> str:
    """The activation: derivatives are learned by a network that has some."""
    return "tanh" if loss.differential else "relu"


def test_each_registered_loss_has_an_example():
    assert EXAMPLES.keys() == LOSSES.keys()


# one sum and one loss of the whole sample in the fast tier
@pytest.mark.parametrize(
    "kind",
    [kind if kind in ("mse", "expected_shortfall") else pytest.param(kind, marks=pytest.mark.slow) for kind in LOSSES],
)
def test_a_member_of_a_stack_of_3_or_7_equals_the_one_trained_alone(kind):
    this = case(kind)
    members = [member(seed, smooth(this.loss)) for seed in range(7)]
    alone = [this.trainer.fit_many([one], this.loss, this.ds)[0] for one in members]
    for size in (3, 7):
        stacked = this.trainer.fit_many(members[:size], this.loss, this.ds)
        for fit, solo in zip(stacked, alone):
            assert torch.equal(fit.parameters, solo.parameters)
            assert fit.history == solo.history
            assert np.array_equal(fit.predict(this.ds), solo.predict(this.ds))


@pytest.mark.parametrize(
    "kind",
    [
        kind
        if kind in ("mse", "bce", "quantiles", "expected_shortfall")
        else pytest.param(kind, marks=pytest.mark.slow)
        for kind in LOSSES
    ],
)
def test_a_network_learns_what_the_loss_is_for(kind):
    this = case(kind, max_epochs=60)
    fit = this.trainer.fit(
        qfml.MLP(hidden=(8,), activation=smooth(this.loss)), this.loss, this.ds, train=np.arange(200)
    )
    losses = [record["train_loss"] for record in fit.history]
    assert losses[-1] < losses[0]
    predicted, y, signal = fit.predict(this.ds), this.ds.y.numpy(), this.ds.features[:, 0].numpy()
    if predicted.ndim == 2:  # the upper class, or the upper quantile
        predicted = predicted[:, 1]
    assert np.corrcoef(predicted, signal)[0, 1] > 0.6
    if kind == "pinball":
        assert 0.1 < (y[:200] < predicted[:200]).mean() < 0.3  # its level is 0.2
    elif kind == "quantiles":
        assert 0.7 < (y[:200] < predicted[:200]).mean() < 0.9  # its upper level is 0.8
    elif kind in CLASSES:  # probabilities of the labels as they are, whatever the weights and the focus
        assert predicted[:200].mean() == pytest.approx(y[:200].mean(), abs=0.05)
    elif isinstance(this.loss, PnLLoss):
        assert bool((np.abs(predicted) <= 1).all())
        assert (predicted[200:] * y[200:]).mean() > 0.003


@pytest.mark.parametrize("kind", [kind for kind, loss in EXAMPLES.items() if not loss.additive])
def test_micro_batches_do_not_change_a_loss_of_the_whole_sample(kind):
    this = case(kind)
    whole = this.trainer.fit_many([member(0)], this.loss, this.ds)[0]
    split = qfml.Trainer(max_epochs=4, batch_size=None, optimizer=qfml.AdamW(lr=1e-2), micro_batch_size=48)
    parts = split.fit_many([member(0)], this.loss, this.ds)[0]
    torch.testing.assert_close(parts.parameters, whole.parameters, rtol=1e-4, atol=1e-5)  # sums in another order
    with pytest.raises(ValueError, match=f"`{kind}` is a loss of the whole sample: set `batch_size` to None, got 40"):
        qfml.Trainer(max_epochs=1, batch_size=40).fit_many([member(0)], this.loss, this.ds)


def test_rows_in_any_order_are_put_in_order_of_asset_and_time():
    """Turnover is between an asset's own neighbours in time: the loss by a loop over assets and periods."""
    ds, loss = case("negative_sharpe").ds, qfml.NegativeSharpe(cost_bps=500.0)
    rng, train, val = np.random.default_rng(1), np.arange(190), np.arange(190, 250)
    still = qfml.Trainer(max_epochs=1, batch_size=None, optimizer=qfml.SGD(lr=1e-12))
    network = qfml.MLP(hidden=(9,))
    fit = still.fit(network, loss, ds, train=train, val=val)
    mixed = still.fit(network, loss, ds, train=rng.permutation(train), val=rng.permutation(val))
    assert torch.equal(fit.parameters, mixed.parameters)
    assert fit.history == mixed.history
    position, y, weight = fit.predict(ds), ds.y.numpy(), ds.weight.numpy()
    for name, rows in (("train_loss", train), ("val_loss", val)):
        held, pnl, weights = {0: 0.0, 1: 0.0}, {}, {}
        for row in rows:  # by time, and asset after asset
            own, time = row % 2, row // 2
            earned = position[row] * y[row] - 0.05 * abs(position[row] - held[own])
            pnl[time] = pnl.get(time, 0.0) + weight[row] * earned
            weights[time] = weights.get(time, 0.0) + weight[row]
            held[own] = position[row]
        series = np.array(list(pnl.values())) / max(weights.values())
        assert fit.history[0][name] == pytest.approx(-series.mean() / series.std(ddof=1), rel=1e-4)


def test_labels_of_another_task_are_refused_before_training():
    this = case("mse")
    for kind in CLASSES:
        labels = "class ids 0 to 1 as labels" if kind == "cross_entropy" else r"labels in \[0, 1\]"
        with pytest.raises(ValueError, match=f"`{kind}` needs {labels}"):
            this.trainer.fit(qfml.MLP(), EXAMPLES[kind], this.ds, train=np.arange(50))


@pytest.mark.parametrize("kind", ["expected_shortfall", "weighted_bce"])
def test_a_backtest_knows_what_the_prediction_means(kind):
    this = case(kind, max_epochs=1)
    means, rule = ("position", Direct()) if isinstance(this.loss, PnLLoss) else ("probability", Sign())
    time, y = np.datetime64("2020-01-01") + np.arange(N), this.ds.y.numpy()
    ds = TimeDataset(this.ds.features, y, time=time, label_end=time + 1, returns=0.01 * np.tanh(y))
    result = qfml.walk_forward(
        ds, splitter=WalkForward(train_size=150, test_size=100), network=qfml.MLP(hidden=(4,)), loss=this.loss,
        trainer=this.trainer, positions=rule, cost_bps=1.0, n_seeds=1, seed=0, n_bootstrap=0, baselines=(),
    )  # fmt: skip
    assert result.metrics["conventions"]["prediction_means"] == means
