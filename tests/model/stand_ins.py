"""Small random models of the published classes, in the published layouts: what a folder of real weights looks like."""

from pathlib import Path

import torch

from contentv.kernels.registry import choose
from contentv.model.config import ModelConfig
from contentv.model.mmdit import build
from contentv.model.weights import initialise
from contentv.parallel.config import ParallelConfig
from contentv.parallel.mesh import build_mesh

LETTERS = "abcdefghijklmnopqrstuvwxyz,!"


def write_transformer(folder: Path, **sizes) -> None:
    """A two-block transformer whose every path is open."""
    config = ModelConfig(**{"layers": 2, "heads": 2, "head_width": 16, "initialisation": "normal"} | sizes)
    model = build(config, build_mesh(ParallelConfig()), choose("cpu"))
    initialise(model, config, 0)
    model.save_pretrained(folder)


def write_wan_vae(folder, blocks: int = 1, seed: int = 0):
    """A random Wan-VAE whose every weight matters, saved to `folder` by diffusers."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(seed)
    vae = AutoencoderKLWan(base_dim=8, dim_mult=[1, 2, 2, 2], num_res_blocks=blocks)
    with torch.no_grad():
        for name, weight in vae.named_parameters():
            if name.endswith("gamma"):
                weight.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                weight.normal_(0, 0.1)
    vae.save_pretrained(folder)
    return vae.eval().requires_grad_(False)


def write_sd3_text(folder: Path) -> None:
    """CLIP-L, CLIP-G and T5: 333 tokens 40 wide, 32 pooled features."""
    torch.manual_seed(0)
    _write_clip(folder, "", 12, 12)
    _write_clip(folder, "_2", 20, 20)
    _write_t5(folder)


def _write_clip(folder, number: str, width: int, projection: int) -> None:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

    # CLIP-G pads with another token than it ends with, as published.
    pieces = ["<|startoftext|>", "<|endoftext|>", "!", *LETTERS[:-1], *(letter + "</w>" for letter in LETTERS)]
    vocabulary = {piece: place for place, piece in enumerate(pieces)} | {"do": len(pieces), "dog</w>": len(pieces) + 1}
    padding = {"pad_token": "!"} if number else {}
    tokenizer = CLIPTokenizer(vocabulary, merges=[("d", "o"), ("do", "g</w>")], model_max_length=77, **padding)
    tokenizer.save_pretrained(folder / f"tokenizer{number}")
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=projection,
        hidden_act="gelu" if number else "quick_gelu",
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2 if number else 1,
    )
    CLIPTextModelWithProjection(config).save_pretrained(folder / f"text_encoder{number}")


def _write_t5(folder) -> None:
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -2.0), ("▁dog", -1.0)]
    pieces += [(letter, -3.0) for letter in LETTERS]
    T5TokenizerFast(pieces, extra_ids=0).save_pretrained(folder / "tokenizer_3")
    config = T5Config(
        vocab_size=len(pieces), d_model=40, d_kv=10, d_ff=48, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu"
    )
    # Two files and an index, as the published T5 has.
    T5EncoderModel(config).save_pretrained(folder / "text_encoder_3", max_shard_size="20KB")
