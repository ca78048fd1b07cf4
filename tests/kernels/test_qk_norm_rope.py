"""QK-norm and rotation against rotation matrices, and against diffusers' rotary embedding."""

import pytest
import torch

from contentv.kernels.case import ODD
from contentv.kernels.qk_norm_rope.cases import CASES, inputs
from contentv.kernels.qk_norm_rope.reference import qk_norm_rope
from contentv.parallel.accelerator import present


def oracle(q_SBHE, k_SBHE, q_gain_E, k_gain_E, rotation, *, epsilon):
    def one(x, gain):
        normed = gain * x / (x.pow(2).sum(-1, keepdim=True) / x.shape[-1] + epsilon).sqrt()
        if rotation is None:
            return normed
        cos, sin = (torch.diag_embed(table) for table in rotation)
        matrix_SEE = torch.cat((torch.cat((cos, -sin), dim=-1), torch.cat((sin, cos), dim=-1)), dim=-2)
        return torch.einsum("sij,sbhj->sbhi", matrix_SEE.to(normed.dtype), normed)

    return one(q_SBHE, q_gain_E), one(k_SBHE, k_gain_E)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if not case.large], ids=str)
def test_agrees_with_rotation_matrices(agree, case, dtype):
    agree("qk_norm_rope", case, dtype, oracle, ("q_SBHE", "k_SBHE", "q_gain_E", "k_gain_E"))


@pytest.mark.skipif(present() == "npu", reason="diffusers calls torch_npu wherever it is installed, on a CPU as well")
def test_agrees_with_diffusers():
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    normalization = pytest.importorskip("diffusers.models.normalization")
    arguments = inputs(ODD.but("rotated", R=ODD["E"] // 2))
    q_SBHE, k_SBHE = qk_norm_rope(**arguments)
    cos, sin = (torch.cat((table, table), dim=-1) for table in arguments["rotation"])
    for got, x, gain in (
        (q_SBHE, arguments["q_SBHE"], arguments["q_gain_E"]),
        (k_SBHE, arguments["k_SBHE"], arguments["k_gain_E"]),
    ):
        norm = normalization.RMSNorm(ODD["E"], eps=arguments["epsilon"])
        norm.weight.data = gain
        # -2: diffusers' name for pairs (i, i + E/2).
        expected = embeddings.apply_rotary_emb(norm(x).permute(1, 2, 0, 3), (cos, sin), use_real_unbind_dim=-2)
        torch.testing.assert_close(got.permute(1, 2, 0, 3), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rotated", [True, False])
def test_gradients(rotated):
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((3, 2, 2, 6), (3, 2, 2, 6), (6,), (6,))
    ]
    angle = torch.rand(3, 3, generator=generator, dtype=torch.float64)
    rotation = (angle.cos(), angle.sin()) if rotated else None
    assert torch.autograd.gradcheck(lambda *each: qk_norm_rope(*each, rotation, epsilon=1e-3), tensors)


def test_a_head_of_zeros_stays_zero_with_a_finite_gradient():
    """Padded heads of an uneven tensor-parallel split are zeros and must receive nothing."""
    q = torch.zeros(3, 1, 2, 4, requires_grad=True)
    gain = torch.ones(4, requires_grad=True)
    for output in qk_norm_rope(q, q, gain, gain, None, epsilon=1e-6):
        assert not output.any()
    d_q, d_gain = torch.autograd.grad(output.square().sum(), (q, gain))
    assert not d_q.any() and not d_gain.any()


def test_dtypes():
    case = CASES[0]
    outputs = qk_norm_rope(**inputs(case, dtype=torch.bfloat16))
    assert [each.dtype for each in outputs] == [torch.bfloat16] * 2
