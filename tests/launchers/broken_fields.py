"""The cases in which a file is whole and well formed, but a field says something impossible. See broken_inputs.py.

Where a file has a digest of itself, that digest is right: what is met is the check behind it.
"""

from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

from tests.launchers.broken_inputs import LAST, PUBLISHED, READERS, Case
from tests.launchers.damage import Damage, header_length, of_header, of_json, sealed

FACTS = f"{LAST}/checkpoint.json"
MANIFEST = "shards/manifest.json"
WEIGHTS = "published/diffusion_pytorch_model.safetensors"
INDEX = "pieces/diffusion_pytorch_model.safetensors.index.json"
PIECE = "diffusion_pytorch_model-00001-of-00003.safetensors"
SIZES = ("num_layers", "num_attention_heads", "attention_head_dim", "joint_attention_dim", "pooled_projection_dim",
         "in_channels")  # fmt: skip
GAIN = "transformer_blocks.1.attn.norm_k.weight"


def put(*path: Any) -> Callable[[Any], None]:
    """Sets the last of `path` where all before it lead."""
    *way, key, value = path

    def change(content: Any) -> None:
        for step in way:
            content = content[step]
        content[key] = value

    return change


def take(*path: Any) -> Callable[[Any], None]:
    *way, key = path

    def change(content: Any) -> None:
        for step in way:
            content = content[step]
        del content[key]

    return change


def in_turn(file: str, commands: tuple[str, ...], kind: Callable[[Callable], Damage], changes: dict) -> Iterator[Case]:
    turns = cycle(commands)
    for title, (change, *told) in changes.items():
        yield Case(f"{file}: {title}", next(turns), file, kind(change), tuple(told))


def checkpoint_fields() -> Iterator[Case]:
    record = {"bytes": 3, "sha256": "0" * 64}
    common = "tensors/common.pt"
    changes = {
        "no format": (take("format"), "format"),
        "the former format": (put("format", "contentv-checkpoint-1"), "contentv-checkpoint-1", "start again"),
        "a later format": (put("format", "contentv-checkpoint-99"), "contentv-checkpoint-99"),
        "a format of another kind": (put("format", ["contentv-checkpoint-2"]), "format"),
        "no files": (take("files"), "files"),
        "files a list": (put("files", []), "files"),
        "a path out of the folder": (put("files", "../../config.yaml", record), "../../config.yaml"),
        "an absolute path": (put("files", "/etc/hostname", record), "/etc/hostname"),
        "a path with a NUL": (put("files", "a\0b", record), "files"),
        "no name": (put("files", "", record), "files"),
        "a file that is not there": (put("files", "tensors/more.pt", record), "more.pt", "no file"),
        "another size": (put("files", common, "bytes", 5), "common.pt", "expected 5 bytes"),
        "a size in words": (put("files", common, "bytes", "many"), "common.pt"),
        "no digest of a pickle": (take("files", common, "sha256"), "common.pt"),
        "a digest of another kind": (put("files", common, "sha256", 5), "common.pt"),
        "another digest": (put("files", common, "sha256", "0" * 64), "common.pt", "expected 0000"),
        "a pickle not recorded": (take("files", common), "common.pt", "does not list"),
        "the metadata not recorded": (take("files", "tensors/.metadata"), ".metadata", "does not list"),
        "tensors not recorded": (take("files", "tensors/__0_0.distcp"), "__0_0.distcp", "does not list"),
        "a record of another kind": (put("files", common, 5), "common.pt"),
        "an unknown key": (put("surprise", 1), "unknown key surprise"),
        "no step": (take("step"), "step"),
        "a negative step": (put("step", -1), "step"),
        "a vast step": (put("step", 10**30), "step"),
        "step a text": (put("step", "six"), "step"),
        "step a truth": (put("step", True), "step"),
        "a negative sample index": (put("sample_index", -4), "sample_index"),
        "sample index a fraction": (put("sample_index", 0.5), "sample_index"),
        "kernels a list": (put("kernels", []), "kernels"),
        "a backend of another kind": (put("kernels", "adamw", 5), "kernels.adamw"),
        "codec a number": (put("codec_identity", 5), "codec_identity"),
        "text a text": (put("text", "minilm"), "text"),
        "text without its width": (take("text", "width"), "text.width"),
        "tokens a text": (put("text", "tokens", "77"), "text.tokens"),
        "no tokens": (put("text", "tokens", 0), "text.tokens"),
        "vast tokens": (put("text", "tokens", 10**12), "text.tokens"),
        "a clip of two sizes": (put("clip_size", [5, 32]), "clip_size"),
        "a clip of nothing": (put("clip_size", [0, 0, 0]), "clip_size"),
        "a negative clip": (put("clip_size", [5, -32, 48]), "clip_size"),
    }
    yield from in_turn(FACTS, READERS, sealed, changes)
    used = {
        "another codec": (put("codec_identity", "0" * 64), "codec"),
        "another text encoder": (put("text", "identity", "0" * 64), "text"),
        "an unknown operation": (put("kernels", "magic", "reference"), "magic"),
        "an unknown backend": (put("kernels", "adamw", "magic"), "magic"),
        "an unknown text encoder": (put("text", "kind", "t5"), "t5"),
    }
    yield from in_turn(FACTS, ("resume", "sample"), sealed, used)
    asked = {
        "a clip no codec makes": (put("clip_size", [4, 32, 48]), "clip_size"),
        "a clip no patch fills": (put("clip_size", [5, 40, 48]), "40"),
    }
    yield from in_turn(FACTS, ("sample",), sealed, asked)
    resumed = {
        "the step of another": (put("step", 3), "step-00000006"),
        "a sample index between batches": (put("sample_index", 25), "sample"),
    }
    yield from in_turn(FACTS, ("resume",), sealed, resumed)


def manifest_fields() -> Iterator[Case]:
    shard, sample = ("shards", 1), ("shards", 1, "samples", 0)  # the training shard, its first sample
    latents = (*sample, "members", "latents.npy")
    changes = {
        "no format": (take("format"), "format"),
        "another format": (put("format", "contentv-shards-9"), "contentv-shards-9"),
        "an unknown key": (put("surprise", 1), "unknown key surprise"),
        "no shards": (take("shards"), "shards"),
        "shards a mapping": (put("shards", {}), "shards"),
        "not one shard": (put("shards", []), "split"),
        "a shard a number": (put("shards", 1, 5), "shards[1]"),
        "a shard out of the folder": (put(*shard, "file", "../../secret.tar"), "shards[1].file"),
        "a shard at an absolute path": (put(*shard, "file", "/etc/hostname"), "shards[1].file"),
        "a shard in a folder": (put(*shard, "file", "codec/codec.json"), "shards[1].file"),
        "a shard named ..": (put(*shard, "file", ".."), "shards[1].file"),
        "a shard without a name": (put(*shard, "file", ""), "shards[1].file"),
        "a shard with a NUL": (put(*shard, "file", "a\0b"), "shards[1].file"),
        "a shard that is not there": (put(*shard, "file", "more.tar"), "more.tar"),
        "two shards of one name": (lambda content: content["shards"].append(content["shards"][0]), "shards"),
        "bytes a text": (put(*shard, "bytes", "many"), "shards[1].bytes"),
        "other bytes": (put(*shard, "bytes", 2**40), "expected"),
        "negative bytes": (put(*shard, "bytes", -1), "shards"),
        "no sha256": (take(*shard, "sha256"), "sha256"),
        "a bucket of two sizes": (put(*shard, "bucket", [5, 32]), "bucket"),
        "a bucket of nothing": (put(*shard, "bucket", [0, 0, 0]), "bucket"),
        "a bucket of texts": (put(*shard, "bucket", ["5", "32", "48"]), "bucket"),
        "samples a mapping": (put(*shard, "samples", {}), "samples"),
        "a negative id": (put(*sample, "sample", -1), "sample id"),
        "a vast id": (put(*sample, "sample", 2**32), "sample id"),
        "an id twice": (put(*sample, "sample", 5), "sample id"),
        "an id a text": (put(*sample, "sample", "0"), "sample"),
        "a place past the end": (put(*sample, "end", 2**50), "sample 0"),
        "a negative place": (put(*sample, "begin", -512), "sample 0"),
        "a place turned round": (put(*sample, "begin", 2**19), "sample 0"),
        "a place a fraction": (put(*sample, "begin", 0.5), "begin"),
        "members a list": (put(*sample, "members", []), "members"),
        "no latents": (take(*latents), "members"),
        "an unknown member": (put(*sample, "members", "more.npy", [0, 1]), "members"),
        "a member past the end": (put(*latents, [2**40, 100]), "sample 0"),
        "a member of vast size": (put(*latents, [512, 2**60]), "sample 0"),
        "a member of negative size": (put(*latents, [512, -1]), "sample 0"),
        "a member with one number": (put(*latents, [512]), "latents.npy"),
        "the codec elsewhere": (put("codec_folder", "../run"), "codec_folder"),
        "the codec at an absolute path": (put("codec_folder", "/etc"), "codec_folder"),
        "codec a number": (put("codec_identity", 5), "codec_identity"),
        "the empty caption elsewhere": (put("empty_caption", "file", "../golden.safetensors"), "empty_caption"),
        "no empty caption": (take("empty_caption"), "empty_caption"),
        "text without its width": (take("text", "width"), "text.width"),
        "text of no width": (put("text", "width", 0), "text.width"),
        "text of vast width": (put("text", "width", 2**40), "text.width"),
    }
    yield from in_turn(MANIFEST, ("train", "inspect shards", "evaluate", "resume"), sealed, changes)
    read = {
        "another codec": (put("codec_identity", "0" * 64), "codec"),
        "another empty caption": (put("empty_caption", "sha256", "0" * 64), "empty_caption"),
    }
    yield from in_turn(MANIFEST, ("train", "inspect shards"), sealed, read)
    met = {
        "a crc32 of another": (put(*sample, "crc32", 1), "crc32"),
        "a bucket of another size": (put(*shard, "bucket", [5, 64, 96]), "shapes"),
        "tokens of another number": (put("text", "tokens", 4), "shapes"),
        "latents that are json": (lambda content: json_for_latents(content["shards"][1]["samples"][0]), "sample 0"),
        "json that is latents": (lambda content: latents_for_json(content["shards"][1]["samples"][0]), "sample 0"),
        "latents cut short": (lambda content: cut_latents(content["shards"][1]["samples"][0]), "sample 0"),
    }
    yield from in_turn(MANIFEST, ("train", "inspect shards"), sealed, met)


def json_for_latents(sample: dict) -> None:
    sample["members"]["latents.npy"] = sample["members"]["json"]


def latents_for_json(sample: dict) -> None:
    sample["members"]["json"] = sample["members"]["latents.npy"]


def cut_latents(sample: dict) -> None:
    sample["members"]["latents.npy"][1] -= 4


def codec_fields() -> Iterator[Case]:
    changes = {
        "no kind": (take("kind"), "codec"),
        "kind a number": (put("kind", 5), "codec"),
        "another kind": (put("kind", "magic"), "codec"),
        "no identity": (take("identity"), "codec"),
        "another identity": (put("identity", "0" * 64), "codec"),
        "wan that is nowhere": (put("kind", "wan"), "codec"),
    }
    yield from in_turn("shards/codec/codec.json", ("train", "sample published"), of_json, changes)
    tensors = {
        "wrong type": (put("first.mean", "dtype", "I32"), "codec.safetensors"),
        "half precision": (lambda header: halve(header, "first.mean"), "codec.safetensors"),
        "wrong shape": (put("first.mean", "shape", [1, 192]), "codec.safetensors"),
        "another name": (lambda header: header.update(mean=header.pop("first.mean")), "codec.safetensors"),
    }
    yield from in_turn("shards/codec/codec.safetensors", ("train", "sample published"), of_header, tensors)


def halve(header: dict, name: str) -> None:
    """Twice as many numbers of half the size in the same bytes."""
    header[name]["dtype"] = "F16"
    header[name]["shape"][0] *= 2


def headers() -> Iterator[Case]:
    """What a safetensors header may say of one tensor, of the published weights and of a golden file."""
    lengths = {"0": 0, "1": 1, "vast": 2**63, "all ones": 2**64 - 1, "100 MB": 10**8, "past the end": 2**30}
    for title, length in lengths.items():
        for file, command in ((WEIGHTS, "parity"), ("golden.safetensors", "parity"), (WEIGHTS, "sample published")):
            yield Case(f"{file}: header length {title}", command, file, header_length(length))

    def changes(name: str, told: str) -> dict:
        types = {
            f"type {kind}": (put(name, "dtype", kind), told)
            for kind in ("I32", "U32", "F8_E4M3", "BOOL", "X9", 5, None)
        }
        shapes = {
            f"shape {shape}": (put(name, "shape", shape), told)
            for shape in ([], [1], [-16], [2**62, 4], [2**63], "16", [16.5], None, [[16]])
        }
        places = {
            f"place {place}": (put(name, "data_offsets", place), told)
            for place in ([-1, 63], [64, 0], [0], [0, 10**30], [2**40, 2**40 + 64], ["0", "64"], None, [8, 72])
        }
        others = {
            "half precision in twice the shape": (lambda header: halve(header, name), told),
            "missing": (take(name), told),
            "no place": (take(name, "data_offsets"), told),
            "a list": (put(name, [1]), told),
            "a surplus tensor": (
                put("grad.more", {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}),
                "safetensors",
            ),
            "metadata a list": (put("__metadata__", [1]), "safetensors"),
        }
        return types | shapes | places | others

    yield from in_turn(WEIGHTS, PUBLISHED, of_header, changes(GAIN, "diffusion_pytorch_model.safetensors"))
    yield from in_turn("golden.safetensors", ("parity",), of_header, changes("x0", "golden.safetensors"))
    again = {
        "one axis more": (lambda header: header[GAIN]["shape"].append(1), GAIN),
        "another name": (lambda header: header.update(more=header.pop(GAIN)), GAIN),
    }
    yield from in_turn(WEIGHTS, PUBLISHED, of_header, again)


def published_fields() -> Iterator[Case]:
    changes: dict[str, tuple] = {}
    values = {"0": 0, "negative": -1, "vast": 10**9, "a text": "2", "a fraction": 2.5, "a truth": True, "null": None,
              "a list": [2], "one more": 3}  # fmt: skip
    for key in SIZES:
        for title, value in values.items():
            changes[f"{key} {title}"] = (put(key, value), "config.json" if title != "one more" else "published/")
        changes[f"{key} missing"] = (take(key), key)
    changes |= {
        "another class": (put("_class_name", "FluxTransformer2DModel"), "_class_name"),
        "class a list": (put("_class_name", ["SD3Transformer3DModel"]), "_class_name"),
        "no class": (take("_class_name"), "_class_name"),
        "another patch": (put("patch_size", 4), "patch_size"),
        "dual layers": (put("dual_attention_layers", [0]), "dual_attention_layers"),
        "another norm": (put("qk_norm", "layer_norm"), "qk_norm"),
        "another width": (put("caption_projection_dim", 5), "caption_projection_dim"),
        "other channels out": (put("out_channels", 3), "out_channels"),
        "another position": (put("position", "rope2d"), "position"),
        "position a list": (put("position", ["rope3d"]), "position"),
    }
    yield from in_turn("published/config.json", PUBLISHED, of_json, changes)
    texts = {
        "NaN": '{"_class_name": NaN}',
        "a key twice": '{"_class_name": "SD3Transformer3DModel", "_class_name": "SD3Transformer3DModel"}',
        "Latin-1": '{"_class_name": "Bär"}'.encode("latin-1"),
        "UTF-16": "{}".encode("utf-16"),
        "deep": "[" * 99_999,
        "a list": "[]",
        "a number": "5",
        "a lone surrogate": r'{"_class_name": "\ud800"}',
        "digits": '{"num_layers": ' + "9" * 5000 + "}",
    }
    turns = cycle(PUBLISHED)
    for title, content in texts.items():
        plain = content if isinstance(content, bytes) else content.encode()
        yield Case(f"published/config.json: {title}", next(turns), "published/config.json",
                   lambda path, aside, draw, plain=plain: path.write_bytes(plain) and None)  # fmt: skip


def index_fields() -> Iterator[Case]:
    places = ("weight_map",)
    changes = {
        "no map": (take("weight_map"), "weight_map"),
        "a list": (put("weight_map", []), "weight_map"),
        "an empty map": (put("weight_map", {}), "missing"),
        "a file that is not there": (put(*places, GAIN, "none.safetensors"), "none.safetensors"),
        "a file outside": (put(*places, GAIN, "../golden.safetensors"), "../golden.safetensors"),
        "an absolute file": (put(*places, GAIN, "/etc/x.safetensors"), "/etc/x.safetensors"),
        "the folder itself": (put(*places, GAIN, "."), "weight_map"),
        "a pickle": (put(*places, GAIN, "pytorch_model.bin"), "pytorch_model.bin"),
        "a NUL": (put(*places, GAIN, "a\0.safetensors"), "weight_map"),
        "a number": (put(*places, GAIN, 5), "weight_map"),
        "a tensor left out": (take(*places, GAIN), GAIN),
        "a tensor nobody has": (
            put(*places, "more.weight", "diffusion_pytorch_model-00001-of-00003.safetensors"),
            "more.weight",
        ),
        "a tensor elsewhere": (lambda content: elsewhere(content["weight_map"]), GAIN),
    }
    yield from in_turn(INDEX, ("parity pieces", "inspect pieces"), of_json, changes)


def elsewhere(places: dict[str, str]) -> None:
    places[GAIN] = next(place for place in sorted(places.values()) if place != places[GAIN])


def options() -> Iterator[Case]:
    """The command line alone."""

    def case(command: str, *more: str, told: str = "") -> Case:
        return Case(f"{' '.join(more)!a}"[:90], command, None, None, (told,) if told else (), more)

    for name in ("--prompt", "--negative-prompt"):
        yield case("sample", name, "\udcff\udcfe", told=name)
        yield case("sample published", name, "a \ud800 b", told=name)
    for name, values in {"steps": ("0", "-1", "1000000000", "1.5", "x"), "guidance": ("nan", "inf", "-1", "1e300"),
                         "fps": ("0", "nan", "1e300", "1e-9"), "seed": ("-1", "1" * 40)}.items():  # fmt: skip
        for value in values:
            yield case("sample", f"--{name}", value, told=name)
    for size in (("0", "32", "48"), ("4", "32", "48"), ("5", "31", "48"), ("5", "40", "48"), ("5", "-32", "48")):
        yield case("sample published", "--size", *size)
    for option in (("--trainer.max-steps", "0"), ("--trainer.max-steps", "9" * 30), ("--trainer.seed", "-1"),
                   ("--optimizer.learning-rate", "nan"), ("--optimizer.learning-rate", "-1"),
                   ("--trainer.global-batch", "0"), ("--trainer.precision", "fp8"), ("--kernels.backend", "magic"),
                   ("--run.folder", ""), ("--data.folder", "nowhere"), ("--data.folder", "golden.safetensors"),
                   ("--run.folder", "golden.safetensors/x"), ("--model.text-width", "384000")):  # fmt: skip
        yield case("train", *option)
