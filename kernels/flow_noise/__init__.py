"""A point on the straight path from data to noise, the noise being made on the spot.

    noise = normal(Philox(seed; e, sample, step, Stream.NOISE))      e: flat index in the FULL latent [C, F, Y, X]
    x_t   = (1 - sigma) x0 + sigma noise                            sigma in [0, 1]: 0 is data, 1 is noise

The noise of a sample depends on (seed, sample id, step) and nothing else: not on its place in the batch, the batch's
size, or the rank. Formulas for words and normals: kernels/philox.py.

Source: rectified flow, arXiv 2209.03003; Stable Diffusion 3, arXiv 2403.03206, section 2 (equation 13).
"""

from typing import Protocol

from torch import Tensor

from ..backend import Backend
from ..ranks import DEVICE_TYPES
from ..toolchains import native_refusal, npu_triton_refusal, triton_refusal


class FlowNoise(Protocol):
    def __call__(
        self, x0_BCFYX: Tensor, sigma_B: Tensor, sample_B: Tensor, *, step: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Noised latents and their noise.

        Args:
            x0_BCFYX: whole normalised latents, any strides; at most 2**32 values a sample.
            sigma_B: float32 noise levels.
            sample_B: int64 global sample ids (modulo 2**32).
            step: training step, in [0, 2**32).
            seed: the run's seed, in [0, 2**64).

        Returns:
            (x_t_BCFYX, noise_BCFYX) in x0's dtype, contiguous. The noise is made in fp32 and rounded to x0's dtype
            first; x_t mixes the rounded noise in fp32, so that x_t and the target noise - x0 speak of the same noise.

        Raises:
            ValueError: step or seed out of range.

        No gradient: the results do not require one, whatever the inputs do. Words bit-equal on every backend, normals
        bit-equal within one and within 4 ULP (of fp32) between two.
        """
        ...


BACKENDS = (
    Backend.beside(__name__, "cpu_native", ("cpu",), native_refusal),
    Backend.beside(__name__, "gpu_triton", ("cuda",), triton_refusal),
    Backend.beside(__name__, "npu_triton", ("npu",), npu_triton_refusal),
    Backend.beside(__name__, "reference", DEVICE_TYPES),
)
