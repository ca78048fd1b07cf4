"""Stable Diffusion 3's three text encoders, CLIP-L, CLIP-G and T5-XXL, from a local folder in its pipeline's layout.

Source: Stable Diffusion 3, arXiv 2403.03206, figure 2 and appendix B.3. Both CLIPs' last hidden states but one lie side
by side, zero-padded to T5's width, in front of T5's last ones; the two projected CLIP features make the pooled vector:

    tokens_TW = [[clip_l | clip_g | 0] (77 tokens), t5 (256 tokens)]     pooled_W = [clip_l | clip_g]

T = 333, W = 4096 and 2048 as published. Padding tokens are encoded like any other, as the published weights saw them.
"""

import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...parallel.reading import file_sha256, shown
from ..weight_files import read_header, read_json, tensor_files
from .text import encode_one_by_one, without_bars

FOLDER_VARIABLE = "CONTENTV_SD3"
"""Environment variable: where the encoders' folder is on this machine, if no folder is given."""

CLIP_CLASS = "CLIPTextModelWithProjection"
T5_CLASS = "T5EncoderModel"

ENCODERS = (
    ("tokenizer", "text_encoder", CLIP_CLASS),
    ("tokenizer_2", "text_encoder_2", CLIP_CLASS),
    ("tokenizer_3", "text_encoder_3", T5_CLASS),
)
"""Subfolders of tokenizer and model, and the model's class, in the order in which their features are joined."""

TOKENS = 77 + 256

TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
"""Those that are there decide how captions are cut."""

WEIGHTS_FILE = "model.safetensors"


class Encoder(NamedTuple):
    """One of the three: its tokenizer, its model, and how many tokens it is always given."""

    tokenizer: Any
    model: Any
    tokens: int

    def token_ids(self, caption: str) -> Tensor:
        """[1, T], cut or padded; on the model's device."""
        words = self.tokenizer(
            [caption], padding="max_length", max_length=self.tokens, truncation=True, return_tensors="pt"
        )
        return words.input_ids.to(self.model.device)


class SD3Text:
    """Implements `TextEncoder`: what diffusers' StableDiffusion3Pipeline.encode_prompt gives with float32 weights."""

    kind = "sd3"

    def __init__(self, clips: list[Encoder], t5: Encoder, *, identity: str):
        self.clips, self.t5, self.identity = clips, t5, identity
        self.tokens = clips[0].tokens + t5.tokens
        self.width = t5.model.config.d_model
        self.pooled_width = sum(clip.model.config.projection_dim for clip in clips)
        self._empty: tuple[Tensor, Tensor] | None = None

    @classmethod
    def load(
        cls, folder: str | Path | None = None, *, tokens: int = TOKENS, device: str | torch.device = "cpu"
    ) -> "SD3Text":
        """Reads the encoders, without the network, and puts them on `device`, where `encode` computes.

        `folder` may be left to the environment variable CONTENTV_SD3; CLIP takes its own number of `tokens` (77), T5
        the rest. ValueError says what is missing, broken or does not fit.
        """
        folder = _pipeline_folder(folder)
        clips = [_load(folder, *names, device) for names in ENCODERS[:2]]
        t5 = _load(folder, *ENCODERS[2], device)
        clip_tokens = _clip_tokens(folder, clips)
        clip_width = sum(clip.config.hidden_size for _, clip in clips)
        if clip_width > t5[1].config.d_model:
            raise ValueError(
                f"{folder}: the CLIPs' hidden states are {clip_width} wide together, T5's {t5[1].config.d_model}; the "
                "latter must be no narrower: give the encoders of one Stable Diffusion 3 pipeline"
            )
        if tokens <= clip_tokens:
            raise ValueError(
                f"sd3 with {tokens} tokens; CLIP takes {clip_tokens} of them and T5 needs at least one: {TOKENS} is "
                "the published number"
            )
        identity = _identity(folder, clip_tokens, tokens - clip_tokens)
        return cls(
            [Encoder(*clip, clip_tokens) for clip in clips], Encoder(*t5, tokens - clip_tokens), identity=identity
        )

    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """See `TextEncoder.encode`. A long caption loses its end: sooner for CLIP than for T5."""
        return encode_one_by_one(self, self._encode_one, captions)

    def _encode_one(self, caption: str) -> tuple[Tensor, Tensor]:
        # Guidance and caption dropout ask for the empty one again and again.
        if caption:
            return self._compute(caption)
        if self._empty is None:
            self._empty = self._compute("")
        return self._empty

    def _compute(self, caption: str) -> tuple[Tensor, Tensor]:
        """[T, W] and [W]."""
        hidden, pooled = [], []
        for clip in self.clips:
            output = clip.model(clip.token_ids(caption), output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
            pooled.append(output.text_embeds)
        clip_1TW = torch.cat(hidden, dim=-1)
        t5_1TW = self.t5.model(self.t5.token_ids(caption)).last_hidden_state
        tokens_1TW = torch.cat([pad(clip_1TW, (0, self.width - clip_1TW.shape[-1])), t5_1TW], dim=1)
        return tokens_1TW[0].float().cpu(), torch.cat(pooled, dim=-1)[0].float().cpu()


def _pipeline_folder(given: str | Path | None) -> Path:
    folder = given or os.environ.get(FOLDER_VARIABLE)
    needed = [name for names in ENCODERS for name in names[:2]]
    if not folder:
        raise ValueError(
            f"text encoder sd3 needs the folder of a Stable Diffusion 3 pipeline (with {', '.join(needed)}): name it, "
            f"or set {FOLDER_VARIABLE} to it"
        )
    absent = [name for name in needed if not (Path(folder) / name).is_dir()]
    if absent:
        raise ValueError(
            f"{folder} has no {', '.join(absent)}; text encoder sd3 reads {', '.join(needed)}: give the folder of a "
            "Stable Diffusion 3 pipeline, downloaded with all of them"
        )
    return Path(folder)


def _load(folder: Path, tokenizer: str, encoder: str, name: str, device: str | torch.device) -> tuple[Any, Any]:
    """Tokenizer and model; float32 whatever the file holds."""
    # Imported here: transformers takes seconds, and only encoding captions needs it.
    import transformers

    tokenizer_class = transformers.CLIPTokenizer if name == CLIP_CLASS else transformers.T5TokenizerFast
    _check_class(folder / encoder, name)
    place = folder / tokenizer
    try:
        if not any((place / file).is_file() for file in ("tokenizer.json", "vocab.json", "spiece.model")):
            raise ValueError("no vocabulary")  # transformers would make up an empty one
        if not (place / "tokenizer_config.json").is_file():
            raise ValueError("no tokenizer_config.json")  # without it CLIP-G pads with another token
        cutter = tokenizer_class.from_pretrained(place, local_files_only=True)
        place = folder / encoder
        for path in _weight_files(place):
            read_header(path)  # transformers would wait for somebody to write into a named pipe
        with without_bars():
            model, report = getattr(transformers, name).from_pretrained(
                place, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
    except MemoryError:
        raise
    # What broken files raise is up to two libraries and the file: whatever it is, the user has to know which folder.
    # tokenizers, for one, raises plain Exceptions.
    except Exception as error:
        raise ValueError(
            f"{place}: not readable ({type(error).__name__}: {error}); expected what Stable Diffusion 3 has there, "
            "weights as safetensors: download it again"
        ) from error
    wrong = sorted(report["missing_keys"]) + [
        # Files of older versions carry this constant.
        key
        for key in sorted(report["unexpected_keys"])
        if not key.endswith("position_ids")
    ]
    if wrong:
        raise ValueError(
            f"{place}: weights and config.json differ in {len(wrong)} tensors, {wrong[0]} first: restore the pair"
        )
    return cutter, model.to(device).eval().requires_grad_(False)


def _check_class(folder: Path, name: str) -> None:
    path = folder / "config.json"
    found = read_json(path, f"the config of a {name}").get("architectures")
    if found != [name]:
        raise ValueError(
            f"{path}: found a model of class {shown(found)}; expected [{name!r}]: give its folder that name"
        )


def _clip_tokens(folder: Path, clips: list[tuple[Any, Any]]) -> int:
    """How many tokens both CLIPs are given: what the first tokenizer says, and no more than either has positions."""
    tokens = clips[0][0].model_max_length
    for _, model in clips:
        if tokens > model.config.max_position_embeddings:
            raise ValueError(
                f"{folder / 'tokenizer'}: model_max_length is {tokens}; a CLIP here has "
                f"{model.config.max_position_embeddings} positions: restore its tokenizer_config.json (77 as published)"
            )
    return tokens


def _identity(folder: Path, clip_tokens: int, t5_tokens: int) -> str:
    """sha256 (hex) over the numbers of tokens and the bytes of every file that features depend on, in fixed order."""
    digest = hashlib.sha256(f"{SD3Text.kind}|clip={clip_tokens}|t5={t5_tokens}".encode())
    for tokenizer, encoder, _ in ENCODERS:
        paths = [folder / tokenizer / name for name in TOKENIZER_FILES if (folder / tokenizer / name).is_file()]
        for path in [*paths, folder / encoder / "config.json", *_weight_files(folder / encoder)]:
            digest.update(f"|{path.relative_to(folder).as_posix()}={file_sha256(path)}".encode())
    return digest.hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    """What transformers reads: one file or, without it, those its index names; no other precision beside them."""
    whole = folder / WEIGHTS_FILE
    return [whole] if whole.is_file() else sorted(set(tensor_files(whole).values()))
