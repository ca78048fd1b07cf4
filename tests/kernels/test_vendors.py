"""Vendors: who is refused and why, and that each is called as its library is written, by stand-ins where it is absent.

The contract itself is tested with all the other backends, where a vendor can run.
"""

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch

from contentv.kernels import vendors
from contentv.kernels.adamw import apex
from contentv.kernels.adamw.cases import inputs as adamw_inputs
from contentv.kernels.adamw.reference import adamw as adamw_reference
from contentv.kernels.backend import Backend
from contentv.kernels.case import ODD
from contentv.kernels.joint_attention import flash_attn, sdpa_cudnn, sdpa_flash
from contentv.kernels.joint_attention.cases import CASES, inputs
from contentv.kernels.joint_attention.reference import joint_attention as reference
from contentv.kernels.joint_attention.vendor import LOW, backend
from contentv.kernels.ranks import RANKS
from contentv.kernels.registry import TABLE, choose, choose_like, tabulate

SMALL = next(case for case in CASES if case.name.startswith("odd"))


@pytest.fixture
def machine(monkeypatch):
    """machine(capability, cudnn, distributions, modules): what the refusals see."""

    def pretend(capability=(9, 0), cudnn=91500, distributions=None, modules=()):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
        monkeypatch.setattr(vendors, "_version", (distributions or {}).get)
        monkeypatch.setattr(vendors, "find_spec", lambda name: name if name in modules else None)

    return pretend


@pytest.mark.parametrize(
    ("refusal", "there", "words"),
    [
        ("sdpa_flash", {}, None),
        ("sdpa_flash", {"capability": None}, "no CUDA device"),
        ("sdpa_flash", {"capability": (7, 5)}, "sm_75 is too old; sm_80"),
        ("sdpa_cudnn", {}, None),
        ("sdpa_cudnn", {"capability": None}, "no CUDA device"),
        ("sdpa_cudnn", {"cudnn": None}, "no cuDNN"),
        ("sdpa_cudnn", {"cudnn": 8902}, "cuDNN 8902 is too old; 90100"),
        ("flash_attn", {"distributions": {"flash-attn": "2.8.3"}}, None),
        ("flash_attn", {"modules": ("flash_attn_interface",)}, None),
        ("flash_attn", {}, "flash-attn is not installed"),
        ("flash_attn", {"distributions": {"flash-attn": "2.6.3"}}, "flash-attn 2.6.3 is too old; 2.7"),
        ("apex", {"modules": ("apex", "amp_C")}, None),
        ("apex", {}, "NVIDIA's apex is not installed: build it"),
        ("apex", {"modules": ("apex",)}, "the apex here is not NVIDIA's"),
    ],
)
def test_refusals_say_what_is_missing(machine, refusal, there, words):
    machine(**there)
    said = getattr(vendors, f"{refusal}_refusal")()
    assert said is None if words is None else words in said


def test_the_newest_flash_attention_for_the_chip_is_taken(machine):
    everything = {"distributions": {"flash-attn": "2.10.0", "flash-attn-4": "4.0.0"}}
    machine(**everything, modules=("flash_attn_interface",))
    assert [vendors.flash_attn_generation(major) for major in (8, 9, 10)] == [2, 3, 4]
    machine(distributions={"flash-attn": "2.7.4.post1"})
    assert [vendors.flash_attn_generation(major) for major in (8, 9, 10)] == [2, 2, 2]
    machine()
    assert vendors.flash_attn_generation(9) is None


@pytest.mark.parametrize("module", [sdpa_cudnn, sdpa_flash], ids=lambda module: module.__name__.rpartition(".")[2])
def test_torchs_operators_take_these_arguments(module):
    """On the meta device the dispatcher checks every argument against the schema, and shapes are computed."""
    q, k, v = (torch.empty(2, 3, tokens, 64, dtype=torch.bfloat16, device="meta") for tokens in (256, 128, 128))
    out, lse = module.VENDOR.forward(q, k, v, 0.5)
    assert out.shape == q.shape and lse.shape == q.shape[:3] and lse.dtype == torch.float32
    gradients = module.VENDOR.backward(out, q, k, v, out, lse, 0.5)
    assert [each.shape for each in gradients] == [each.shape for each in (q, k, v)]


def test_dtypes_and_widths_a_vendor_does_not_take_are_refused():
    q = torch.zeros(1, 1, 2, 8)
    with pytest.raises(ValueError, match="float32; sdpa_cudnn takes torch.bfloat16, torch.float16.*gpu_triton"):
        sdpa_cudnn.joint_attention(q, q, q, scale=1.0)
    wide = torch.zeros(1, 1, 2, 136, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="width is 136; sdpa_cudnn takes up to 128"):
        sdpa_cudnn.joint_attention(wide, wide, wide, scale=1.0)
    stand_in = replace(
        sdpa_cudnn.VENDOR, name="stand_in", forward=lambda q, k, v, scale: reference(q, k, v, scale=scale)
    )
    full = torch.zeros(1, 1, 2, 128, dtype=torch.bfloat16, requires_grad=True)
    _, lse = backend(stand_in)(full, full, full, scale=1.0)
    with pytest.raises(ValueError, match="128; stand_in takes up to 128 .gradients through lse need a channel"):
        lse.sum().backward()


def attention_tokens_first(q, k, v, scale):
    out, lse = reference(*(each.transpose(1, 2) for each in (q, k, v)), scale=scale)
    return out.transpose(1, 2).contiguous(), lse


def gradients_tokens_first(d_out, q, k, v, out, lse, scale):
    """FlashAttention's backward by its formulas, from what it is given."""
    d_out, q, k, v, out = (each.transpose(1, 2).float() for each in (d_out, q, k, v, out))
    weights = (scale * q @ k.mT - lse[..., None]).exp()
    d_scores = weights * (d_out @ v.mT - (out * d_out).sum(-1, keepdim=True))
    gradients = scale * d_scores @ k, scale * d_scores.mT @ q, weights.mT @ d_out
    return [each.transpose(1, 2) for each in gradients]


def fill(gradients, filled):
    for target, gradient in zip(filled, gradients, strict=True):
        target.copy_(gradient)


class Flash2:
    """Signatures of flash_attn.flash_attn_interface 2.7 and later."""

    @staticmethod
    def _flash_attn_forward(
        q, k, v, dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap, alibi_slopes,
        return_softmax,
    ):  # fmt: skip
        assert (dropout_p, causal, window_size_left, window_size_right, softcap) == (0.0, False, -1, -1, 0.0)
        return *attention_tokens_first(q, k, v, softmax_scale), None, None

    @staticmethod
    def _flash_attn_backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, dropout_p, softmax_scale, causal, window_size_left,
        window_size_right, softcap, alibi_slopes, deterministic, rng_state=None,
    ):  # fmt: skip
        assert deterministic and (dropout_p, causal) == (0.0, False)
        fill(gradients_tokens_first(dout, q, k, v, out, softmax_lse, softmax_scale), (dq, dk, dv))


class Flash3:
    """Signatures of hopper/flash_attn_interface, as far as they are used."""

    @staticmethod
    def _flash_attn_forward(
        q, k, v, k_new=None, v_new=None, qv=None, out_=None, softmax_scale=None, causal=False, window_size_left=-1,
        window_size_right=-1, attention_chunk=0, softcap=0.0,
    ):  # fmt: skip
        return *attention_tokens_first(q, k, v, softmax_scale), None, None

    @staticmethod
    def _flash_attn_backward(
        dout, q, k, v, out, softmax_lse, cu_seqlens_q=None, cu_seqlens_k=None, sequed_q=None, sequed_k=None,
        max_seqlen_q=None, max_seqlen_k=None, dq=None, dk=None, dv=None, softmax_scale=None, is_causal=False,
        window_size_left=-1, window_size_right=-1, softcap=0.0, deterministic=False, sm_margin=0,
    ):  # fmt: skip
        assert deterministic
        fill(gradients_tokens_first(dout, q, k, v, out, softmax_lse, softmax_scale), (dq, dk, dv))


class Flash4:
    """Signatures of flash_attn.cute.interface, as far as they are used."""

    @staticmethod
    def _flash_attn_fwd(q, k, v, softmax_scale=None, causal=False, return_lse=False):
        return attention_tokens_first(q, k, v, softmax_scale) if return_lse else None

    @staticmethod
    def _flash_attn_bwd(q, k, v, out, dout, lse, softmax_scale=None, causal=False, deterministic=False):
        assert deterministic
        return tuple(each.to(q.dtype) for each in gradients_tokens_first(dout, q, k, v, out, lse, softmax_scale))


@pytest.mark.parametrize(("generation", "library"), [(2, Flash2), (3, Flash3), (4, Flash4)], ids=["2", "3", "4"])
def test_flash_attn_is_called_as_it_is_written(monkeypatch, generation, library):
    monkeypatch.setattr(flash_attn, "import_module", lambda name: library)
    made = flash_attn.vendor(generation)
    # Another name: an operator's can be taken only once in a process.
    function = backend(type(made)(**(vars(made) | {"name": f"flash_attn_{generation}_stand_in"})))
    given = inputs(SMALL, dtype=torch.bfloat16)
    results = []
    for each in (function, reference):
        leaves = {name: x.detach().requires_grad_() for name, x in given.items() if name != "scale"}
        out, lse = each(**leaves, scale=given["scale"])
        loss = (out.float() * torch.linspace(-1, 1, out.shape[-1])).sum() + lse.square().sum()
        results.append((out, lse, *torch.autograd.grad(loss, list(leaves.values()))))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=3e-2, atol=3e-2)  # bf16 keeps 8 bits; d_lse passes through it


def test_apex_is_called_as_it_is_written(monkeypatch):
    """The stand-in is apex's kernel by its formula: decay joins the step, all with the old master."""

    def multi_tensor_adam(chunk, overflow, lists, lr, beta1, beta2, epsilon, step, mode, correction, decay):
        assert mode == correction == 1 and overflow.dtype == torch.int32
        for gradient, master, moment1, moment2 in zip(*lists, strict=True):
            moment1.lerp_(gradient, 1 - beta1)
            moment2.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            denominator = (moment2 / (1 - beta2**step)).sqrt() + epsilon
            master -= lr * (moment1 / (1 - beta1**step) / denominator + decay * master)

    library = ModuleType("amp_C")
    library.multi_tensor_adam = multi_tensor_adam
    monkeypatch.setitem(sys.modules, "amp_C", library)
    given, expected = (adamw_inputs(ODD, dtype=torch.bfloat16) for _ in range(2))
    kept = [each.clone() for each in given["gradients"]]
    apex.adamw(**given)
    adamw_reference(**expected)
    for name in ("masters", "moments1", "moments2", "emas"):
        for got, wanted in zip(given[name], expected[name], strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)
    assert all(
        torch.equal(copy, master.bfloat16()) for copy, master in zip(given["copies"], given["masters"], strict=True)
    )
    assert all(torch.equal(*pair) for pair in zip(given["gradients"], kept, strict=True))


@pytest.fixture
def world():
    """A device whose best attention computes in bf16 alone."""
    low = Backend(op="mlp_gelu", name="low", devices=("cpu",), load=lambda: "low", dtypes=LOW)
    order = ("low", "reference")
    others = tuple(each for each in TABLE.values() if each.op != "mlp_gelu" or each.name == "reference")
    return {"table": tabulate((*others, low)), "ranks": {"cpu": {**RANKS["cpu"], "mlp_gelu": order}}}


def test_the_choice_knows_what_is_computed_in(world):
    assert choose("cpu", dtype=torch.bfloat16, **world).choices()["mlp_gelu"] == "low"
    kernels = choose("cpu", **world)
    row = next(row for row in kernels.report() if row.op == "mlp_gelu")
    assert row.backend == "reference"
    assert dict(row.others) == {"low": "computes in bfloat16, float16, not in float32"}
    with pytest.raises(ValueError, match="mlp_gelu cannot use low on cpu: computes in bfloat16, float16, not in"):
        choose("cpu", {"mlp_gelu": "low"}, **world)


def test_a_model_is_sampled_in_fp32_though_it_was_trained_by_a_bf16_kernel():
    former = SimpleNamespace(joint_attention="sdpa_cudnn")
    assert choose_like("cpu", vars(former)).choices()["joint_attention"] in RANKS["cpu"]["joint_attention"]
