"""One rank's part of a joint attention spread over context ranks, against the whole of it in one process."""

import torch

from contentv.kernels.joint_attention import reference
from contentv.kernels.registry import choose
from contentv.parallel import attention
from contentv.parallel.attention import ContextAttention
from contentv.parallel.config import ParallelConfig
from contentv.parallel.mesh import build_mesh, leave_world

NAMES = ("out", "d_q", "d_k", "d_v")
BATCH = 2


def compare(*, context: int, cases: list[dict]) -> list[dict]:
    """For each case this rank's errors of output and gradients, and those of one process in the same precision.

    Errors are norms of the difference from the whole attention in fp64, relative to its norm over all ranks.
    """
    torch.set_num_threads(1)
    found = [_errors(context=context, **case) for case in cases]
    leave_world()
    return found


def _errors(*, context: int, ulysses: int, heads: int, width: int, queries: list[int], keys: list[int],
            dtype: str = "float32") -> dict:  # fmt: skip
    mesh = build_mesh(ParallelConfig(context=context, ulysses=ulysses))
    attend = ContextAttention(mesh, choose("cpu").joint_attention)
    generator = torch.Generator().manual_seed(heads * 100 + sum(keys))
    lengths = sum(queries), sum(keys), sum(keys), sum(queries)
    drawn = [torch.randn(length, BATCH, heads, width, generator=generator) for length in lengths]
    *whole, cotangent = (tensor.to(getattr(torch, dtype)) for tensor in drawn)
    rank = mesh.context.rank()
    where = [slice(sum(counts[:rank]), sum(counts[: rank + 1])) for counts in (queries, keys, keys, queries)]

    mine = [tensor[part].clone().requires_grad_() for tensor, part in zip(whole, where, strict=False)]
    out = attend(*mine, queries=tuple(queries), keys=tuple(keys), scale=width**-0.5).unflatten(-1, (heads, width))
    found = [out, *torch.autograd.grad(out, mine, cotangent[where[3]])]
    alone = _alone(whole, cotangent, width)
    exact = _alone([tensor.double() for tensor in whole], cotangent.double(), width)
    parts = where[3], *where[:3]
    entries = zip(NAMES, found, alone, exact, parts, strict=True)
    return {
        name: [float((one.double() - truth[part]).norm() / truth.norm()),
               float((other[part].double() - truth[part]).norm() / truth.norm())]
        for name, one, other, truth, part in entries
    }  # fmt: skip


def _alone(whole: list[torch.Tensor], cotangent: torch.Tensor, width: int) -> list[torch.Tensor]:
    inputs = [tensor.detach().requires_grad_() for tensor in whole]
    out, _ = reference.joint_attention(*(tensor.permute(1, 2, 0, 3) for tensor in inputs), scale=width**-0.5)
    out = out.permute(2, 0, 1, 3)
    return [out.detach(), *torch.autograd.grad(out, inputs, cotangent)]


def order_of_calls(*, context: int) -> dict:
    """What a ring does, one after the other, forward and backward: posts of transfers, waits, computations."""
    torch.set_num_threads(1)
    mesh = build_mesh(ParallelConfig(context=context, ulysses=1))
    calls, pass_on, kernel = [], attention._pass_on, choose("cpu").joint_attention

    def passing_on(sent, received, group):
        # Blocks travel in the inputs' precision, which the test makes bf16; their gradients in fp32.
        what = "gradient" if sent.dtype == torch.float32 else "block"
        calls.append(f"post {what}")
        wait = pass_on(sent, received, group)

        def waiting():
            calls.append(f"wait {what}")
            wait()

        return waiting

    def computing(*tensors, scale):
        calls.append("compute")
        return kernel(*tensors, scale=scale)

    def computing_backward(*tensors, scale):
        calls.append("compute")
        return kernel.backward(*tensors, scale=scale)

    computing.backward = computing_backward
    attention._pass_on = passing_on
    tensors = [torch.randn(3, 1, 2, 16, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    counts = (3,) * context
    out = ContextAttention(mesh, computing)(*tensors, queries=counts, keys=counts, scale=0.25)
    forward = list(calls)
    calls.clear()
    out.sum().backward()
    leave_world()
    return {"forward": forward, "backward": calls}
