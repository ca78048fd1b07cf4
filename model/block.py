"""One MM-DiT block: two streams with weights of their own that meet in one attention over [video; text].

Source: Stable Diffusion 3, arXiv 2403.03206, figure 2b; RMS-normalised queries and keys as in its section 5.3.2.
"""

import torch

from ..kernels.registry import KernelSet
from ..parallel.layers import LayerFactory, ShardedModule
from .config import NORM_EPSILON, ModelConfig
from .embeddings import Modulation
from .positions import Rotation

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Query, key, value, each [tokens, B, H, E]."""


class LendingStream(ShardedModule):
    """A stream that lends the attention its keys and values and asks nothing itself: the last block's text.

    The published layout still carries its query; taking none of its rows gives those weights their exact zero gradient.
    """

    modulation_parts = 2  # scale, shift

    def __init__(self, config: ModelConfig, layers: LayerFactory, kernels: KernelSet):
        super().__init__(config)
        self.kernels = kernels
        self.modulation = Modulation(self.modulation_parts, config, layers)
        # Rows ordered (head, q|k|v, E): a tensor-parallel rank's heads are then one contiguous piece.
        self.qkv = layers.column(config.width, 3 * config.width)
        self.q_gain = layers.gain(config.head_width)
        self.k_gain = layers.gain(config.head_width)

    def heads(self, x_SBD: torch.Tensor, modulation: tuple[torch.Tensor, ...], rotation: Rotation | None) -> Heads:
        scale_BD, shift_BD = modulation
        q, k, v = self._project(x_SBD, shift_BD, scale_BD, rotation)
        return q[:0], k, v

    def absorb(self, x_SBD: torch.Tensor, _attended, _modulation) -> torch.Tensor:
        return x_SBD

    def _project(self, x_SBD, shift_BD, scale_BD, rotation: Rotation | None) -> Heads:
        normed_SBD = self.kernels.modulated_norm(x_SBD, shift_BD, scale_BD, epsilon=NORM_EPSILON)
        qkv_SBHE = self.qkv(normed_SBD).unflatten(-1, (-1, 3, self.config.head_width))
        q, k, v = qkv_SBHE.unbind(-2)
        q, k = self.kernels.qk_norm_rope(q, k, self.q_gain(), self.k_gain(), rotation, epsilon=NORM_EPSILON)
        return q, k, v


class Stream(LendingStream):
    """A full stream: attention and MLP, each normalised, modulated and gated by the condition."""

    modulation_parts = 6  # shift, scale, gate of the attention; shift, scale, gate of the MLP

    def __init__(self, config: ModelConfig, layers: LayerFactory, kernels: KernelSet):
        super().__init__(config, layers, kernels)
        self.out = layers.row(config.width, config.width)
        self.up = layers.column(config.width, config.mlp_width, bias_apart=True)
        self.down = layers.row(config.mlp_width, config.width)

    def heads(self, x_SBD: torch.Tensor, modulation: tuple[torch.Tensor, ...], rotation: Rotation | None) -> Heads:
        shift_BD, scale_BD, *_ = modulation
        return self._project(x_SBD, shift_BD, scale_BD, rotation)

    def absorb(self, x_SBD: torch.Tensor, attended_SBD: torch.Tensor, modulation) -> torch.Tensor:
        _, _, attention_gate, mlp_shift, mlp_scale, mlp_gate = modulation
        x_SBD = self.kernels.gated_residual(x_SBD, attention_gate, self.out(attended_SBD))
        normed_SBD = self.kernels.modulated_norm(x_SBD, mlp_shift, mlp_scale, epsilon=NORM_EPSILON)
        hidden_SBM = self.kernels.mlp_gelu(self.up(normed_SBD), self.up.bias)
        return self.kernels.gated_residual(x_SBD, mlp_gate, self.down(hidden_SBM))


class Block(ShardedModule):
    """video [S, B, D], text [T, B, D], condition [B, D] -> video, text."""

    def __init__(self, config: ModelConfig, layers: LayerFactory, kernels: KernelSet, *, last: bool):
        super().__init__(config)
        self.kernels = kernels
        self.video = Stream(config, layers, kernels)
        self.text = (LendingStream if last else Stream)(config, layers, kernels)

    def forward(self, video_SBD, text_TBD, condition_BD, rotation: Rotation | None):
        # The two streams' gradients of the condition meet here, before those of other blocks are added: the order in
        # which a recomputed block adds them, so that recomputing changes no bit.
        condition_BD = condition_BD.view_as(condition_BD)
        video_modulation = self.video.modulation(condition_BD)
        text_modulation = self.text.modulation(condition_BD)

        video_heads = self.video.heads(video_SBD, video_modulation, rotation)
        text_heads = self.text.heads(text_TBD, text_modulation, None)
        q_BHQE, k_BHJE, v_BHJE = (_join(video, text) for video, text in zip(video_heads, text_heads, strict=True))
        attended_BHQE, _ = self.kernels.joint_attention(q_BHQE, k_BHJE, v_BHJE, scale=self.config.head_width**-0.5)
        attended_QBD = attended_BHQE.permute(2, 0, 1, 3).flatten(-2)

        tokens = video_SBD.shape[0]
        video_SBD = self.video.absorb(video_SBD, attended_QBD[:tokens], video_modulation)
        text_TBD = self.text.absorb(text_TBD, attended_QBD[tokens:], text_modulation)
        return video_SBD, text_TBD


def _join(video_SBHE: torch.Tensor, text_TBHE: torch.Tensor) -> torch.Tensor:
    """[S, B, H, E] and [T, B, H, E] -> [B, H, S + T, E], the joint sequence every query sees."""
    return torch.cat([video_SBHE, text_TBHE]).permute(1, 2, 0, 3)
