"""`torch.ops.npu.*` of the simulated device: torch_npu's own schemas, reference arithmetic behind them.

What the documents of torch_npu 2.13 forbid is refused here. Values come from plain fp32 on the host.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas.json"
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_library = torch.library.Library("npu", "DEF")


def register() -> None:
    schemas = json.loads(SCHEMAS.read_text())["schemas"]["2.13.0"]
    for name, function in IMPLEMENTED.items():
        _library.define(schemas[name])
        _library.impl(name, function, "PrivateUse1")


def _refuse(condition: bool, words: str) -> None:
    if condition:
        raise RuntimeError(f"the simulated NPU refuses: {words}")


def _floats(*tensors: Tensor) -> list[Tensor]:
    _refuse(tensors[0].dtype not in DTYPES, f"{tensors[0].dtype}")
    _refuse(any(each.dtype != tensors[0].dtype for each in tensors), "inputs of several dtypes")
    return [torch.ops.npu_simulation.host(each).float() for each in tensors]


def _back(value: Tensor, like: Tensor) -> Tensor:
    return value.to(like.dtype).to(like.device)


def attention(
    query, key, value, head_num, input_layout, pse=None, padding_mask=None, atten_mask=None, scale=1.0, *others
):  # fmt: skip
    _refuse(input_layout != "BNSD" or query.dim() != 4 or head_num != query.shape[1], "a layout that is not BNSD")
    _refuse(
        any(each is not None for each in (pse, padding_mask, atten_mask, *others)),
        "masks, dropout and sparse modes, which it does not simulate",
    )
    _refuse(query.shape[-1] > 768 or head_num > 256, "head widths above 768, or more than 256 heads")
    q, k, v = _floats(query, key, value)
    scores = q @ k.transpose(-1, -2) * scale
    maximum = scores.amax(-1, keepdim=True)
    weights = (scores - maximum).exp()
    total = weights.sum(-1, keepdim=True)
    eight = (*total.shape[:-1], 8)
    statistics = (each.expand(eight).contiguous().to(query.device) for each in (maximum, total))
    return _back(weights / total @ v, query), *statistics, query.new_empty(0), 0, 0, 0


def attention_gradients(
    query, key, value, dy, head_num, input_layout, *, softmax_max, softmax_sum, attention_in, scale_value=1.0, **others
):
    _refuse(input_layout != "BNSD" or head_num != query.shape[1], "a layout that is not BNSD")
    _refuse(bool(others), "masks, dropout and sparse modes, which it does not simulate")
    q, k, v, d_out, out = _floats(query, key, value, dy, attention_in)
    for each in (softmax_max, softmax_sum):
        _refuse(each.shape != (*query.shape[:3], 8) or each.dtype != torch.float32, "statistics that are not its own")
    maximum, total = (torch.ops.npu_simulation.host(each)[..., :1] for each in (softmax_max, softmax_sum))
    weights = (q @ k.transpose(-1, -2) * scale_value - maximum).exp() / total
    d_scores = weights * (d_out @ v.transpose(-1, -2) - (d_out * out).sum(-1, keepdim=True))
    gradients = (d_scores @ k * scale_value, d_scores.transpose(-1, -2) @ q * scale_value,
                 weights.transpose(-1, -2) @ d_out)  # fmt: skip
    return *(_back(each, query) for each in gradients), query.new_empty(0), query.new_empty(0)


def rms_norm(x, gamma, epsilon=1e-6):
    host, gain = _floats(x, gamma)
    reciprocal = (host.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    return _back(host * reciprocal * gain, x), reciprocal.to(x.device)


def rms_norm_gradients(dy, x, gamma, rstd):
    d_out, host, gain = _floats(dy, x, gamma)
    _refuse(rstd.dtype != torch.float32 or rstd.shape != (*x.shape[:-1], 1), "a reciprocal that is not its own")
    reciprocal = torch.ops.npu_simulation.host(rstd)
    normed, d_normed = host * reciprocal, d_out * gain
    d_x = reciprocal * (d_normed - normed * (d_normed * normed).mean(-1, keepdim=True))
    return _back(d_x, x), (d_out * normed).sum(tuple(range(x.dim() - 1))).to(x.device)


def rotary_mul(x, r1, r2, rotary_mode="half", rotate=None):
    _refuse(rotary_mode != "half" or rotate is not None, "rotations other than of halves")
    _refuse(x.dim() != 4 or r1.dim() != 4 or x.shape[-1] % 2 or x.shape[-1] >= 896, "its shape")
    _refuse(max(x.shape[1:3]) >= 1000, "1000 samples or heads, and more")
    host, cos, sin = _floats(x, r1, r2)
    first, second = host.chunk(2, -1)
    return _back(cos * host + sin * torch.cat((-second, first), -1), x)


def apply_adam_w(
    beta1_power, beta2_power, lr, weight_decay, beta1, beta2, epsilon, grad, max_grad_norm, amsgrad, maximize, *, var,
    m, v,
):  # fmt: skip
    _refuse(max_grad_norm is not None or amsgrad or maximize, "amsgrad and maximize, which it does not simulate")
    _floats(var, m, v, grad)
    master, moment1, moment2, gradient = (torch.ops.npu_simulation.host(each) for each in (var, m, v, grad))
    moment1.mul_(beta1).add_(gradient, alpha=1 - beta1)
    moment2.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    denominator = (moment2 / (1 - beta2_power * beta2)).sqrt_().add_(epsilon)
    master.mul_(1 - lr * weight_decay).addcdiv_(moment1, denominator, value=-lr / (1 - beta1_power * beta1))
    return var, m, v


IMPLEMENTED = {
    "npu_fusion_attention": attention,
    "npu_fusion_attention_grad": attention_gradients,
    "npu_rms_norm": rms_norm,
    "npu_rms_norm_backward": rms_norm_gradients,
    "npu_rotary_mul": rotary_mul,
    "npu_apply_adam_w.out": apply_adam_w,
}
