"""Joint attention, each backend, against torch's own scaled_dot_product_attention and logsumexp."""

import pytest
import torch
from torch.nn import functional

from contentv.kernels.joint_attention import BACKENDS, reference
from contentv.kernels.joint_attention.cases import CASES, inputs
from contentv.kernels.joint_attention.operator import tokens_first
from contentv.kernels.joint_attention.reference import joint_attention
from tests.kernels.conftest import OPCHECKS

SMALL = [case for case in CASES if not case.large]
TOLERANCE = 2.0**-17
"""64 ULP of fp32, of the largest value: sums of up to a few hundred fp32 products in another order."""


def oracle(q_BHQE, k_BHJE, v_BHJE, *, scale):
    out_BHQE = functional.scaled_dot_product_attention(q_BHQE, k_BHJE, v_BHJE, scale=scale)
    return out_BHQE, torch.logsumexp(scale * torch.einsum("bhqe,bhje->bhqj", q_BHQE, k_BHJE), dim=-1)


@pytest.fixture(params=[each.name for each in BACKENDS])
def attention(request, backend):
    """Each implementation that can run here, in float32."""
    return backend("joint_attention", request.param)


@pytest.fixture(params=[each.name for each in BACKENDS])
def low_attention(request, backend):
    """Each that can run here in bfloat16."""
    return backend("joint_attention", request.param, torch.bfloat16)


@pytest.fixture(params=[each.name for each in BACKENDS if each.name != "reference"])
def operators(request, backend):
    """(forward, backward) of each backend that is a torch.library operator."""
    backend("joint_attention", request.param, torch.bfloat16)  # registers them
    name = f"joint_attention_{request.param}"
    return getattr(torch.ops.contentv, name).default, getattr(torch.ops.contentv, f"{name}_backward").default


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_agrees_with_sdpa_and_logsumexp(agree, case, dtype):
    agree("joint_attention", case, dtype, oracle, ("q_BHQE", "k_BHJE", "v_BHJE"))


@pytest.mark.parametrize("case", [case for case in SMALL if "block" in str(case)], ids=str)
def test_agrees_in_float16(agree, case):
    agree("joint_attention", case, torch.float16, oracle, ("q_BHQE", "k_BHJE", "v_BHJE"))


def double(*shape, spread=1.0):
    generator = torch.Generator().manual_seed(sum(shape))
    return (spread * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()


def single(device, *tensors):
    return [each.detach().float().to(device).requires_grad_() for each in tensors]


def assert_near(got, truth):
    assert got.shape == truth.shape
    error = (got.detach().double().cpu() - truth.detach()).abs().max()
    assert error <= TOLERANCE * truth.abs().max(), f"{error:.2e} of {truth.abs().max():.2e}"


def chosen(function, tensors, outputs):
    both = function(*tensors, scale=0.7)
    return tuple(both[index] for index in outputs)


OUTPUTS = pytest.mark.parametrize("outputs", [(0,), (1,), (0, 1)], ids=["out", "lse", "both"])


@OUTPUTS
def test_the_reference_is_its_own_derivative(outputs):
    tensors = double(2, 3, 4, 5), double(2, 3, 7, 5), double(2, 3, 7, 5)
    assert torch.autograd.gradcheck(lambda *three: chosen(joint_attention, three, outputs), tensors)


@OUTPUTS
def test_gradients_flow_through_each_output(attention, device, outputs):
    exact = double(2, 3, 21, 8), double(2, 3, 67, 8), double(2, 3, 67, 8)
    tensors = single(device, *exact)
    truths, results = chosen(joint_attention, exact, outputs), chosen(attention, tensors, outputs)
    cotangents = [double(*each.shape).detach() for each in truths]
    expected = torch.autograd.grad(truths, exact, cotangents, allow_unused=True)
    got = torch.autograd.grad(results, tensors, [each.to(device).float() for each in cotangents], allow_unused=True)
    for name, result, truth in zip("qkv", got, expected, strict=True):
        if name == "v" and outputs == (1,):
            assert result is None or not result.any()  # lse does not depend on v
        else:
            assert_near(result, truth)


def test_blocks_of_queries_change_nothing(monkeypatch):
    tensors = (double(2, 3, 11, 4), double(2, 3, 5, 4), double(2, 3, 5, 4))

    def everything():
        outputs = joint_attention(*tensors, scale=0.5)
        return (*outputs, *torch.autograd.grad([each.square().sum() for each in outputs], tensors))

    whole = everything()
    monkeypatch.setattr(reference, "_SCORES", 2 * 3 * 5 * 4)  # 4 queries at a time: blocks of 4, 4 and 3
    for blocked, once in zip(everything(), whole, strict=True):
        torch.testing.assert_close(blocked, once, rtol=1e-13, atol=1e-13)


def test_two_blocks_of_keys_join_by_their_lse(attention, device):
    """What ring attention does, gradient included."""
    exact = double(1, 2, 13, 8), double(1, 2, 90, 8), double(1, 2, 90, 8)
    q, k, v = tensors = single(device, *exact)
    whole, lse = joint_attention(*exact, scale=0.5)
    parts = [attention(q, k[:, :, rows], v[:, :, rows], scale=0.5) for rows in (slice(0, 20), slice(20, 90))]
    joined_lse = torch.logsumexp(torch.stack([part[1] for part in parts]), dim=0)
    joined = sum(out * (each - joined_lse).exp()[..., None] for out, each in parts)
    assert_near(joined, whole)
    assert_near(joined_lse, lse)
    cotangent = double(1, 2, 13, 8).detach()
    expected = torch.autograd.grad(whole, exact, cotangent)
    for ring, one in zip(torch.autograd.grad(joined, tensors, cotangent.to(device).float()), expected, strict=True):
        assert_near(ring, one)


def test_backward_of_a_part_of_the_keys_takes_the_whole_rows_results(operators, device):
    """A ring asks each block of keys for its share with `out` and `lse` of all keys."""
    forward, backward = operators
    exact = double(1, 2, 37, 16), double(1, 2, 83, 16), double(1, 2, 83, 16)
    cotangents = double(1, 2, 37, 16).detach(), double(1, 2, 37).detach()
    d_q, d_k, d_v = torch.autograd.grad(joint_attention(*exact, scale=0.3), exact, cotangents)
    q, k, v, d_out, d_lse = (each.detach() for each in single(device, *exact, *cotangents))
    out, lse = forward(q, k, v, 0.3)
    d_q_sum = 0
    for rows in (slice(0, 33), slice(33, 83)):
        d_q_part, d_k_part, d_v_part = backward(d_out, d_lse, q, k[:, :, rows], v[:, :, rows], out, lse, 0.3)
        assert_near(d_k_part, d_k[:, :, rows])
        assert_near(d_v_part, d_v[:, :, rows])
        d_q_sum = d_q_sum + d_q_part
    assert_near(d_q_sum, d_q)


def test_scores_that_overflow_exp_stay_finite(attention, device):
    exact = double(1, 1, 3, 4, spread=200.0), double(1, 1, 5, 4, spread=200.0), double(1, 1, 5, 4)
    tensors = single(device, *exact)
    out, lse = attention(*tensors, scale=1.0)
    assert lse.abs().max() > 1000 and out.isfinite().all()
    torch.testing.assert_close(lse.double().cpu(), oracle(*exact, scale=1.0)[1], rtol=1e-6, atol=0)
    assert all(each.isfinite().all() for each in torch.autograd.grad(out.sum() + lse.sum(), tensors))


def test_log_sum_exp_is_fp32_and_scores_are_not_saved(low_attention, device):
    saved = []
    arguments = inputs(CASES[-1], dtype=torch.bfloat16, device=device)
    q, k = arguments["q_BHQE"].requires_grad_(), arguments["k_BHJE"]
    with torch.autograd.graph.saved_tensors_hooks(lambda each: saved.append(tuple(each.shape)) or each, lambda x: x):
        out, lse = low_attention(**arguments)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    assert sorted(saved) == sorted([q.shape, k.shape, k.shape, q.shape, lse.shape])


@pytest.mark.parametrize("name", [each.name for each in BACKENDS if each.repeats])
def test_two_runs_give_the_same_bits(backend, name, device):
    attention = backend("joint_attention", name, torch.bfloat16)

    def everything():
        arguments = inputs(CASES[-1], dtype=torch.bfloat16, device=device)
        tensors = [arguments[name].requires_grad_() for name in ("q_BHQE", "k_BHJE", "v_BHJE")]
        outputs = attention(**arguments)
        return (*outputs, *torch.autograd.grad([each.float().square().sum() for each in outputs], tensors))

    for one, other in zip(everything(), everything(), strict=True):
        assert torch.equal(one, other)


STRIDES = {
    "batch first": lambda each: each.contiguous(),
    "tokens last": lambda each: each.transpose(2, 3).contiguous().transpose(2, 3),
    "a slice of a wider row": lambda each: torch.cat([each, each], dim=3)[..., : each.shape[3]],
    "an odd address": lambda each: torch.cat([each.flatten()[:1], each.flatten()])[1:].view(each.shape),
}


@pytest.mark.parametrize("lay", STRIDES.values(), ids=STRIDES)
def test_strides_change_nothing(low_attention, device, lay):
    arguments = inputs(CASES[-2], dtype=torch.bfloat16, device=device)
    names = ("q_BHQE", "k_BHJE", "v_BHJE")

    def everything(change):
        tensors = [change(arguments[name].detach()).requires_grad_() for name in names]
        outputs = low_attention(*tensors, scale=arguments["scale"])
        return (*outputs, *torch.autograd.grad([each.float().square().sum() for each in outputs], tensors))

    for changed, usual in zip(everything(lay), everything(lambda each: each), strict=True):
        torch.testing.assert_close(changed, usual, rtol=2.0**-7, atol=2.0**-7)  # an ULP of bfloat16


def test_operators_tell_the_compiler_the_truth(operators, device):
    forward, backward = operators
    arguments = inputs(CASES[-2], dtype=torch.bfloat16, device=device)
    q, k, v = (arguments[name] for name in ("q_BHQE", "k_BHJE", "v_BHJE"))
    torch.library.opcheck(forward, (*(each.clone().requires_grad_() for each in (q, k, v)), 0.25), test_utils=OPCHECKS)
    out, lse = forward(q, k, v, 0.25)
    torch.library.opcheck(backward, (torch.ones_like(out), None, q, k, v, out, lse, 0.25), test_utils=OPCHECKS)
    assert out.stride() == tokens_first(q).stride()


TOO_MUCH = {
    "head width 130": {"width": 130},
    "dtype torch.float64": {"dtype": torch.float64},
    "scale -1.0": {"scale": -1.0},
}


@pytest.mark.parametrize("name", ["gpu_triton", "npu_triton"])
@pytest.mark.parametrize("given", TOO_MUCH)
def test_triton_says_what_it_cannot_take(backend, device, given, name):
    attention = backend("joint_attention", name)
    options = {"width": 16, "dtype": torch.float32, "scale": 1.0} | TOO_MUCH[given]
    tensor = torch.zeros(1, 1, 2, options["width"], dtype=options["dtype"], device=device)
    with pytest.raises(ValueError, match=f"{given}; allowed: .*; the backend reference takes it"):
        attention(tensor, tensor, tensor, scale=options["scale"])
