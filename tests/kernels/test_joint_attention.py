"""Joint attention against torch's own scaled_dot_product_attention and logsumexp."""

import pytest
import torch
from torch.nn import functional

from contentv.kernels.joint_attention import reference
from contentv.kernels.joint_attention.cases import CASES, inputs
from contentv.kernels.joint_attention.reference import joint_attention

SMALL = [case for case in CASES if not case.large]


def oracle(q_BHQE, k_BHJE, v_BHJE, *, scale):
    out_BHQE = functional.scaled_dot_product_attention(q_BHQE, k_BHJE, v_BHJE, scale=scale)
    return out_BHQE, torch.logsumexp(scale * torch.einsum("bhqe,bhje->bhqj", q_BHQE, k_BHJE), dim=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_agrees_with_sdpa_and_logsumexp(agree, case, dtype):
    agree("joint_attention", case, dtype, oracle, ("q_BHQE", "k_BHJE", "v_BHJE"))


def double(*shape, spread=1.0):
    generator = torch.Generator().manual_seed(sum(shape))
    return (spread * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()


@pytest.mark.parametrize("outputs", [(0,), (1,), (0, 1)], ids=["out", "lse", "both"])
def test_gradients_flow_through_each_output(outputs):
    def chosen(q, k, v):
        both = joint_attention(q, k, v, scale=0.7)
        return tuple(both[index] for index in outputs)

    assert torch.autograd.gradcheck(chosen, (double(2, 3, 4, 5), double(2, 3, 7, 5), double(2, 3, 7, 5)))


def test_blocks_of_queries_change_nothing(monkeypatch):
    tensors = (double(2, 3, 11, 4), double(2, 3, 5, 4), double(2, 3, 5, 4))

    def everything():
        outputs = joint_attention(*tensors, scale=0.5)
        return (*outputs, *torch.autograd.grad([each.square().sum() for each in outputs], tensors))

    whole = everything()
    monkeypatch.setattr(reference, "_SCORES", 2 * 3 * 5 * 4)  # 4 queries at a time: blocks of 4, 4 and 3
    for blocked, once in zip(everything(), whole, strict=True):
        torch.testing.assert_close(blocked, once, rtol=1e-13, atol=1e-13)


def test_two_blocks_of_keys_join_by_their_lse():
    """What ring attention does, gradient included."""
    q, k, v = double(1, 2, 3, 4), double(1, 2, 9, 4), double(1, 2, 9, 4)
    whole, lse = joint_attention(q, k, v, scale=0.5)
    parts = [joint_attention(q, k[:, :, rows], v[:, :, rows], scale=0.5) for rows in (slice(0, 2), slice(2, 9))]
    joined_lse = torch.logsumexp(torch.stack([part[1] for part in parts]), dim=0)
    joined = sum(out * (each - joined_lse).exp()[..., None] for out, each in parts)
    torch.testing.assert_close(joined, whole)
    torch.testing.assert_close(joined_lse, lse)
    cotangent = double(1, 2, 3, 4).detach()
    for ring, one in zip(
        torch.autograd.grad(joined, (q, k, v), cotangent), torch.autograd.grad(whole, (q, k, v), cotangent), strict=True
    ):
        torch.testing.assert_close(ring, one)


def test_scores_that_overflow_exp_stay_finite():
    q, k, v = double(1, 1, 3, 4, spread=200.0), double(1, 1, 5, 4, spread=200.0), double(1, 1, 5, 4)
    q32, k32, v32 = (each.detach().float() for each in (q, k, v))
    out, lse = joint_attention(q32, k32, v32, scale=1.0)
    assert lse.abs().max() > 1000 and out.isfinite().all()
    torch.testing.assert_close(lse.double(), oracle(q, k, v, scale=1.0)[1], rtol=1e-6, atol=0)


def test_log_sum_exp_is_fp32_and_scores_are_not_saved():
    saved = []
    arguments = inputs(CASES[0], dtype=torch.bfloat16)
    q = arguments["q_BHQE"].requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda each: saved.append(tuple(each.shape)) or each, lambda x: x):
        out, lse = joint_attention(**arguments)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    assert sorted(saved) == sorted([q.shape, q.shape, q.shape, q.shape, lse.shape])
