"""Joint attention, each backend, against torch's own scaled_dot_product_attention and logsumexp."""

import pytest
import torch
from torch.nn import functional

from contentv.kernels.joint_attention import BACKENDS, reference
from contentv.kernels.joint_attention.cases import CASES, inputs
from contentv.kernels.joint_attention.operator import tokens_first
from contentv.kernels.joint_attention.reference import joint_attention
from contentv.kernels.qk_norm_rope.reference import qk_norm_rope
from tests.kernels.conftest import OPCHECKS, moved

SMALL = [case for case in CASES if not case.large]
TOLERANCE = 2.0**-17
"""64 ULP of fp32, of the largest value: sums of up to a few hundred fp32 products in another order."""


def turned(x_BHJE, rotation):
    """Video tokens by a 2 x 2 matrix for each token and pair."""
    if rotation is None:
        return x_BHJE
    cos_SR, sin_SR = rotation
    matrix_IISR = torch.stack([torch.stack([cos_SR, -sin_SR]), torch.stack([sin_SR, cos_SR])])
    video, text = x_BHJE[:, :, : len(cos_SR)], x_BHJE[:, :, len(cos_SR) :]
    pairs = torch.einsum("ijsr,bhsjr->bhsir", matrix_IISR, video.unflatten(-1, (2, -1)))
    return torch.cat([pairs.flatten(-2), text], dim=2)


def oracle(q_BHQE, k_BHJE, v_BHJE, *, scale, rotation=None):
    q_BHQE, k_BHJE = turned(q_BHQE, rotation), turned(k_BHJE, rotation)
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


def angles(tokens, pairs, dtype=torch.float32):
    """A rotation's two tables."""
    angle_SR = 20 * torch.rand(tokens, pairs, generator=torch.Generator().manual_seed(2), dtype=dtype)
    return angle_SR.cos(), angle_SR.sin()


def double(*shape, spread=1.0):
    generator = torch.Generator().manual_seed(sum(shape))
    return (spread * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()


def single(device, *tensors):
    return [each.detach().float().to(device).requires_grad_() for each in tensors]


def assert_near(got, truth):
    assert got.shape == truth.shape
    error = (got.detach().double().cpu() - truth.detach()).abs().max()
    assert error <= TOLERANCE * truth.abs().max(), f"{error:.2e} of {truth.abs().max():.2e}"


def chosen(function, tensors, outputs, rotation=None):
    both = function(*tensors, scale=0.7, rotation=rotation)
    return tuple(both[index] for index in outputs)


OUTPUTS = pytest.mark.parametrize("outputs", [(0,), (1,), (0, 1)], ids=["out", "lse", "both"])


@OUTPUTS
def test_the_reference_is_its_own_derivative(outputs):
    tensors = double(2, 3, 4, 5), double(2, 3, 7, 5), double(2, 3, 7, 5)
    assert torch.autograd.gradcheck(lambda *three: chosen(joint_attention, three, outputs), tensors)


@OUTPUTS
def test_the_reference_that_rotates_is_its_own_derivative(outputs):
    tensors = double(2, 3, 4, 6), double(2, 3, 7, 6), double(2, 3, 7, 6)
    rotation = angles(3, 3, torch.float64)
    assert torch.autograd.gradcheck(lambda *three: chosen(joint_attention, three, outputs, rotation), tensors)


@OUTPUTS
@pytest.mark.parametrize("rotation", [None, angles(19, 4)], ids=["unrotated", "rotated"])
def test_gradients_flow_through_each_output(attention, device, outputs, rotation):
    exact = double(2, 3, 21, 8), double(2, 3, 67, 8), double(2, 3, 67, 8)
    tensors = single(device, *exact)
    truths = chosen(joint_attention, exact, outputs, rotation)
    results = chosen(attention, tensors, outputs, moved(rotation, device))
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


ROTATED = next(case for case in CASES if case.name.startswith("odd, rotated"))


@pytest.mark.parametrize("name", [each.name for each in BACKENDS if each.repeats])
@pytest.mark.parametrize("case", [CASES[-1], ROTATED], ids=str)
def test_two_runs_give_the_same_bits(backend, name, case, device):
    attention = backend("joint_attention", name, torch.bfloat16)

    def everything():
        arguments = inputs(case, dtype=torch.bfloat16, device=device)
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


# Rotation of the video tokens.


def test_it_rotates_as_qk_norm_rope_does():
    arguments = inputs(ROTATED)
    rotation, rest = arguments["rotation"], {name: arguments[name] for name in ("v_BHJE", "scale")}
    video = len(rotation[0])
    gain = torch.ones(ROTATED["E"])

    def normed(rotation):
        """Both streams as the model hands them over."""
        q, k = (arguments[name].permute(2, 0, 1, 3) for name in ("q_BHQE", "k_BHJE"))
        streams = [
            qk_norm_rope(q[rows], k[rows], gain, gain, turn, epsilon=1e-6)
            for rows, turn in ((slice(0, video), rotation), (slice(video, None), None))
        ]
        return [torch.cat(parts).permute(1, 2, 0, 3) for parts in zip(*streams, strict=True)]

    before = joint_attention(*normed(rotation), **rest)
    inside = joint_attention(*normed(None), **rest, rotation=rotation)
    assert all(map(torch.equal, inside, before))
    assert not torch.allclose(joint_attention(*normed(None), **rest)[0], before[0], atol=0.1)


@pytest.mark.parametrize("lay", [lambda each: each.T.contiguous().T, lambda each: torch.cat([each, each], 1)[:, ::2]])
def test_tables_have_any_strides_and_no_gradient(attention, device, lay):
    arguments = inputs(ROTATED, device=device)
    arguments["q_BHQE"].requires_grad_()
    cos, sin = (lay(table) for table in arguments.pop("rotation"))
    expected, _ = attention(**arguments, rotation=(cos.contiguous(), sin.contiguous()))
    cos.requires_grad_()
    got, _ = attention(**arguments, rotation=(cos, sin))
    assert torch.equal(got, expected)
    d_q, d_cos = torch.autograd.grad(got.sum(), (arguments["q_BHQE"], cos), allow_unused=True)
    assert d_q.any() and d_cos is None


def test_the_kernel_that_rotates_inside_keeps_what_came(backend, device):
    """Neither rotated queries and keys nor the tables once more: the storages saved are those that were given."""
    attention, saved = backend("joint_attention", "npu_triton", torch.bfloat16), []
    arguments = inputs(ROTATED, dtype=torch.bfloat16, device=device)
    arguments["q_BHQE"].requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda each: saved.append(each.data_ptr()) or each, lambda x: x):
        outputs = attention(**arguments)
    given = [arguments[name] for name in ("q_BHQE", "k_BHJE", "v_BHJE")]
    assert sorted(saved) == sorted(each.data_ptr() for each in (*given, *arguments["rotation"], *outputs))


def test_the_operators_that_rotate_tell_the_compiler_the_truth(backend, device):
    backend("joint_attention", "npu_triton", torch.bfloat16)  # registers them
    forward = torch.ops.contentv.joint_attention_npu_triton_rotated.default
    backward = torch.ops.contentv.joint_attention_npu_triton_rotated_backward.default
    arguments = inputs(ROTATED, dtype=torch.bfloat16, device=device)
    q, k, v = tensors = [arguments[name] for name in ("q_BHQE", "k_BHJE", "v_BHJE")]
    tables = arguments["rotation"]
    leaves = [each.clone().requires_grad_() for each in tensors]
    torch.library.opcheck(forward, (*leaves, *tables, 0.25), test_utils=OPCHECKS)
    out, lse = forward(q, k, v, *tables, 0.25)
    given = (torch.ones_like(out), None, q, k, v, *tables, out, lse, 0.25)
    torch.library.opcheck(backward, given, test_utils=OPCHECKS)
    assert [each.stride() for each in backward(*given)] == [tokens_first(each).stride() for each in tensors]


ODDLY_TURNED = {
    "more video tokens than keys": (angles(8, 4), "up to 7 video tokens"),
    "tables as wide as a head": (angles(3, 8), r"tables \(3, 8\) and \(3, 8\) for 9 queries and 7 keys of 8 values"),
    "two tables unlike": ((angles(3, 4)[0], angles(2, 4)[1]), r"tables \(3, 4\) and \(2, 4\)"),
    "in 16 bits": (
        tuple(each.bfloat16() for each in angles(3, 4)),
        "tables are torch.bfloat16 and .*; allowed: torch.float32",
    ),
    "in 64 bits": (angles(3, 4, torch.float64), "tables are torch.float64 .*; allowed: torch.float32 for both"),
}


@pytest.mark.parametrize("given", ODDLY_TURNED)
def test_a_rotation_that_does_not_fit_is_refused(attention, device, given):
    rotation, words = ODDLY_TURNED[given]
    q, k = torch.ones(1, 1, 9, 8, device=device), torch.ones(1, 1, 7, 8, device=device)
    with pytest.raises(ValueError, match=words):
        attention(q, k, k, scale=1.0, rotation=moved(rotation, device))


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
