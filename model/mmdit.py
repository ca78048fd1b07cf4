"""The video MM-DiT: latents, noise level and caption to velocity.

Source: ContentV, arXiv 2506.05343, on Stable Diffusion 3's transformer, arXiv 2403.03206, figure 2a.
Legend: B batch, F frames, Y rows, X columns of latents, C latent channels, P = 4C values of a token, S video tokens,
T text tokens, D width, H heads, E head width, M MLP width, W width of the text encoder.
"""

from math import prod
from pathlib import Path

import torch

from ..kernels.registry import KernelSet, choose
from ..parallel.config import ParallelConfig
from ..parallel.layers import LayerFactory, ShardedModule
from ..parallel.mesh import Mesh, build_mesh
from ..parallel.tokens import Tokens
from . import published, weights
from .block import Block
from .config import NORM_EPSILON, ModelConfig, Position, Recompute
from .embeddings import Condition, Modulation, patchify, token_grid, unpatchify
from .positions import rope3d, sincos3d
from .stages import Stage


class MMDiT(ShardedModule):
    """The dual-stream transformer, or the run of its blocks that a pipeline stage holds.

    Weights are unset until `initialise` or `from_pretrained` sets them.
    """

    def __init__(self, config: ModelConfig, mesh: Mesh, kernels: KernelSet, dtype: torch.dtype = torch.float32,
                 recomputed: Recompute = "none", recomputed_blocks: int = 0, stage: Stage | None = None):  # fmt: skip
        """`recomputed_blocks`: how many of the stage's blocks, the first ones, recompute; 0: all of them."""
        super().__init__(config)
        layers = LayerFactory(mesh, dtype, kernels.product_of_its_own())
        self.mesh, self.kernels, self.dtype = mesh, kernels, dtype
        self.stage = stage = stage or Stage(0, config.layers, config.layers)
        if stage.is_first:
            self.patches = layers.replicated(config.token_width, config.width)
            self.caption = layers.replicated(config.text_width, config.width)
            self.condition = Condition(config, layers)
        saving = stage.recomputing(recomputed_blocks)
        self.blocks = torch.nn.ModuleDict(
            {
                str(layer): Block(config, layers, kernels, layer, recomputed if layer in saving else "none")
                for layer in stage.blocks
            }
        )
        if stage.is_last:
            self.modulation = Modulation(2, config, layers)
            self.velocities = layers.replicated(config.width, config.token_width)

    def forward(self, latents_BCFYX, sigma_B, text_BTW, pooled_BW) -> torch.Tensor:
        """Latents at noise level sigma in [0, 1], caption tokens and pooled caption -> velocity tokens [S, B, P].

        Of the tokens, those that this rank holds (`tokens_of`). A stage that is not the last gives what the next takes.
        """
        grid, tokens = token_grid(latents_BCFYX), self.tokens_of(latents_BCFYX, text_BTW)
        if self.stage.is_first:
            video_SBD, text_TBD, condition_BD = self.embed(latents_BCFYX, sigma_B, text_BTW, pooled_BW)
        else:
            video_SBD, text_TBD, condition_BD = tokens.unpack(self.received)
        rotation = None
        if self.config.position == "rope3d":
            rotation = rope3d(grid, self.config.head_width, tokens.video.gathered, video_SBD.device)

        for block in self.blocks.values():
            video_SBD, text_TBD = block(video_SBD, text_TBD, condition_BD, tokens, rotation)

        if not self.stage.is_last:
            return tokens.pack(video_SBD, text_TBD, condition_BD)
        scale_BD, shift_BD = self.modulation(condition_BD)
        normed_SBD = self.kernels.modulated_norm(video_SBD, shift_BD, scale_BD, epsilon=NORM_EPSILON)
        return tokens.video.drop_filling(self.velocities(normed_SBD))

    def embed(self, latents_BCFYX, sigma_B, text_BTW, pooled_BW) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Into the transformer's width: this rank's video tokens, its text tokens, the condition."""
        tokens = self.tokens_of(latents_BCFYX, text_BTW)
        video_SBD = self.patches(tokens.video.cut(patchify(latents_BCFYX.to(self.dtype))))
        # Contiguous, as the streams stay from here on: strides decide in which order gradients are added up.
        text_TBD = self.caption(tokens.text.cut(text_BTW.to(self.dtype).transpose(0, 1)).contiguous())
        if self.config.position == "sincos3d":
            places = sincos3d(token_grid(latents_BCFYX), self.config.width, tokens.video.own, video_SBD.device)
            video_SBD = video_SBD + tokens.video.fill_rows(places)[:, None].to(self.dtype)
        return video_SBD, text_TBD, self.condition(sigma_B, pooled_BW)

    def tokens_of(self, latents_BCFYX, text_BTW) -> Tokens:
        """Which tokens of such a sample this rank works on."""
        return self.mesh.sharing.tokens(video=prod(token_grid(latents_BCFYX)), text=text_BTW.shape[1])

    def velocity(self, latents_BCFYX, sigma_B, text_BTW, pooled_BW) -> torch.Tensor:
        """As `forward`, the tokens put back in their places: [B, C, F, Y, X]; in a world of one."""
        velocity_SBP = self(latents_BCFYX, sigma_B, text_BTW, pooled_BW)
        return unpatchify(velocity_SBP, token_grid(latents_BCFYX))

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, position: Position | None = None, parallel: ParallelConfig | None = None
    ) -> "MMDiT":
        """The model in a folder of the published layout (config.json beside safetensors), fp32, all its blocks.

        Each rank of `parallel` (None: data parallel alone) allocates its own pieces and reads no others from the files.

        `position` fills in what the folder's config.json leaves out; a conflict between the two is a ValueError, as is
        any missing, surplus or misshapen tensor, naming file, key, found and expected.
        """
        source = published.open_folder(folder, position)
        mesh = build_mesh(parallel or ParallelConfig())
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
