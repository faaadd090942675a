"""The optimizer is compared with what it stands for, written with the whole matrix."""

import pytest
import torch

from peft_be.training.ggt import GGT


def gradients(steps, rows, dim):
    """Small ones, of which a few directions hold nearly all."""
    torch.manual_seed(0)
    mix = torch.linalg.qr(torch.randn(dim, dim)).Q * torch.logspace(0, -3, dim)
    return [1e-3 * torch.randn(rows, dim) @ mix.T for _ in range(steps)]


@pytest.mark.parametrize("damping", [0.01, 1.0])
@pytest.mark.parametrize("history", [64, 16], ids=["all", "the last"])
def test_the_step_is_that_of_the_whole_matrix(history, damping):
    dim, steps = 24, 40
    rows = torch.zeros(2, dim, requires_grad=True)
    optimizer = GGT([rows], lr=0.1, damping=damping, history=history)
    seen = gradients(steps, 2, dim)
    expected = torch.zeros(2, dim, dtype=torch.double)
    for step, gradient in enumerate(seen, start=1):
        rows.grad = gradient.clone()
        optimizer.step()
        for i in range(2):
            past = [(0.9 ** (step - s), 0.99 ** (step - s), g[i].double()) for s, g in enumerate(seen[:step], start=1)]
            mean = sum(a * g for a, _, g in past)
            past = past[-history:]
            covariance = sum(b * torch.outer(g, g) for _, b, g in past) / sum(b for _, b, _ in past)
            covariance += damping * covariance.diagonal().mean() * torch.eye(dim)
            values, vectors = torch.linalg.eigh(covariance)
            direction = vectors @ ((vectors.T @ mean) / values.sqrt())
            expected[i] -= 0.1 * dim**0.5 * direction / direction.norm()
    torch.testing.assert_close(rows.detach().double(), expected, rtol=1e-3, atol=1e-4)


def test_the_scale_of_the_gradients_does_not_matter():
    ends = []
    for scale in (1.0, 1e-6):
        rows = torch.zeros(1, 24, requires_grad=True)
        optimizer = GGT([rows])
        for gradient in gradients(10, 1, 24):
            rows.grad = scale * gradient
            optimizer.step()
        ends.append(rows.detach())
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-6)


def test_rows_without_a_gradient_stay():
    rows = torch.ones(2, 8, requires_grad=True)
    optimizer = GGT([rows], lr=0.1)
    for _ in range(3):
        rows.grad = torch.stack([torch.zeros(8), torch.arange(8.0)])
        optimizer.step()
    moved = (rows.detach() - 1).norm(dim=-1)
    assert moved[0] == 0 and moved[1] == pytest.approx(0.3 * 8**0.5, rel=1e-4)
    before = rows.detach().clone()
    rows.grad = torch.zeros(2, 8)
    optimizer.step()
    assert torch.equal(rows, before)


def test_it_goes_on_from_its_state():
    seen = gradients(8, 1, 24)
    ends = []
    for interrupted in (False, True):
        rows = torch.zeros(1, 24, requires_grad=True)
        optimizer = GGT([rows])
        for step, gradient in enumerate(seen):
            if interrupted and step == 5:
                state, rows = optimizer.state_dict(), rows.detach().clone().requires_grad_()
                optimizer = GGT([rows])
                optimizer.load_state_dict(state)
            rows.grad = gradient.clone()
            optimizer.step()
        ends.append(rows.detach())
    assert torch.equal(*ends)


def test_a_closure_computes_the_loss_anew():
    """As torch's optimisers take it: gradients are on, though the step itself records none."""
    rows = torch.ones(1, 8, requires_grad=True)
    optimizer = GGT([rows], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = rows.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == pytest.approx(8)
    assert rows.square().sum() < 8
    assert optimizer.step() is None
