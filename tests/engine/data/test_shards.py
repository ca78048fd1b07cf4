"""Shards read back what was written, other readers agree, and damage is named."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from contentv.engine.data.manifest import MANIFEST_FILE, Bucket, digest_of, read_manifest
from contentv.engine.data.shard_writer import Sample, ShardWriter
from contentv.engine.data.shards import ShardDataset

SMALL, IMAGE = Bucket(5, 16, 24), Bucket(1, 8, 8)


class FakeCodec:
    kind, channels, identity = "fake", 16, "codec-identity"

    def save(self, folder: Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file({"x": torch.zeros(1)}, Path(folder) / "codec.safetensors")


class FakeText:
    kind, identity, tokens, width, pooled_width = "fake", "text-identity", 3, 7, 5

    def encode(self, captions):
        rows = len(captions)
        return torch.full((rows, 3, 7), 0.25), torch.full((rows, 5), 0.5)


def sample(number: int, bucket: Bucket) -> Sample:
    generator = torch.Generator().manual_seed(number)
    size = (1 + bucket.frames // 4, bucket.height // 8, bucket.width // 8)
    return Sample(
        sample=number,
        latents_CFYX=torch.randn(16, *size, generator=generator),
        tokens_TW=torch.randn(3, 7, generator=generator),
        pooled_W=torch.randn(5, generator=generator),
        facts={"caption": f"größer {number}", "clip": "waves", "first_frame": 10 * number},
    )


def write(folder: Path) -> None:
    writer = ShardWriter(folder, samples_per_shard=2)
    for number in (4, 9, 2, 70_000, 5):
        writer.add("train", SMALL, sample(number, SMALL))
    writer.add("train", IMAGE, sample(1, IMAGE))
    writer.add("held_out", SMALL, sample(3, SMALL))
    writer.close(FakeCodec(), FakeText(), "source")


@pytest.fixture
def folder(tmp_path) -> Path:
    write(tmp_path)
    return tmp_path


def test_batches_hold_what_was_written_in_the_order_asked_for(folder):
    dataset = ShardDataset(folder)
    batch = dataset.read([70_000, 2, 4])
    for row, number in enumerate((70_000, 2, 4)):
        expected = sample(number, SMALL)
        assert torch.equal(batch.latents_BCFYX[row], expected.latents_CFYX)
        assert torch.equal(batch.tokens_BTW[row], expected.tokens_TW)
        assert torch.equal(batch.pooled_BW[row], expected.pooled_W)
    assert batch.sample_B.tolist() == [70_000, 2, 4] and batch.sample_B.dtype == torch.int64
    assert batch.captions == ("größer 70000", "größer 2", "größer 4")
    assert dataset.facts(9) == {"sample": 9, "caption": "größer 9", "clip": "waves", "first_frame": 90}


def test_buckets_splits_and_identities(folder):
    dataset = ShardDataset(folder)
    assert dataset.buckets == {IMAGE: 1, SMALL: 5}
    assert dataset.samples() == {IMAGE: (1,), SMALL: (2, 4, 5, 9, 70_000)}
    assert ShardDataset(folder, "held_out").samples() == {SMALL: (3,)}
    assert (dataset.codec_identity, dataset.manifest.text.identity) == ("codec-identity", "text-identity")
    assert dataset.manifest.counts() == {"held_out": {"5x16x24": 1}, "train": {"1x8x8": 1, "5x16x24": 5}}
    tokens, pooled = dataset.empty_caption()
    assert torch.equal(tokens, torch.full((3, 7), 0.25)) and torch.equal(pooled, torch.full((5,), 0.5))
    dataset.verify()


def test_plain_tar_reading_agrees_and_each_shard_has_one_bucket(folder):
    """Python's tarfile and numpy, which know nothing of the manifest, find the same values in webdataset's layout."""
    names = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                key, _, extension = member.name.partition(".")
                names.setdefault(key, []).append(extension)
                if extension == "latents.npy":
                    latents = np.load(io.BytesIO(tar.extractfile(member).read()), allow_pickle=False)
                    bucket = IMAGE if int(key) == 1 else SMALL
                    assert str(bucket) in path.name
                    assert np.array_equal(latents, sample(int(key), bucket).latents_CFYX.numpy())
    assert len(names) == 7
    assert all(kinds == ["latents.npy", "tokens.npy", "pooled.npy", "json"] for kinds in names.values())


def test_the_same_samples_give_the_same_bytes(folder, tmp_path):
    before = {path.name: path.read_bytes() for path in folder.glob("*.tar")}
    write(folder)
    assert before == {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def test_a_folder_being_rewritten_does_not_look_complete(folder):
    ShardWriter(folder).add("train", SMALL, sample(1, SMALL))
    with pytest.raises(ValueError, match=MANIFEST_FILE):
        ShardDataset(folder)


def test_a_flipped_byte_is_named_on_reading_and_on_verifying(folder):
    dataset = ShardDataset(folder)
    path = folder / "train-5x16x24-00001.tar"
    content = bytearray(path.read_bytes())
    content[1500] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"train-5x16x24-00001\.tar: found crc32 .* expected .* sample 2"):
        dataset.read([2])
    with pytest.raises(ValueError, match=r"train-5x16x24-00001\.tar: found sha256 .* expected"):
        ShardDataset(folder).verify()


def test_truncated_and_missing_shards_are_named(folder):
    path = folder / "train-5x16x24-00000.tar"
    dataset = ShardDataset(folder)
    content = path.read_bytes()
    path.write_bytes(content[:2000])
    with pytest.raises(ValueError, match=rf"00000\.tar: found 2000; expected {len(content)} bytes"):
        ShardDataset(folder)
    with pytest.raises(ValueError, match=r"00000\.tar: found .* bytes at"):
        dataset.read([9])
    path.unlink()
    with pytest.raises(ValueError, match=r"00000\.tar: found no file; expected"):
        ShardDataset(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:200], "found JSONDecodeError"),
        (lambda text: text.replace("codec-identity", "other-identity"), "found digest"),
        (lambda text: text.replace("contentv-shards-1", "contentv-shards-9"), "found format 'contentv-shards-9'"),
        (lambda text: "[]", "found format 'list'"),
    ],
)
def test_damaged_manifests_are_refused(folder, change, message):
    path = folder / MANIFEST_FILE
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=f"manifest.json: {message}"):
        ShardDataset(folder)


def test_a_manifest_with_a_right_digest_but_missing_fields_is_refused(folder):
    path = folder / MANIFEST_FILE
    content = json.loads(path.read_text())
    del content["shards"][0]["sha256"]
    path.write_text(json.dumps(content | {"digest": digest_of(content)}))
    with pytest.raises(ValueError, match="manifest.json: the key shards.0..sha256 is missing"):
        read_manifest(folder)


def test_an_altered_empty_caption_is_refused(folder):
    save_file({"tokens": torch.zeros(3, 7), "pooled": torch.zeros(5)}, folder / "empty_caption.safetensors")
    with pytest.raises(ValueError, match="empty_caption.safetensors: found sha256"):
        ShardDataset(folder).empty_caption()


def test_what_cannot_be_asked_for(folder):
    with pytest.raises(ValueError, match="split 'test'; expected one of: held_out, train"):
        ShardDataset(folder, "test")
    dataset = ShardDataset(folder)
    with pytest.raises(ValueError, match=r"samples \[3\]"):
        dataset.read([2, 3])
    with pytest.raises(ValueError, match="one bucket"):
        dataset.read([1, 2])
    with pytest.raises(ValueError, match="asked for samples"):
        dataset.read([])
    writer = ShardWriter(folder / "new")
    writer.add("train", SMALL, sample(1, SMALL))
    with pytest.raises(ValueError, match="sample id 1 is taken"):
        writer.add("train", SMALL, sample(1, SMALL))
