"""The engine's training against a plain torch loop: diffusers' transformer, torch's AdamW, clipping and average."""

import copy

import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.embeddings import get_3d_sincos_pos_embed
from safetensors.torch import load_file

from contentv.engine.metrics import read_metrics
from contentv.engine.parity import relative_error
from contentv.engine.session import open_session
from contentv.engine.signals import StopSignals
from contentv.engine.trainer import take_step, train
from contentv.kernels.philox import Stream, normal, uniform, words
from contentv.model.weights import published_tensors
from tests.engine.small_run import MODEL, small_config

STEPS = 20
DECAY, CLIP, RATE, EMA = 0.01, 0.1, 1e-3, 0.9


class PlainTransformer(torch.nn.Module):
    """The published model put together from diffusers' parts: additive 3D table, blocks, head."""

    def __init__(self):
        super().__init__()
        width = MODEL.width
        self.parts = SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=16, num_layers=MODEL.layers, attention_head_dim=MODEL.head_width,
            num_attention_heads=MODEL.heads, joint_attention_dim=MODEL.text_width, caption_projection_dim=width,
            pooled_projection_dim=MODEL.pooled_width, out_channels=16, pos_embed_max_size=8, qk_norm="rms_norm",
        )  # fmt: skip

    def forward(self, x_t, sigma, text, pooled):
        batch, channels, frames, rows, columns = x_t.shape
        parts, (height, width) = self.parts, (rows // 2, columns // 2)
        images = x_t.transpose(1, 2).flatten(0, 1)
        video = parts.pos_embed.proj(images).flatten(2).transpose(1, 2).reshape(batch, frames * height * width, -1)
        table = get_3d_sincos_pos_embed(MODEL.width, (width, height), frames, 0.5, 1.0)
        video = video + table.flatten(0, 1).float()
        condition, text = parts.time_text_embed(sigma * 1000, pooled), parts.context_embedder(text)
        for block in parts.transformer_blocks:
            text, video = block(hidden_states=video, encoder_hidden_states=text, temb=condition)
        tokens = parts.proj_out(parts.norm_out(video, condition))
        patches = tokens.reshape(batch, frames, height, width, 2, 2, channels)
        return patches.permute(0, 6, 1, 2, 4, 3, 5).reshape(x_t.shape)


def plain_draws(config, clips, empty, step):
    """Noise level, noise and captions of a step, straight from Philox words, one sample at a time."""
    sigma, noise, texts, pools = [], [], [], []
    elements = torch.arange(clips.latents_BCFYX[0].numel())
    for row, sample in enumerate(clips.sample_B.tolist()):
        first, second, _, _ = words(config.trainer.seed, 0, sample, step, Stream.TIMESTEP)
        sigma.append(torch.sigmoid(normal(first, second)))
        first, second, _, _ = words(config.trainer.seed, elements, sample, step, Stream.NOISE)
        noise.append(normal(first, second).view_as(clips.latents_BCFYX[0]))
        first, _, _, _ = words(config.trainer.seed, 0, sample, step, Stream.CAPTION_DROPOUT)
        dropped = float(uniform(first)) < config.flow.caption_dropout
        texts.append(empty[0] if dropped else clips.caption.tokens_BTW[row])
        pools.append(empty[1] if dropped else clips.caption.pooled_BW[row])
    return torch.stack(sigma), torch.stack(noise), torch.stack(texts), torch.stack(pools)


@pytest.mark.parametrize("decay_all", [False, True])
def test_twenty_steps_equal_a_plain_torch_loop(shards, tmp_path, decay_all):
    config = small_config(
        tmp_path / "run",
        shards,
        model={"position": "sincos3d"},
        flow={"caption_dropout": 0.3},
        optimizer={
            "weight_decay": DECAY, "clip": CLIP, "learning_rate": RATE, "ema_decay": EMA,
            "decay_biases_and_gains": decay_all,
        },
        trainer={"max_steps": STEPS},
    )  # fmt: skip
    session = open_session(config)
    session.model.modules[0].save_pretrained(tmp_path / "start")
    plain = PlainTransformer()
    weights = load_file(tmp_path / "start" / "diffusion_pytorch_model.safetensors")
    missing, surplus = plain.parts.load_state_dict(weights, strict=False)
    assert (missing, surplus) == (["pos_embed.pos_embed"], [])
    average = copy.deepcopy(dict(plain.parts.named_parameters()))
    flat = [parameter for parameter in plain.parameters() if parameter.dim() == 1]
    deep = [parameter for parameter in plain.parameters() if parameter.dim() > 1]
    groups = [{"params": deep}, {"params": flat, "weight_decay": DECAY if decay_all else 0.0}]
    adamw = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.99), eps=1e-8, weight_decay=DECAY)

    clipped = 0
    for step in range(1, STEPS + 1):
        result = take_step(session, step, StopSignals())
        ids = session.loader.global_ids((step - 1) * 4)
        batch = session.dataset.read(ids)
        clips = next(iter(_whole_batch(session, batch)))
        sigma, noise, text, pooled = plain_draws(config, clips, session.dataset.empty_caption(), step)
        level = sigma.view(-1, 1, 1, 1, 1)
        x0 = batch.latents_BCFYX
        velocity = plain((1 - level) * x0 + level * noise, sigma, text, pooled)
        loss = torch.nn.functional.mse_loss(velocity, noise - x0)
        adamw.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), CLIP)
        clipped += float(norm) > CLIP
        adamw.step()
        for name, parameter in plain.parts.named_parameters():
            average[name].data.mul_(EMA).add_(parameter.data, alpha=1 - EMA)
        assert float(result.loss) == pytest.approx(float(loss), rel=1e-5)
        assert float(result.grad_norm) == pytest.approx(float(norm), rel=1e-5)

    assert clipped > STEPS // 2, "clipping was never tried"
    ours = dict(session.model.modules[0].named_parameters())
    averages = session.optimizer.averaged()
    plain_weights = dict(plain.parts.named_parameters())
    for name, tensor in published_tensors(config.model, lambda name: ours[name].detach()):
        assert relative_error(tensor, plain_weights[name].detach()) < 1e-5, name
    for name, tensor in published_tensors(config.model, averages.__getitem__):
        assert relative_error(tensor, average[name].detach()) < 1e-5, name


def _whole_batch(session, batch):
    from contentv.engine.loading import to_device

    yield to_device(batch, session.mesh.device)


def test_accumulation_equals_the_big_batch(shards, tmp_path):
    losses = {}
    for micro_batch in (1, 4):
        folder, trainer = tmp_path / str(micro_batch), {"micro_batch": micro_batch}
        # torch's products round differently in another shape; a product of ours may give the very same bits.
        config = small_config(folder, shards, trainer=trainer, kernels={"wish": ("matrix_product=torch_blas",)})
        assert train(config, StopSignals()).complete
        lines = read_metrics(tmp_path / str(micro_batch) / "metrics.jsonl")
        losses[micro_batch] = [(line["loss"], line["grad_norm"]) for line in lines]
    assert losses[1] == [pytest.approx(pair, rel=1e-5) for pair in losses[4]]
    assert losses[1] != losses[4], "the two must have been computed apart"
