"""Whether each attention backend gives the same bits twice: what `auto` takes must, or no run can be repeated."""

import torch

from contentv.kernels.joint_attention.cases import CASES, inputs
from contentv.kernels.registry import TABLE

REPEATS = 5


def bits(function, given: dict) -> list[torch.Tensor]:
    leaves = {name: each.detach().requires_grad_() for name, each in given.items() if name != "scale"}
    out, _ = function(**leaves, scale=given["scale"])
    cotangent = torch.randn(out.shape, generator=torch.Generator("cuda").manual_seed(2), device="cuda").to(out)
    return [out, *torch.autograd.grad(out, list(leaves.values()), cotangent)]


def main() -> None:
    case = next(case for case in CASES if "image, joint" in case.name)
    given = inputs(case, dtype=torch.bfloat16, device="cuda")
    for (op, name), backend in TABLE.items():
        if op != "joint_attention" or backend.refuses("cuda", torch.bfloat16):
            continue
        function = backend.load()
        first = bits(function, given)
        differ = {
            part
            for _ in range(REPEATS)
            for part, one, other in zip(("out", "d_q", "d_k", "d_v"), first, bits(function, given), strict=True)
            if not torch.equal(one, other)
        }
        print(f"{name:12s} {case.name}: {'same bits' if not differ else 'differs in ' + ', '.join(sorted(differ))}")


if __name__ == "__main__":
    main()
