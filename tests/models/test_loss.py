import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.models.loss import cross_entropy


@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 3), st.booleans(), st.integers(0, 2**20))
@settings(deadline=None)
def test_loss_and_gradients_are_those_of_autograd(number, candidates, taken, taught, seed):
    torch.manual_seed(seed)
    states = torch.randn(number, 5, requires_grad=True)
    weight = torch.randn(candidates + 1, 5, requires_grad=True)
    targets = torch.randint(candidates, (number,))
    listed = torch.randint(candidates + 1, (number, taken + 1))
    listed = torch.where(listed == targets[:, None], candidates, listed)
    listed[:, -1] = candidates
    mask = torch.zeros(number, candidates + 1, dtype=torch.bool).scatter_(1, listed, True)
    soft = torch.rand(number, candidates + 1).masked_fill(mask, 0)
    soft, share = soft / soft.sum(1, keepdim=True), 0.3 if taught else 0.0

    logs = (states @ weight.T).masked_fill(mask, float("-inf")).log_softmax(1)
    plain = (1 - share) * torch.nn.functional.nll_loss(logs, targets, reduction="sum")
    plain = plain - share * (soft * logs.masked_fill(mask, 0)).sum()
    (3 * plain).backward()
    expected = states.grad.clone(), weight.grad.clone()
    for left_out in (listed, mask):
        states.grad = weight.grad = None
        found = cross_entropy(states, weight, targets, left_out, soft if taught else None, share)
        (3 * found).backward()
        assert found.item() == pytest.approx(plain.item(), rel=1e-5, abs=1e-5)
        torch.testing.assert_close((states.grad, weight.grad), expected, rtol=1e-4, atol=1e-5)


def test_a_broken_score_is_not_hidden():
    states = torch.tensor([[float("nan"), 1.0]])
    soft = torch.tensor([[0.5, 0.5, 0.0]])
    out = torch.tensor([[False, False, True]])
    assert cross_entropy(states, torch.ones(3, 2), torch.tensor([0]), out, soft, 0.5).isnan()
