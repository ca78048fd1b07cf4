"""Every call of torch_npu's operators, bound by torch's dispatcher to the schemas of two of its releases.

The schemas are torch_npu's own (tests/ascend/schemas.json has the source); nothing is computed here.
"""

import inspect
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from contentv.kernels import npu_operators
from tests.ascend import schemas

ROOT = Path(npu_operators.__file__).resolve().parents[1]
TOKENS = torch.empty(2, 3, 5, 64)
ROWS = torch.empty(2, 3, 5, 8)
CALLS = {
    "attention": ("npu_fusion_attention", (TOKENS, TOKENS, TOKENS, 0.125), {}),
    "attention_gradients": ("npu_fusion_attention_grad", (TOKENS,) * 5 + (ROWS, ROWS, 0.125), {}),
    "rms_norm": ("npu_rms_norm", (TOKENS, TOKENS[0, 0, 0], 1e-6), {}),
    "rms_norm_gradients": ("npu_rms_norm_backward", (TOKENS, TOKENS, TOKENS[0, 0, 0], ROWS[..., :1]), {}),
    "rotated_halves": ("npu_rotary_mul", (TOKENS, TOKENS[:, :1, :1], TOKENS[:, :1, :1]), {}),
    "adam_w": (
        "npu_apply_adam_w.out",
        (TOKENS,) * 4,
        {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8, "weight_decay": 0.01, "step": 3},
    ),
}
"""Function of npu_operators -> the operator it calls, and arguments to call it with."""


def parsed(version: str, name: str) -> torch._C.FunctionSchema:
    return torch._C.parse_schema(f"npu::{schemas.kept()[version][name]}")


@pytest.fixture(params=schemas.VERSIONS)
def release(request, monkeypatch):
    """torch.ops.npu with a release's schemas; calls are recorded, results are marked by their place."""
    space = f"npu_{request.param.replace('.', '_')}"
    library = torch.library.Library(space, "FRAGMENT")
    recorded = []
    for name in schemas.CALLED:
        library.define(schemas.kept()[request.param][name])
        library.impl(name, _recording(recorded, name, parsed(request.param, name)), "CompositeExplicitAutograd")
    monkeypatch.setattr(torch.ops, "npu", getattr(torch.ops, space), raising=False)
    yield request.param, recorded
    library._destroy()


def _recording(recorded: list, name: str, schema):
    def called(*arguments, **keywords):
        bound = dict(zip([each.name for each in schema.arguments], arguments, strict=False)) | keywords
        recorded.append((name, bound))
        if name.endswith(".out"):
            return tuple(keywords[each.name] for each in schema.arguments if each.is_out)
        marks = [
            torch.full((1,), place) if str(each.type) == "Tensor" else -1 for place, each in enumerate(schema.returns)
        ]
        return tuple(marks) if len(marks) > 1 else marks[0]

    return called


@pytest.mark.parametrize("function", CALLS)
def test_a_call_binds(release, function):
    version, recorded = release
    operator, arguments, keywords = CALLS[function]
    returned = getattr(npu_operators, function)(*arguments, **keywords)
    ((name, bound),) = recorded
    assert name == operator
    given = {each.name for each in parsed(version, operator).arguments if not each.has_default_value()}
    assert given <= bound.keys(), "every argument without a default is given"
    taken = [returned] if isinstance(returned, Tensor) else list(returned or ())
    # What is taken are the first results, in their order, and tensors all of them.
    assert [int(each) for each in taken] == list(range(len(taken)))


def test_every_function_that_calls_an_operator_is_bound():
    calling = {
        name
        for name, function in inspect.getmembers(npu_operators, inspect.isfunction)
        if "torch.ops.npu" in inspect.getsource(function)
    }
    assert calling == set(CALLS) and {operator for operator, *_ in CALLS.values()} == set(schemas.CALLED)


def test_nothing_else_calls_them():
    shipped = [
        path
        for floor in ("kernels", "parallel", "model", "engine", "launchers")
        for path in (ROOT / floor).rglob("*.py")
    ]
    calling = [path.name for path in shipped if re.search(r"torch_npu\.\w+\(|torch\.ops\.npu\b", path.read_text())]
    assert calling == ["npu_operators.py"]


@pytest.mark.parametrize("version", schemas.VERSIONS)
def test_results_are_what_they_are_taken_for(version):
    """The forms that write into given tensors name their results."""

    def named(operator: str) -> list[str]:
        return [each.name for each in parsed(version, operator).arguments if each.is_out]

    assert named("npu_fusion_attention_v3.out")[:3] == ["attention_score", "softmax_max", "softmax_sum"]
    assert named("npu_fusion_attention_grad_v3.out")[:3] == ["dq", "dk", "dv"]
    assert named("npu_apply_adam_w.out") == ["var", "m", "v"]


@pytest.mark.parametrize(
    "call, told",
    [
        (lambda npu: npu.npu_rotary_mul(TOKENS, TOKENS, TOKENS, rotarymode="half"), "rotarymode"),
        (lambda npu: npu.npu_fusion_attention(TOKENS, TOKENS, TOKENS, 3, "BNSD", scale_value=1.0), "scale_value"),
        (lambda npu: npu.npu_fusion_attention(TOKENS, TOKENS, TOKENS, 3, "BNSD", pre_tokens=1), "pre_tokens"),
        (lambda npu: npu.npu_fusion_attention_grad(TOKENS, TOKENS, TOKENS, TOKENS, 3, "BNSD", scale=1.0), "scale"),
        (lambda npu: npu.npu_rms_norm(input=TOKENS, gamma=TOKENS), "input|self"),
        (lambda npu: npu.npu_apply_adam_w.out(*(0.1,) * 7, TOKENS, None, False, False, var=TOKENS, m=TOKENS), "v"),
    ],
    ids=["a letter left out", "the grad's name", "v2's name", "the forward's name", "another first name", "too few"],
)
def test_a_call_that_is_wrong_is_refused(release, call, told):
    with pytest.raises((RuntimeError, TypeError), match=told):
        call(torch.ops.npu)


@pytest.mark.ascend
@pytest.mark.parametrize("version", schemas.VERSIONS)
def test_what_is_kept_is_what_the_wheel_has(version):
    assert schemas.of_wheel(version) == schemas.kept()[version]
