"""The published codec: Wan2.1's causal video VAE, from a local folder in diffusers' layout.

Source: Wan, arXiv 2503.20314, section 4.1. diffusers' AutoencoderKLWan supplies the layers; which of them sees what,
and when, is decided here, so that long clips and large frames need no more memory than short and small ones:

- In time, frames go through in the VAE's own groups (1, then 4 and 4); every causal convolution remembers the last two
  frames before its group. Nothing is approximated: the result is that of the whole clip, to the bit.
- In space, only layers above the latents' resolution are cut into tiles, and those see no further than their
  convolutions reach: each tile gets that margin of its neighbours and drops it afterwards. The mid-blocks, whose
  attention looks at a whole frame, run on the whole frame; there the tensors are small. Tiles therefore neither blend
  nor approximate; a convolution's rounding may depend on its input's size, so tiled and whole agree to 1e-4 of the
  largest value (measured: below 1e-6).

Latents are the posterior's mean, never a sample of it: equal pixels, equal latents.
"""

import json
import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..clip_size import FRAMES_PER_LATENT, PIXELS_PER_LATENT, latent_size
from .codec import SETTINGS_FILE, identity_of, read_settings, write_settings
from .wan_folder import CLASS, CONFIG_FILE, SETTINGS, is_vae_folder, read_config, read_weights, vae_folder

FOLDER_VARIABLE = "CONTENTV_WAN"
"""Environment variable: where the VAE's folder is on this machine, if not where the data were encoded with it."""

TILE = 512
"""Rows, and columns, of pixels a tile stands for, at most; its margin comes on top."""

REMEMBERED_FRAMES = 2
"""A causal convolution over three frames looks two back."""


class WanCodec:
    """Implements `Codec` in float32, whatever the file's dtype. Decoding is differentiable in the latents.

    Beyond input and result, memory holds one tile's activations for four frames and, if a frame needs several tiles,
    the features between tiled and whole layers: half of the clip's own size at the published widths. Counted on the
    meta device at those widths, 432 x 768 pixels need 2.4 GiB to encode and 3.6 GiB to decode, with tiles of 256 pixels
    1.1 and 2.0 GiB.
    """

    kind = "wan"

    def __init__(self, vae: Any, *, source: Path, tile: int = TILE):
        """`vae` is an AutoencoderKLWan of a config that `read_config` accepts, `source` the folder it came from."""
        if tile < PIXELS_PER_LATENT or tile % PIXELS_PER_LATENT:
            raise ValueError(f"tile is {tile} pixels; give a positive multiple of {PIXELS_PER_LATENT}")
        self.vae = vae.float().eval().requires_grad_(False)
        self.source, self.tile = Path(source).absolute(), tile // PIXELS_PER_LATENT
        config = vae.config
        self.channels = config.z_dim
        self.mean_C = torch.tensor(config.latents_mean, dtype=torch.float32)
        self.spread_C = torch.tensor(config.latents_std, dtype=torch.float32)
        settings = json.dumps({name: getattr(config, name) for name in SETTINGS}, sort_keys=True)
        self.identity = identity_of(f"{self.kind}|{settings}", self.vae.state_dict())
        self._encoder, self._decoder = _encoder_layers(vae.encoder, config), _decoder_layers(vae.decoder)
        self.encoder_margin, self.decoder_margin = margins(config.num_res_blocks)

    @classmethod
    def load(cls, folder: str | Path, *, tile: int = TILE) -> "WanCodec":
        """Reads a VAE's folder, or a pipeline's `vae`, without the network; ValueError says what is wrong."""
        try:
            from diffusers import AutoencoderKLWan
        except ImportError as error:
            raise ValueError(
                f"codec wan needs diffusers, which cannot be imported ({error}): run `python -m pip install diffusers`"
            ) from error
        folder = vae_folder(folder)
        with torch.device("meta"):  # random weights would only be overwritten
            vae = AutoencoderKLWan.from_config(read_config(folder))
        vae.load_state_dict(read_weights(folder, vae.state_dict()), assign=True)
        return cls(vae, source=folder, tile=tile)

    @classmethod
    def load_reference(cls, folder: str | Path) -> "WanCodec":
        """The codec that `save(folder)` refers to; ValueError if its weights moved or are others."""
        settings = read_settings(folder)
        source = os.environ.get(FOLDER_VARIABLE) or settings.get("source")
        remedy = f"set {FOLDER_VARIABLE} to the folder that holds those weights now"
        if not isinstance(source, str) or not is_vae_folder(source):
            raise ValueError(
                f"{Path(folder) / SETTINGS_FILE} refers to a Wan VAE in {source}, which holds none (expected "
                f"{CONFIG_FILE} of class {CLASS}): {remedy}"
            )
        codec = cls.load(source)
        if codec.identity != settings["identity"]:
            raise ValueError(
                f"{source} holds the Wan VAE {codec.identity[:12]}, but {Path(folder) / SETTINGS_FILE} refers to "
                f"{settings['identity'][:12]}: {remedy}"
            )
        return codec

    def save(self, folder: Path) -> None:
        """See `Codec.save`. Writes a reference, not the weights: they would be in every checkpoint."""
        write_settings(folder, self.kind, self.identity, source=str(self.source))

    def encode(self, pixels_B3FYX: Tensor) -> Tensor:
        """See `Codec.encode`. One clip at a time: a clip's latents do not depend on its company."""
        if pixels_B3FYX.dim() != 5 or pixels_B3FYX.shape[1] != 3:
            raise ValueError(f"pixels are {tuple(pixels_B3FYX.shape)}; expected [B, 3, 1 + 4k, Y, X]")
        latent_size(*pixels_B3FYX.shape[2:])
        self.vae.to(pixels_B3FYX.device)
        with _float32_convolutions():
            return torch.cat([self._encode_clip(clip) for clip in pixels_B3FYX.float().split(1)])

    def decode(self, latents_BCFYX: Tensor) -> Tensor:
        """See `Codec.decode`."""
        if latents_BCFYX.dim() != 5 or latents_BCFYX.shape[1] != self.channels or not latents_BCFYX.shape[2]:
            raise ValueError(f"latents are {tuple(latents_BCFYX.shape)}; expected [B, {self.channels}, 1 + k, Y, X]")
        self.vae.to(latents_BCFYX.device)
        batch, _, frames, *sizes = latents_BCFYX.shape
        frames = 1 + FRAMES_PER_LATENT * (frames - 1)
        pixels_B3FYX = latents_BCFYX.new_empty(
            batch, 3, frames, *(size * PIXELS_PER_LATENT for size in sizes), dtype=torch.float32
        )
        with _float32_convolutions():
            for clip in range(batch):
                self._decode_clip(latents_BCFYX[clip : clip + 1].float(), pixels_B3FYX[clip : clip + 1])
        return pixels_B3FYX

    def _encode_clip(self, pixels_13FYX: Tensor) -> Tensor:
        stream = Stream(self._encoder.frame)
        moments = [self.vae.quant_conv(stream(features)) for features in self._encoder_features(pixels_13FYX)]
        latents_1CFYX = torch.cat([moment[:, : self.channels] for moment in moments], dim=2)
        return (latents_1CFYX - _per_channel(self.mean_C, latents_1CFYX)) / _per_channel(self.spread_C, latents_1CFYX)

    def _encoder_features(self, pixels_13FYX: Tensor) -> Iterator[Tensor]:
        """What the tiled layers make of each group of frames, over the whole frame: [1, D, 1, Y / 8, X / 8]."""
        first, later = pixels_13FYX[:, :, :1], pixels_13FYX[:, :, 1:]
        groups = [first, *later.split(FRAMES_PER_LATENT, dim=2)] if later.shape[2] else [first]
        tiles = self._tiles(*(size // PIXELS_PER_LATENT for size in pixels_13FYX.shape[3:]), self.encoder_margin)
        if len(tiles) == 1:
            stream = Stream(self._encoder.tile)
            yield from (stream(group) for group in groups)
            return
        # Tile by tile through the whole clip: only one tile's convolutions have to remember anything at a time.
        whole: list[Tensor] = []
        for rows, columns in tiles:
            stream = Stream(self._encoder.tile)
            for number, group in enumerate(groups):
                seen = stream(group[..., rows.seen(PIXELS_PER_LATENT), columns.seen(PIXELS_PER_LATENT)])
                if number == len(whole):
                    sizes = (size // PIXELS_PER_LATENT for size in group.shape[3:])
                    whole.append(seen.new_empty(*seen.shape[:3], *sizes))
                whole[number][..., rows.own(), columns.own()] = seen[..., rows.kept(), columns.kept()]
        yield from whole

    def _decode_clip(self, latents_1CFYX: Tensor, pixels_13FYX: Tensor) -> None:
        """Writes what the latents show into `pixels_13FYX`."""
        latents_1CFYX = latents_1CFYX * _per_channel(self.spread_C, latents_1CFYX)
        latents_1CFYX = latents_1CFYX + _per_channel(self.mean_C, latents_1CFYX)
        whole = Stream(self._decoder.frame)
        features = (whole(self.vae.post_quant_conv(latent)) for latent in latents_1CFYX.split(1, dim=2))
        tiles = self._tiles(*latents_1CFYX.shape[3:], self.decoder_margin)
        if len(tiles) > 1:
            features = list(features)  # every tile goes through them once
        side = PIXELS_PER_LATENT
        for rows, columns in tiles:
            stream, begin = Stream(self._decoder.tile), 0
            for feature in features:
                seen = stream(feature[..., rows.seen(), columns.seen()])
                end = begin + seen.shape[2]
                kept = seen[..., rows.kept(side), columns.kept(side)].clamp(-1, 1)
                pixels_13FYX[:, :, begin:end, rows.own(side), columns.own(side)] = kept
                begin = end

    def _tiles(self, rows: int, columns: int, margin: int) -> list[tuple["Span", "Span"]]:
        return list(product(spans(rows, self.tile, margin), spans(columns, self.tile, margin)))


class Span(NamedTuple):
    """One tile's part of an axis, in latents: [begin, end) is its own, [low, high) is what it sees."""

    begin: int
    end: int
    low: int
    high: int

    def own(self, scale: int = 1) -> slice:
        return slice(self.begin * scale, self.end * scale)

    def seen(self, scale: int = 1) -> slice:
        return slice(self.low * scale, self.high * scale)

    def kept(self, scale: int = 1) -> slice:
        """Its own part, counted from where it sees."""
        return slice((self.begin - self.low) * scale, (self.end - self.low) * scale)


def spans(length: int, tile: int, margin: int) -> list[Span]:
    """The fewest parts of at most `tile`, as equal as can be, each with `margin` on both sides inside the axis."""
    count = -(-length // tile)
    edges = [length * number // count for number in range(count + 1)]
    return [
        Span(begin, end, max(0, begin - margin), min(length, end + margin))
        for begin, end in zip(edges[:-1], edges[1:], strict=True)
    ]


def margins(residual_blocks: int) -> tuple[int, int]:
    """How far, in latents, the encoder's and the decoder's tiled layers reach beyond a tile.

    A convolution of width 3 reaches one place of its own resolution. Resolutions 1, 2 and 4 pixels have in the encoder
    two convolutions a residual block and the halving one; in the decoder, whose levels have one block more, those of
    the level and the one after doubling; to both comes one at 1 pixel, the first or the last.
    """
    levels = 1 + 2 + 4
    encoder = levels * (2 * residual_blocks + 1) + 1
    decoder = levels * (2 * (residual_blocks + 1) + 1) + 1
    return -(-encoder // PIXELS_PER_LATENT), -(-decoder // PIXELS_PER_LATENT)


class Layers(NamedTuple):
    """A half of the VAE, cut where its tensors are smallest: layers that run on tiles and on whole frames."""

    tile: list[nn.Module]
    frame: list[nn.Module]


def _encoder_layers(encoder: Any, config: Any) -> Layers:
    """Down to the latents' resolution in tiles, on from there whole."""
    tiled = (len(config.dim_mult) - 1) * (config.num_res_blocks + 1)  # a level is its residual blocks and the halving
    last = Convolution(encoder.conv_out, encoder.norm_out, encoder.nonlinearity)
    return Layers(
        tile=[Convolution(encoder.conv_in), *encoder.down_blocks[:tiled]],
        frame=[*encoder.down_blocks[tiled:], encoder.mid_block, last],
    )


def _decoder_layers(decoder: Any) -> Layers:
    """Whole as long as it is at the latents' resolution, in tiles from the first doubling on."""
    first, *others = decoder.up_blocks
    last = Convolution(decoder.conv_out, decoder.norm_out, decoder.nonlinearity)
    return Layers(
        frame=[Convolution(decoder.conv_in), decoder.mid_block, *first.resnets],
        tile=[*first.upsamplers, *others, last],
    )


class Stream:
    """Consecutive layers, fed one group of frames after another: holds what their convolutions remember in between."""

    def __init__(self, layers: list[nn.Module]):
        self.layers = layers
        # One place for each convolution over time, which take them in the order they run.
        convolutions = [part for layer in layers for part in layer.modules() if isinstance(part, nn.Conv3d)]
        self.memory: list[Any] = [None] * len(convolutions)

    def __call__(self, features_1DFYX: Tensor) -> Tensor:
        place = [0]
        for layer in self.layers:
            features_1DFYX = layer(features_1DFYX, feat_cache=self.memory, feat_idx=place)
        return features_1DFYX


class Convolution(nn.Module):
    """A causal convolution outside diffusers' blocks, behind layers without memory, called as those blocks are."""

    def __init__(self, convolution: nn.Module, *before: nn.Module):
        super().__init__()
        self.convolution, self.before = convolution, nn.Sequential(*before)

    def forward(self, features_1DFYX: Tensor, feat_cache: list, feat_idx: list[int]) -> Tensor:
        features_1DFYX = self.before(features_1DFYX)
        place = feat_idx[0]
        earlier, recent = feat_cache[place], features_1DFYX[:, :, -REMEMBERED_FRAMES:]
        if earlier is not None:
            recent = torch.cat([earlier, recent], dim=2)[:, :, -REMEMBERED_FRAMES:]
        feat_cache[place] = recent.clone()  # a view would keep the whole group in memory
        feat_idx[0] = place + 1
        return self.convolution(features_1DFYX, earlier)


def _per_channel(values_C: Tensor, like_BCFYX: Tensor) -> Tensor:
    return values_C.to(like_BCFYX.device)[:, None, None, None]


def _float32_convolutions() -> Any:
    """cuDNN would round float32 inputs to TF32 by itself, and choose algorithms whose sums vary from run to run."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
