"""One MM-DiT block: two streams with weights of their own that meet in one attention over [video; text].

Source: Stable Diffusion 3, arXiv 2403.03206, figure 2b; RMS-normalised queries and keys as in its section 5.3.2.
"""

import torch

from ..kernels.registry import KernelSet
from ..parallel.layers import LayerFactory, ShardedModule, recompute
from ..parallel.tokens import Share, Tokens
from .config import NORM_EPSILON, ModelConfig, Recompute
from .embeddings import Modulation
from .positions import Rotation
from .remade import remade

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Query, key, value, each [tokens, B, H, E]."""


class LendingStream(ShardedModule):
    """A stream that lends the attention its keys and values and asks nothing itself: the last block's text.

    The published layout still carries its query; taking none of its rows gives those weights their exact zero gradient.
    """

    modulation_parts = 2  # scale, shift

    def __init__(self, config: ModelConfig, layers: LayerFactory, kernels: KernelSet, _recomputed: Recompute):
        super().__init__(config)
        self.kernels = kernels
        self.modulation = Modulation(self.modulation_parts, config, layers)
        # Rows ordered (head, q|k|v, E): a tensor-parallel rank's heads are then one contiguous piece.
        self.qkv = layers.column(config.width, 3 * config.width, heads=config.heads)
        self.q_gain = layers.gain(config.head_width)
        self.k_gain = layers.gain(config.head_width)

    def project(self, x_SBD: torch.Tensor, modulation: tuple[torch.Tensor, ...], share: Share) -> torch.Tensor:
        """The product that queries, keys and values are cut from, [tokens, B, H, 3, E]."""
        shift_BD, scale_BD = self.first_norm(modulation)
        (product,) = remade(self._norm, (x_SBD, shift_BD, scale_BD), lambda normed_SBD: (self.qkv(normed_SBD),))
        return share.trim(product).unflatten(-1, (-1, 3, self.config.head_width))

    def first_norm(self, modulation: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Shift and scale of the norm before attention."""
        scale_BD, shift_BD = modulation
        return shift_BD, scale_BD

    def heads(self, qkv_SBHE: torch.Tensor, rotation: Rotation | None) -> Heads:
        q, k, v = self._heads(qkv_SBHE, rotation)
        return q[:0], k, v

    def absorb(self, x_SBD: torch.Tensor, _attended, _modulation, _share) -> torch.Tensor:
        return x_SBD

    def _norm(self, x_SBD, shift_BD, scale_BD) -> tuple[torch.Tensor]:
        return (self.kernels.modulated_norm(x_SBD, shift_BD, scale_BD, epsilon=NORM_EPSILON),)

    def _heads(self, qkv_SBHE: torch.Tensor, rotation: Rotation | None) -> Heads:
        q, k, v = qkv_SBHE.unbind(-2)
        q, k = self.kernels.qk_norm_rope(q, k, self.q_gain(), self.k_gain(), rotation, epsilon=NORM_EPSILON)
        return q, k, v


class Stream(LendingStream):
    """A full stream: attention and MLP, each normalised, modulated and gated by the condition."""

    modulation_parts = 6  # shift, scale, gate of the attention; shift, scale, gate of the MLP

    def __init__(self, config: ModelConfig, layers: LayerFactory, kernels: KernelSet, recomputed: Recompute):
        super().__init__(config, layers, kernels, recomputed)
        self.out = layers.row(config.width, config.width, heads=config.heads)
        self.up = layers.column(config.width, config.mlp_width, bias_apart=True)
        self.down = layers.row(config.mlp_width, config.width)
        self.recomputes_mlp = recomputed == "selective"

    def first_norm(self, modulation: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        shift_BD, scale_BD, *_ = modulation
        return shift_BD, scale_BD

    def heads(self, qkv_SBHE: torch.Tensor, rotation: Rotation | None) -> Heads:
        return self._heads(qkv_SBHE, rotation)

    def absorb(self, x_SBD: torch.Tensor, attended_SBD: torch.Tensor, modulation, share: Share) -> torch.Tensor:
        _, _, *rest = modulation
        update_SBD = self.out(share.fill(attended_SBD))
        if self.recomputes_mlp and torch.is_grad_enabled():
            return recompute(self.mlp, x_SBD, update_SBD, *rest)
        return self.mlp(x_SBD, update_SBD, *rest)

    def mlp(self, x_SBD, update_SBD, attention_gate, shift_BD, scale_BD, gate_BD) -> torch.Tensor:
        """Attention's residual, then the MLP with its own."""
        x_SBD, hidden_SBM = remade(
            self._residual_norm,
            (x_SBD, attention_gate, update_SBD, shift_BD, scale_BD),
            lambda x_SBD, normed_SBD: (x_SBD, self.up(normed_SBD)),
        )
        (update_SBD,) = remade(
            lambda *hidden: (self.kernels.mlp_gelu(*hidden),),
            (hidden_SBM, self.up.bias),
            lambda activated_SBM: (self.down(activated_SBM),),
        )
        return self.kernels.gated_residual(x_SBD, gate_BD, update_SBD)

    def _residual_norm(self, *streams_and_rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.kernels.gated_residual_norm(*streams_and_rows, epsilon=NORM_EPSILON)


class Block(ShardedModule):
    """video [S, B, D], text [T, B, D], condition [B, D] -> video, text: a rank's rows of both streams."""

    def __init__(self, config: ModelConfig, layers: LayerFactory, kernels: KernelSet, layer: int,
                 recomputed: Recompute = "none"):  # fmt: skip
        super().__init__(config)
        self.is_last = layer == config.layers - 1
        self.video = Stream(config, layers, kernels, recomputed)
        self.text = (LendingStream if self.is_last else Stream)(config, layers, kernels, recomputed)
        self.attention = layers.attention(kernels.joint_attention)
        self.recomputed = recomputed

    def forward(self, video_SBD, text_TBD, condition_BD, tokens: Tokens, rotation: Rotation | None):
        streams = video_SBD, text_TBD, condition_BD
        if self.recomputed == "full" and torch.is_grad_enabled():
            return recompute(lambda *again: self.compute(*again, tokens, rotation), *streams)
        return self.compute(*streams, tokens, rotation)

    def compute(self, video_SBD, text_TBD, condition_BD, tokens: Tokens, rotation: Rotation | None):
        # The two streams' gradients of the condition meet here, before those of other blocks are added: the order in
        # which a recomputed block adds them, so that recomputing changes no bit.
        condition_BD = condition_BD.view_as(condition_BD)
        video_modulation = self.video.modulation(condition_BD)
        text_modulation = self.text.modulation(condition_BD)

        video_qkv = self.video.project(video_SBD, video_modulation, tokens.video)
        text_qkv = self.text.project(text_TBD, text_modulation, tokens.text)

        def join(video_qkv: torch.Tensor, text_qkv: torch.Tensor) -> Heads:
            pairs = zip(self.video.heads(video_qkv, rotation), self.text.heads(text_qkv, None), strict=True)
            return tuple(torch.cat(pair) for pair in pairs)

        (attended_QBD,) = remade(join, (video_qkv, text_qkv), lambda *heads: (self.attend(*heads, tokens),))

        attended_SBD, attended_TBD = attended_QBD.tensor_split([tokens.video.count])
        video_SBD = self.video.absorb(video_SBD, attended_SBD, video_modulation, tokens.video)
        text_TBD = self.text.absorb(text_TBD, attended_TBD, text_modulation, tokens.text)
        return video_SBD, text_TBD

    def attend(self, q_QBHE: torch.Tensor, k_JBHE: torch.Tensor, v_JBHE: torch.Tensor, tokens: Tokens) -> torch.Tensor:
        asking = tokens.video.counts if self.is_last else tokens.joint_counts
        scale = self.config.head_width**-0.5
        return self.attention(q_QBHE, k_JBHE, v_JBHE, queries=asking, keys=tokens.joint_counts, scale=scale)
