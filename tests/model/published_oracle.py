"""The published transformer put together from diffusers' own parts, and golden files made with it.

The oracle of everything in model/: SD3Transformer2DModel's modules driven over video tokens, with diffusers' additive
3D sine-cosine table (sincos3d) or CogVideoX's 3D rotation of the video queries and keys (rope3d).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.embeddings import apply_rotary_emb, get_3d_rotary_pos_embed, get_3d_sincos_pos_embed
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from safetensors.torch import save_file

from contentv.model.config import ModelConfig, Position

WHOLE_GRADIENTS = 20_000
"""Values up to which a golden file holds a whole gradient; beyond, its norm alone."""


@dataclass(frozen=True, kw_only=True)
class GoldenCase:
    """One model and one batch: latents [B, C, F, Y, X], T text tokens, weights N(0, std)."""

    config: ModelConfig
    batch: int
    grid: tuple[int, int, int]
    text: int
    std: float
    seed: int = 0


@dataclass(frozen=True)
class Golden:
    """A published folder and the golden file made with it."""

    folder: Path
    file: Path


def published_transformer(config: ModelConfig, **options) -> SD3Transformer2DModel:
    """diffusers' model of this shape, its weights as diffusers draws them."""
    return SD3Transformer2DModel(
        sample_size=8, pos_embed_max_size=8, patch_size=2, qk_norm="rms_norm", num_layers=config.layers,
        num_attention_heads=config.heads, attention_head_dim=config.head_width, joint_attention_dim=config.text_width,
        pooled_projection_dim=config.pooled_width, caption_projection_dim=config.width, in_channels=config.channels,
        out_channels=config.channels, **options,
    )  # fmt: skip


def published_parameters(model: SD3Transformer2DModel) -> dict[str, torch.Tensor]:
    """What training changes: the state without diffusers' 2D position table."""
    return dict(model.named_parameters())


def published_velocity(model: SD3Transformer2DModel, position: Position, x_t, sigma_B, text, pooled) -> torch.Tensor:
    """[B, C, F, Y, X], as the published model computes it from latents of that shape."""
    batch, channels, frames, rows, columns = x_t.shape
    patches = model.pos_embed.proj(x_t.transpose(1, 2).flatten(0, 1))  # [B F, D, Y / 2, X / 2]
    tokens = patches.unflatten(0, (batch, frames)).permute(0, 1, 3, 4, 2).flatten(1, 3)
    grid = frames, rows // 2, columns // 2
    hooks = []
    if position == "sincos3d":
        table = get_3d_sincos_pos_embed(tokens.shape[-1], (grid[2], grid[1]), frames, 0.5, 1.0)
        tokens = tokens + table.flatten(0, 1).float()
    else:
        hooks = _rotate_video(model, grid)
    condition = model.time_text_embed(1000 * sigma_B, pooled)
    text = model.context_embedder(text)
    for block in model.transformer_blocks:
        text, tokens = block(hidden_states=tokens, encoder_hidden_states=text, temb=condition)
    for hook in hooks:
        hook.remove()
    values = model.proj_out(model.norm_out(tokens, condition)).view(batch, *grid, 2, 2, channels)
    return torch.einsum("bfyxpqc->bcfypxq", values).reshape(x_t.shape)


def _rotate_video(model: SD3Transformer2DModel, grid: tuple[int, int, int]) -> list:
    """Rotation right behind the norms that only the video's queries and keys [B, H, S, E] pass."""
    frames, rows, columns = grid
    rotation = get_3d_rotary_pos_embed(
        model.config.attention_head_dim, None, (rows, columns), frames, grid_type="slice", max_size=(rows, columns)
    )

    def rotate(_module, _inputs, normed):
        return apply_rotary_emb(normed, rotation)

    norms = [norm for block in model.transformer_blocks for norm in (block.attn.norm_q, block.attn.norm_k)]
    return [norm.register_forward_hook(rotate) for norm in norms]


def random_weights(model: torch.nn.Module, std: float, seed: int) -> None:
    """Everything N(0, std) but the gains, which lie around 1: no path is shut, no term is missing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_gain = ".norm_" in name and parameter.dim() == 1 and "linear" not in name
            parameter.copy_(1 + 0.3 * noise if is_gain else std * noise)


def golden_values(model: SD3Transformer2DModel, case: GoldenCase) -> dict[str, torch.Tensor]:
    """Inputs, velocity, loss and gradients under the golden files' keys."""
    config, generator = case.config, torch.Generator().manual_seed(case.seed + 1)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    latents = (case.batch, config.channels, *case.grid)
    values = {"x0": draw(*latents), "noise": draw(*latents)}
    values["sigma"] = torch.rand(case.batch, generator=generator)
    values["encoder_hidden_states"] = draw(case.batch, case.text, config.text_width)
    values["pooled_projections"] = draw(case.batch, config.pooled_width)
    sigma = values["sigma"].view(-1, 1, 1, 1, 1)
    values["x_t"] = (1 - sigma) * values["x0"] + sigma * values["noise"]
    values["timestep"] = 1000 * values["sigma"]
    captions = values["encoder_hidden_states"], values["pooled_projections"]
    velocity = published_velocity(model, config.position, values["x_t"], values["sigma"], *captions)
    loss = (velocity - (values["noise"] - values["x0"])).square().mean()
    model.zero_grad()
    loss.backward()
    values |= {"velocity": velocity.detach(), "loss": loss.detach().reshape(1)}
    for name, parameter in model.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        values[f"grad_norm.{name}"] = gradient.norm().reshape(1)
        if gradient.numel() <= WHOLE_GRADIENTS:
            values[f"grad.{name}"] = gradient
    return values


def write_published(model: SD3Transformer2DModel, folder: Path, **changed) -> None:
    """config.json and weights as the published folders have them: no position, no table."""
    constants = {"dual_attention_layers": [], "_class_name": "SD3Transformer3DModel"}
    config = {key: value for key, value in model.config.items() if not key.startswith("_")} | constants | changed
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")


def make_golden(case: GoldenCase, folder: Path) -> Golden:
    """Draws the weights, computes with them and writes both sides of a parity check below `folder`."""
    model = published_transformer(case.config)
    random_weights(model, case.std, case.seed)
    golden = Golden(folder / "transformer", folder / "golden.safetensors")
    write_published(model, golden.folder)
    save_file({name: value.contiguous() for name, value in golden_values(model, case).items()}, golden.file)
    return golden
