"""A trainer is its configuration: what YAML says is what is built, and back."""

import pytest
import yaml

import qfml
from qfml import config
from qfml.engine.averaging import EMA
from qfml.engine.groups import ParameterGroup

TEXT = """
max_epochs: 3
batch_size: 8
optimizer: {kind: sgd, lr: 0.1, momentum: 0.9}
averaging: {kind: ema, decay: 0.9}
parameter_groups: [{pattern: "bias*", lr_factor: 0.5, weight_decay_factor: 0}]
metrics: [mae]
monitor: val_mae
precision: bf16
"""


def test_yaml_builds_the_trainer_that_python_would_and_gives_itself_back():
    built = config.build(qfml.Trainer, yaml.safe_load(TEXT))
    assert built == qfml.Trainer(
        max_epochs=3,
        batch_size=8,
        optimizer=qfml.SGD(lr=0.1, momentum=0.9),
        averaging=EMA(decay=0.9),
        parameter_groups=(ParameterGroup("bias*", lr_factor=0.5, weight_decay_factor=0.0),),
        metrics=("mae",),
        monitor="val_mae",
        precision="bf16",
    )
    assert config.build(qfml.Trainer, config.to_dict(built)) == built
    assert config.build(qfml.Trainer, {"max_epochs": 3, "batch_size": 8, "averaging": None}).averaging is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parameter_groups": [{"patern": "bias*"}]}, "did you mean `pattern`"),
        ({"averaging": {"kind": "emaa"}}, "did you mean `ema`"),
        ({"averaging": {"kind": "ema", "decay": 1.5}}, r"`decay` must lie in \(0, 1\), got 1.5"),
        ({"max_step": 3}, "did you mean `max_steps`"),
    ],
)
def test_what_the_yaml_misspells_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        config.build(qfml.Trainer, {"max_epochs": 3, "batch_size": 8} | change)
