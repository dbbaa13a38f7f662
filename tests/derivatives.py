"""Derivatives of an elementwise function against central differences."""

import torch


def assert_derivatives(function, point):
    """Forward and reverse mode and the Hessian against central differences, all points in one batch.

    Args:
        function: elementwise in its float64 tensors.
        point: where; magnitudes from 0.01 to 100.
    """
    center = torch.tensor(point, dtype=torch.float64)
    step = 1e-5 * center.abs().clamp(min=0.01)
    bumps = torch.diag(step)
    bumped = torch.cat([center + bumps, center - bumps]).requires_grad_()
    values = function(*bumped.unbind(-1))
    (slopes,) = torch.autograd.grad(values.sum(), bumped)
    ups, downs = values.detach().chunk(2)
    up_slopes, down_slopes = slopes.chunk(2)

    inputs = [x.clone().requires_grad_() for x in center]
    gradient = torch.autograd.grad(function(*inputs), inputs, create_graph=True)
    rows = [torch.autograd.grad(slope, inputs, retain_graph=True, materialize_grads=True) for slope in gradient]
    hessian = torch.stack([torch.stack(row) for row in rows])
    gradient = torch.stack(gradient).detach()
    torch.testing.assert_close(gradient, (ups - downs) / (2 * step), rtol=1e-6, atol=1e-5)
    numeric = (up_slopes - down_slopes) / (2 * step[:, None])
    torch.testing.assert_close(hessian, numeric, rtol=1e-5, atol=1e-4)  # entries up to 1e3

    directions = torch.eye(len(point), dtype=torch.float64)
    primals = tuple(x.expand(len(point)).clone() for x in center)
    _, forward = torch.func.jvp(function, primals, directions.unbind(-1))
    torch.testing.assert_close(forward, gradient, rtol=1e-12, atol=1e-11)
