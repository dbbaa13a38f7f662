"""A compiled training step against the eager one."""

import json
import os
import subprocess
import sys

import pytest

import qfml

SCRIPT = """
import json, numpy as np, qfml, torch
days = np.datetime64("2020-01-01") + np.arange(400)
X = np.random.default_rng(0).standard_normal((400, 5))
ds = qfml.data.TimeDataset(X, X[:, 0], time=days, label_end=days + 1)
compiled = []
forward = torch.compile
torch.compile = lambda *args, **options: compiled.append(options["mode"]) or forward(*args, **options)
worst = []
for network in (qfml.MLP(hidden=(16,)), qfml.MLP(hidden=(12,), dropout=0.25, layer_norm=True)):
    members = [qfml.Member(network, np.arange(320), seed=seed, lr=0.01) for seed in range(3)]
    fits = [
        qfml.Trainer(max_epochs=2, batch_size=64, compile=mode).fit_many(members, qfml.MSE(), ds)
        for mode in (None, "default")
    ]
    worst += [float((a.parameters - b.parameters).abs().max()) for a, b in zip(*fits, strict=True)]
print(json.dumps([compiled, worst]))
"""


@pytest.mark.slow
def test_ten_compiled_steps_are_within_1e_5_of_the_eager_ones():
    environment = os.environ | {"JAXTYPING_DISABLE": "1", "OMP_NUM_THREADS": "1"}  # the hook and torch.compile clash
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    compiled, worst = json.loads(done.stdout.splitlines()[-1])
    assert compiled == ["default", "default"]
    assert max(worst) <= 1e-5


def test_what_needs_a_gpu_is_refused_on_a_cpu():
    with pytest.raises(ValueError, match="`compile` cuda_graphs needs a CUDA device"):
        qfml.Trainer(max_epochs=1, batch_size=8, compile="cuda_graphs")
    with pytest.raises(ValueError, match="`compile` must be one of default, cuda_graphs, or None, got 'fast'"):
        qfml.Trainer(max_epochs=1, batch_size=8, compile="fast")
