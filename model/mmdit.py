"""The video MM-DiT: latents, noise level and caption to velocity.

Source: ContentV, arXiv 2506.05343, on Stable Diffusion 3's transformer, arXiv 2403.03206, figure 2a.
Legend: B batch, F frames, Y rows, X columns of latents, C latent channels, P = 4C values of a token, S video tokens,
T text tokens, D width, H heads, E head width, M MLP width, W width of the text encoder.
"""

from pathlib import Path
from typing import Literal

import torch

from ..kernels.registry import KernelSet, choose
from ..parallel.config import ParallelConfig
from ..parallel.layers import LayerFactory, ShardedModule, recompute
from ..parallel.mesh import Mesh, build_mesh
from . import published, weights
from .block import Block
from .config import NORM_EPSILON, ModelConfig, Position
from .embeddings import Condition, Modulation, patchify, token_grid, unpatchify
from .positions import rope3d, sincos3d


class MMDiT(ShardedModule):
    """The dual-stream transformer. Weights are unset until `initialise` or `from_pretrained` sets them."""

    def __init__(self, config: ModelConfig, mesh: Mesh, kernels: KernelSet, dtype: torch.dtype = torch.float32,
                 recomputed: Literal["none", "full"] = "none"):  # fmt: skip
        super().__init__(config)
        layers = LayerFactory(mesh, dtype)
        self.mesh, self.kernels, self.dtype, self.recomputed = mesh, kernels, dtype, recomputed
        self.patches = layers.replicated(config.token_width, config.width)
        self.caption = layers.replicated(config.text_width, config.width)
        self.condition = Condition(config, layers)
        self.blocks = torch.nn.ModuleList(
            Block(config, layers, kernels, last=layer == config.layers - 1) for layer in range(config.layers)
        )
        self.modulation = Modulation(2, config, layers)
        self.velocities = layers.replicated(config.width, config.token_width)

    def forward(self, latents_BCFYX, sigma_B, text_BTW, pooled_BW) -> torch.Tensor:
        """Latents at noise level sigma in [0, 1], caption tokens and pooled caption -> velocity tokens [S, B, P]."""
        grid = token_grid(latents_BCFYX)
        video_SBD = self.patches(patchify(latents_BCFYX.to(self.dtype)))
        # Contiguous, as the streams stay from here on: strides decide in which order gradients are added up.
        text_TBD = self.caption(text_BTW.to(self.dtype).transpose(0, 1).contiguous())
        condition_BD = self.condition(sigma_B, pooled_BW)

        rotation = None
        if self.config.position == "sincos3d":
            video_SBD = video_SBD + sincos3d(grid, self.config.width, video_SBD.device)[:, None].to(self.dtype)
        else:
            rotation = rope3d(grid, self.config.head_width, video_SBD.device)

        for block in self.blocks:
            video_SBD, text_TBD = self._run(block, video_SBD, text_TBD, condition_BD, rotation)

        scale_BD, shift_BD = self.modulation(condition_BD)
        normed_SBD = self.kernels.modulated_norm(video_SBD, shift_BD, scale_BD, epsilon=NORM_EPSILON)
        return self.velocities(normed_SBD)

    def velocity(self, latents_BCFYX, sigma_B, text_BTW, pooled_BW) -> torch.Tensor:
        """As `forward`, the tokens put back in their places: [B, C, F, Y, X]."""
        velocity_SBP = self(latents_BCFYX, sigma_B, text_BTW, pooled_BW)
        return unpatchify(velocity_SBP, token_grid(latents_BCFYX))

    def _run(self, block: Block, video_SBD, text_TBD, condition_BD, rotation):
        if self.recomputed == "full" and torch.is_grad_enabled():
            return recompute(lambda *streams: block(*streams, rotation), video_SBD, text_TBD, condition_BD)
        return block(video_SBD, text_TBD, condition_BD, rotation)

    @classmethod
    def from_pretrained(cls, folder: str | Path, position: Position | None = None) -> "MMDiT":
        """The model in a folder of the published layout (config.json beside safetensors), fp32.

        Ranks are data parallel here, each with the whole model; `weights.fill` reads for any other mesh.

        `position` fills in what the folder's config.json leaves out; a conflict between the two is a ValueError, as is
        any missing, surplus or misshapen tensor, naming file, key, found and expected.
        """
        source = published.open_folder(folder, position)
        mesh = build_mesh(ParallelConfig())
        model = build(source.config, mesh, choose(mesh.device.type))
        weights.fill(model, source.config, source.tensor)
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json and safetensors in the published layout; reading them back is bit-equal."""
        published.save(self, self.config, folder)


def build(config: ModelConfig, mesh: Mesh, kernels: KernelSet, **options) -> MMDiT:
    """An MMDiT whose (unset) weights lie on the mesh's device."""
    with mesh.device:
        return MMDiT(config, mesh, kernels, **options)
