"""The Gamma function of rough Heston's reference vol, which ONNX has no equal of."""

import math

import numpy as np
import torch

from qfml.surrogate.reference_vol import _log_gamma


def test_the_gamma_function_without_torch_s_own():
    x = torch.linspace(1.0, 30.0, 1001, dtype=torch.float64)
    truth = [math.lgamma(value) for value in x.tolist()]
    np.testing.assert_allclose(_log_gamma(x), truth, rtol=1e-12, atol=1e-12)
