"""Any optimizer of torch.optim through the engine: against bare torch loops, and resumed to the same bits."""

import numpy as np
import pytest
import torch

import qfml
from qfml.data import TimeDataset
from qfml.engine.optimizers import Step, TorchOptimizer, start_state
from qfml.engine.schedules import Exponential
from qfml.engine.stack import Layout
from qfml.errors import Interrupted, UserError

LAYOUT = Layout((("weight", (4, 6)), ("bias", (6,))))


class Counting(torch.optim.Optimizer):
    """Gradient descent whose rate falls with a count that its group keeps, and a mean that it keeps as a float."""

    def __init__(self, parameters, lr=1e-2):
        super().__init__(parameters, {"lr": lr, "count": 0, "largest": 0.0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["count"] += 1
            for value in group["params"]:
                if value.grad is None:
                    continue
                own = self.state[value]
                own["n"] = own.get("n", 0) + 1
                own["size"] = 0.5 * own.get("size", 0.0) + float(value.grad.abs().max())
                group["largest"] = max(group["largest"], own["size"])
                value.sub_(value.grad * group["lr"] / (group["count"] + own["size"] + group["largest"] + own["n"]))


FACTORIES = {
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.5, weight_decay=0.01),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.02, weight_decay=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, lr_decay=0.1),
    "adam amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.01, t0=5),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01),
    "sgd momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "counting": Counting,
    "groups": lambda p: torch.optim.Adam([{"params": p[:1]}, {"params": p[1:], "lr": 0.05}], lr=0.01),
}


def step(count, lr, weight_decay, **extra):
    return Step(np.array([count]), np.array([lr]), np.array([weight_decay]), LAYOUT, **extra)


def rows(seed=0):
    generator = torch.Generator().manual_seed(seed)
    flat, goal = torch.randn(2, 1, LAYOUT.width, generator=generator, dtype=torch.float64)
    return flat, goal


def bare(flat):
    return [value[0].clone().requires_grad_() for value in LAYOUT.views(flat).values()]


def run_bare(made, values, goal, n_steps=20, lrs=None):
    goals = [value[0] for value in LAYOUT.views(goal).values()]
    initial = [group["lr"] for group in made.param_groups]
    for count in range(n_steps):
        for group, own in zip(made.param_groups, initial):
            group["lr"] = own if lrs is None else own * lrs[count]
        for value, target in zip(values, goals):
            value.grad = (value.detach() - target) ** 3
        made.step()
    return values


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("scheduled", [False, True])
def test_20_steps_equal_a_bare_torch_loop(name, scheduled):
    optimizer = TorchOptimizer(FACTORIES[name])
    lrs = [0.9**count for count in range(20)] if scheduled else None
    flat, goal = rows()
    values = bare(flat)
    run_bare(FACTORIES[name](values), values, goal, lrs=lrs)
    state = start_state(optimizer, flat, LAYOUT)
    for count in range(20):
        lr = optimizer.lr * (lrs[count] if lrs else 1.0)
        optimizer.update(flat, (flat - goal) ** 3, state, step(count + 1, lr, optimizer.weight_decay))
        copies = {key: value.clone() for key, value in state.items()}  # what is kept is all that is needed
        state = copies
    for value, expected in zip(LAYOUT.views(flat).values(), values):
        torch.testing.assert_close(value[0], expected.detach(), rtol=1e-12, atol=1e-14)


def test_rates_of_groups_by_name_and_frozen_parameters():
    flat, goal = rows()
    values = bare(flat)
    theirs = torch.optim.AdamW([{"params": values[:1], "lr": 0.02, "weight_decay": 0.3}])
    run_bare(theirs, values[:1], goal)
    scale, decay = torch.ones(2, 1, LAYOUT.width, dtype=torch.float64)
    LAYOUT.views(scale)["weight"].fill_(2.0)
    LAYOUT.views(scale)["bias"].fill_(0.0)
    LAYOUT.views(decay)["weight"].fill_(3.0)
    optimizer = TorchOptimizer(lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1))
    state = start_state(optimizer, flat, LAYOUT)
    before = LAYOUT.views(flat)["bias"].clone()
    for count in range(20):
        own = step(count + 1, 0.01, 0.1, scale=scale, decay_scale=decay)
        optimizer.update(flat, (flat - goal) ** 3, state, own)
    torch.testing.assert_close(LAYOUT.views(flat)["weight"][0], values[0].detach(), rtol=1e-12, atol=1e-14)
    assert torch.equal(LAYOUT.views(flat)["bias"], before)


@pytest.mark.parametrize("name", FACTORIES)
def test_a_member_that_must_not_move_keeps_its_bits(name):
    flat, goal = rows()
    optimizer = TorchOptimizer(FACTORIES[name])
    state = start_state(optimizer, flat, LAYOUT)
    for count in range(3):
        optimizer.update(flat, (flat - goal) ** 3, state, step(count + 1, 0.01, 0.0))
    before, kept = flat.clone(), {key: value.clone() for key, value in state.items()}
    optimizer.update(flat, torch.zeros_like(flat), state, step(4, 0.01, 0.0, moves=torch.zeros(1, 1)))
    assert torch.equal(flat, before)
    assert all(torch.equal(kept[key], value) for key, value in state.items())
    optimizer.update(flat, (flat - goal) ** 3, state, step(5, 0.0, 0.0))
    assert torch.equal(flat, before)


def make_data():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 5)).astype(np.float32)
    time = np.datetime64("2010-01-01") + np.arange(300)
    return TimeDataset(X, np.tanh(X[:, 0] * X[:, 1]), time=time, label_end=time + 1)


def trainer(name, **settings):
    settings = {"max_epochs": 3, "batch_size": 80, "checkpoint_seconds": 0.0} | settings
    return qfml.Trainer(optimizer=TorchOptimizer(FACTORIES[name]), **settings)


def members(n=1):
    network, val = qfml.MLP(hidden=(8,)), np.arange(200, 300)
    return [qfml.Member(network, np.arange(150 + 10 * i), val, seed=i, lr=0.01 * (i + 1)) for i in range(n)]


class Stop(qfml.Callback):
    """As a signal would: after some epochs of all members together."""

    def __init__(self, after):
        self.left = after

    def epoch(self, member, record, stopped):
        self.left -= 1
        if self.left == 0:
            raise Interrupted(15)
        return False


@pytest.mark.parametrize("name", FACTORIES)
def test_a_resumed_training_has_the_bits_of_an_uninterrupted_one(tmp_path, name):
    ds = make_data()
    whole = trainer(name).fit_many(members(), qfml.MSE(), ds)[0]
    with pytest.raises(Interrupted):
        trainer(name).fit_many(members(), qfml.MSE(), ds, checkpoint_dir=tmp_path, callbacks=[Stop(2)])
    resumed = trainer(name).fit_many(members(), qfml.MSE(), ds, checkpoint_dir=tmp_path, resume=True)[0]
    assert torch.equal(whole.parameters, resumed.parameters)
    assert whole.history == resumed.history
    assert whole.history[-1]["train_loss"] < whole.history[0]["train_loss"]


def test_members_train_one_at_a_time_each_with_its_rate_and_it_is_said():
    ds, own = make_data(), trainer("nadam", schedule=Exponential(gamma=0.9))
    with pytest.warns(UserWarning, match=r"3 members are trained one at a time.*torch.optim.nadam.NAdam") as told:
        fits = own.fit_many(members(3), qfml.MSE(), ds)
    assert len(told) == 1
    for member, fit in zip(members(3), fits):
        alone = own.fit_many([member], qfml.MSE(), ds)[0]
        assert torch.equal(alone.parameters, fit.parameters)
        slower = qfml.Member(member.network, member.train, member.val, seed=member.seed, lr=member.lr / 2)
        assert not torch.equal(own.fit_many([slower], qfml.MSE(), ds)[0].parameters, fit.parameters)


def test_the_same_optimizer_of_ours_and_of_torch_train_alike():
    ds = make_data()
    theirs = TorchOptimizer(lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1))
    settings = {"max_epochs": 3, "batch_size": 50, "clip_norm": 0.5, "schedule": Exponential(gamma=0.9)}
    a = qfml.Trainer(optimizer=theirs, **settings).fit_many(members(), qfml.MSE(), ds)[0]
    ours = qfml.AdamW(lr=0.01, weight_decay=0.1)
    b = qfml.Trainer(optimizer=ours, **settings).fit_many(members(), qfml.MSE(), ds)[0]
    torch.testing.assert_close(a.parameters, b.parameters, rtol=1e-4, atol=1e-5)


def test_nan_freezes_the_member_at_its_last_finite_state():
    ds = make_data()
    member = qfml.Member(qfml.MLP(hidden=(8,)), np.arange(150), np.arange(200, 300), lr=1e18)
    fit = trainer("sgd").fit_many([member], qfml.MSE(), ds)[0]
    assert fit.status == "nan"
    assert bool(torch.isfinite(fit.parameters).all())


def test_identity_is_that_of_class_and_settings(tmp_path):
    a, b = (TorchOptimizer(lambda p, lr=lr: torch.optim.NAdam(p, lr=lr)) for lr in (0.01, 0.01))
    assert a == b
    assert qfml.config.config_hash(a) == qfml.config.config_hash(b)
    assert qfml.config.config_hash(a) != qfml.config.config_hash(
        TorchOptimizer(lambda p: torch.optim.NAdam(p, lr=0.02))
    )
    ds = make_data()
    trainer("nadam").fit_many(members(), qfml.MSE(), ds, checkpoint_dir=tmp_path)
    with pytest.raises(qfml.errors.CheckpointError, match="belongs to other data, members or settings"):
        trainer("adamax").fit_many(members(), qfml.MSE(), ds, checkpoint_dir=tmp_path, resume=True)


class Late(Counting):
    """Remembers something from the second step on."""

    def step(self, closure=None):
        super().step()
        for own in self.state.values():
            if own["n"] > 1:
                own["late"] = torch.zeros(3)


class Hoarder(Counting):
    def step(self, closure=None):
        for value in self.param_groups[0]["params"]:
            self.state[value]["all"] = [value.grad]


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda p: torch.optim.LBFGS(p), "LBFGS needs a closure.*use qfml.LBFGS"),
        (lambda p: torch.optim.SparseAdam(p), "takes no step on dense gradients"),
        (lambda p: 3, "`factory` must build a torch.optim.Optimizer, it returned int"),
        (Late, "remembers 'weight.late' of shape .* only after some steps"),
        (Hoarder, "remembers 'weight.all' as a list"),
    ],
)
def test_what_cannot_be_used_is_refused(factory, message):
    def use():
        optimizer = TorchOptimizer(factory)
        flat, goal = rows()
        state = start_state(optimizer, flat, LAYOUT)
        for count in range(2):
            optimizer.update(flat, flat - goal, state, step(count + 1, 0.1, 0.0))

    with pytest.raises(UserError, match=message):
        use()


def test_stacks_and_decay_where_there_is_none_are_refused():
    optimizer = TorchOptimizer(FACTORIES["rprop"])
    flat, goal = rows()
    state = start_state(optimizer, flat, LAYOUT)
    with pytest.raises(UserError, match=r"`weight_decay` must be 0 with Rprop, which has none, got 0\.1"):
        optimizer.update(flat, flat - goal, state, step(1, 0.1, 0.1))
    with pytest.raises(UserError, match="one member at a time, got a stack of 2"):
        start_state(optimizer, flat.expand(2, -1), LAYOUT)
