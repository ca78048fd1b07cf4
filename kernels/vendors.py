"""Libraries of others that fulfil a contract: which of them are here, and why one cannot be used.

Found and checked, never required, and never imported to be looked at.

Not bound: transformer-engine (its attention calls the same cuDNN kernels as `sdpa_cudnn`), liger-kernel (none of
its functions fulfils a contract here: its norms neither modulate nor give gradients of scale and shift, its GELU is
half of a gate).
"""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch
from packaging.version import Version

from .device import cuda_capability

LOW = (torch.bfloat16, torch.float16)
"""What the attention kernels of vendors compute in."""
_CUDNN = 90100
"""The first cuDNN whose attention has a backward for Hopper worth having."""
_FLASH_2 = "2.7"
"""Its functions took their present arguments then."""


def device_refusal(oldest: tuple[int, int] = (8, 0)) -> str | None:
    """Why no CUDA device here will do; None if one will."""
    if (found := cuda_capability()) is None:
        return "no CUDA device is there"
    return None if found >= oldest else f"sm_{found[0]}{found[1]} is too old; sm_{oldest[0]}{oldest[1]} is needed"


def sdpa_flash_refusal() -> str | None:
    """Why torch's flash attention on CUDA cannot be used; None if it can."""
    return device_refusal()


def sdpa_cudnn_refusal() -> str | None:
    """Why torch's cuDNN attention cannot be used; None if it can."""
    if (reason := device_refusal()) is not None:
        return reason
    found = torch.backends.cudnn.version()
    if found is None:
        return "this torch has no cuDNN"
    return None if found >= _CUDNN else f"cuDNN {found} is too old; {_CUDNN} or newer is needed"


def flash_attn_refusal() -> str | None:
    """Why Dao-AILab's flash-attn cannot be used; None if it can."""
    if (reason := device_refusal()) is not None:
        return reason
    if flash_attn_generation(cuda_capability()[0]) is not None:
        return None
    found = _version("flash-attn")
    if found is None:
        return "flash-attn is not installed: build it from source (docs/kernels.md)"
    return f"flash-attn {found} is too old; {_FLASH_2} or newer is needed"


def flash_attn_generation(major: int) -> int | None:
    """The newest generation of flash-attn here that was made for a chip of this major number; None if there is none."""
    if major == 9 and find_spec("flash_attn_interface") is not None:
        return 3
    if major >= 9 and _version("flash-attn-4") is not None:
        return 4
    found = _version("flash-attn")
    return 2 if found is not None and Version(found) >= Version(_FLASH_2) else None


def apex_refusal() -> str | None:
    """Why NVIDIA's apex cannot be used; None if it can. Told by its compiled part: PyPI's apex is another thing."""
    if (reason := device_refusal()) is not None:
        return reason
    if find_spec("amp_C") is None:
        other = " (the apex here is not NVIDIA's, or was built without --cuda_ext)" if find_spec("apex") else ""
        return f"NVIDIA's apex is not installed{other}: build it from github.com/NVIDIA/apex with its CUDA extensions"
    return None


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
