"""The cases of broken input: which file of a good set is damaged how, and which command has to refuse it.

A section is a function that yields cases; SECTIONS in test_broken_inputs.py lists them. To add one (another command,
another kind of file), write such a function, let good_inputs.py make what it needs, and name it there. Nothing here
opens a file: the cases are the same on every machine, and can be counted before anything is built.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle

from contentv.engine.config_yaml import to_plain
from contentv.launchers.recipes import quickstart
from tests.launchers import damage
from tests.launchers.damage import Damage, of_yaml

PROMPT = ("--prompt", "red waves", "--out", "x.mp4")
SIZE = ("--size", "5", "32", "48")
CODEC_AND_TEXT = ("--codec", "shards/codec", "--text", "minilm")
MISTAKE = 2

COMMANDS = {
    "resume": ("train", "run/config.yaml", "--trainer.max-steps", "7"),
    "train": ("train", "new.yaml"),
    "sample": ("sample", "run", *PROMPT),
    "evaluate": ("evaluate", "run"),
    "export": ("convert", "export", "run", "exported"),
    "inspect run": ("inspect", "run"),
    "inspect shards": ("inspect", "shards", "--json"),
    "inspect published": ("inspect", "published"),
    "inspect pieces": ("inspect", "pieces"),
    "parity": ("convert", "parity", "published", "golden.safetensors"),
    "parity pieces": ("convert", "parity", "pieces", "golden.safetensors"),
    "import": ("convert", "import", "published", "new.yaml"),
    "sample published": ("sample", "published", *PROMPT, "--steps", "2", *SIZE, *CODEC_AND_TEXT),
}
"""By the words a case calls them; paths are relative to the folder of good inputs, which is the working folder."""


@dataclass(frozen=True)
class Case:
    """One broken input."""

    name: str
    command: str
    """Of COMMANDS."""
    file: str | None
    """What is damaged; None: the command line alone is wrong."""
    damage: Damage | None
    told: tuple[str, ...] = ()
    """What the message must say besides the file's name."""
    options: tuple[str, ...] = ()
    """Appended to the command."""
    status: int = MISTAKE

    def __str__(self) -> str:
        return f"{self.name} ({self.command})"


def files(names: dict[str, tuple[str, ...]], damages: dict[str, Damage]) -> Iterator[Case]:
    """Every damage of every file; the commands that read a file take turns."""
    for file, commands in names.items():
        turns = cycle(commands)
        for title, each in damages.items():
            yield Case(f"{file}: {title}", next(turns), file, each)


LAST = "run/checkpoints/step-00000006"
PICKLED = (".metadata", "common.pt", "metadata.json", "__0_0.distcp")
SMALL_FILES = ("checkpoint.json", "config.yaml", "codec/codec.json", "codec/codec.safetensors")
READERS = ("resume", "sample", "evaluate", "export", "inspect run")


CHECKPOINT = {f"{LAST}/{name}": READERS for name in (*SMALL_FILES, *(f"tensors/{name}" for name in PICKLED))}
SHARDS = {
    "shards/manifest.json": ("train", "inspect shards", "evaluate", "import", "resume"),
    "shards/codec/codec.json": ("train", "inspect shards", "resume", "import"),
    "shards/codec/codec.safetensors": ("train", "inspect shards", "resume", "import"),
    "shards/empty_caption.safetensors": ("train", "inspect shards", "resume"),
}
TARS = ("shards/train-5x32x48-00000.tar", "shards/held_out-5x32x48-00000.tar")
DIGESTED = CHECKPOINT | SHARDS | dict.fromkeys(TARS, ("inspect shards",))
"""File -> commands that read it, where no change of any bit may pass. Samples are compared when they are read: opening
shards finds their files' sizes, and inspect reads everything."""


def digested_files() -> Iterator[Case]:
    yield from files(DIGESTED, damage.EVERY)
    yield from files({TARS[0]: ("train", "resume")}, damage.CUTS | damage.OTHER_KINDS)


PUBLISHED = ("parity", "sample published", "inspect published", "import")


def published_files() -> Iterator[Case]:
    """Weights from outside carry no digest: a flipped bit is only certain to be refused in the header."""
    whole = damage.CUTS | damage.FILLED | damage.OTHER_KINDS
    json_cuts = {title: each for title, each in whole.items() if title != "a byte less"}  # only a line end less
    header = {f"flip {title}": damage.flip(first, last) for title, first, last in (
        ("in the length", 0, 8e-5), ("in the header", 8e-4, 2e-3), ("further in the header", 2e-3, 4e-3))}  # fmt: skip
    yield from files({"published/config.json": PUBLISHED}, json_cuts)
    yield from files({"published/diffusion_pytorch_model.safetensors": PUBLISHED}, whole | header)
    pieces = ("parity pieces", "inspect pieces")
    yield from files({"pieces/diffusion_pytorch_model.safetensors.index.json": pieces}, json_cuts | damage.FLIPS)
    yield from files({"pieces/diffusion_pytorch_model-00002-of-00003.safetensors": pieces}, whole)
    yield from files({"golden.safetensors": ("parity",)}, whole | header)


def run_files() -> Iterator[Case]:
    """What else lies in a run's folder."""
    for name in ("metrics.jsonl", "outcome.json"):
        for title in ("a folder", "a pipe", "a link to nowhere", "a link to itself"):
            yield Case(f"run/{name}: {title}", "resume", f"run/{name}", damage.OTHER_KINDS[title])
    for name in ("checkpoints", "tensorboard"):
        yield Case(f"run/{name}: a file", "resume", f"run/{name}", damage.text("in the way"))
        yield Case(f"run/{name}: a pipe", "resume", f"run/{name}", damage.OTHER_KINDS["a pipe"])
    for title, content in {
        "no JSON": "{",
        "a list": "[]",
        "deep": "[" * 99_999,
        "no text": b"\xff\xfe",
        "seconds in words": '{"seconds": "many"}',
    }.items():
        yield Case(f"run/summary.json: {title}", "evaluate", "run/summary.json", damage.text(content))


def renamed() -> Iterator[Case]:
    """Good files in the wrong places."""

    def other(name: str) -> Damage:
        return lambda path, aside, draw: path.write_bytes((path.parent / name).read_bytes()) and None

    swaps = {
        f"{LAST}/checkpoint.json": ("../step-00000003/checkpoint.json", READERS),
        f"{LAST}/config.yaml": ("checkpoint.json", READERS),
        f"{LAST}/tensors/common.pt": ("../../step-00000003/tensors/common.pt", READERS),
        f"{LAST}/tensors/.metadata": ("common.pt", READERS),
        f"{LAST}/tensors/__0_0.distcp": ("../../step-00000003/tensors/__0_0.distcp", READERS),
        f"{LAST}/codec/codec.json": ("../checkpoint.json", READERS),
        "shards/train-5x32x48-00000.tar": ("held_out-5x32x48-00000.tar", ("train", "inspect shards")),
        "shards/manifest.json": ("codec/codec.json", ("train", "inspect shards", "evaluate")),
        "shards/empty_caption.safetensors": ("codec/codec.safetensors", ("train", "inspect shards")),
        "published/config.json": ("../shards/manifest.json", PUBLISHED),
        "published/diffusion_pytorch_model.safetensors": ("../golden.safetensors", PUBLISHED),
        "pieces/diffusion_pytorch_model-00002-of-00003.safetensors": (
            "diffusion_pytorch_model-00001-of-00003.safetensors", ("parity pieces", "inspect pieces")),
        "golden.safetensors": ("published/diffusion_pytorch_model.safetensors", ("parity",)),
    }  # fmt: skip
    for file, (name, commands) in swaps.items():
        for command in commands:
            yield Case(f"{file}: holds {name}", command, file, other(name))
    for command in PUBLISHED:
        pickled = "published/diffusion_pytorch_model.safetensors"
        yield Case(f"{pickled}: only a pickle beside it", command, pickled, only_a_pickle, ("never read",))


def only_a_pickle(path, aside, draw) -> None:
    # What is moved aside is restored, what lies beside it the test removes by itself.
    (path.parent / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")


CONFIG = to_plain(quickstart())
OPTIONAL = {"profile"}
"""Sections that a config.yaml may lack: runs from before they were there go on."""
REQUIRED = {"run.folder", "data.folder", "optimizer.learning_rate", "trainer.max_steps", "model.layers", "sample.fps"}


def config_keys() -> Iterator[Case]:
    """Every key of every section with values that no key of its type can have."""

    def case(key: str, title: str, change: Callable, *told: str) -> Case:
        return Case(f"new.yaml: {key} {title}", "train", "new.yaml", of_yaml(change), (key, *told))

    def put(section: str, name: str, value) -> Callable:
        return lambda plain: plain[section].update({name: value})

    for section, values in CONFIG.items():
        if not isinstance(values, dict):
            continue
        if section not in OPTIONAL:
            yield case(section, "missing", lambda plain, section=section: plain.pop(section))
        for title, value in {"null": None, "a list": [1], "a text": "x"}.items():
            yield case(section, title, lambda plain, section=section, value=value: plain.update({section: value}))
        yield case(f"{section}.surprise", "unknown", put(section, "surprise", 1), "has the keys")
        for name, good in values.items():
            key = f"{section}.{name}"
            yield case(key, "nested", put(section, name, {"a": [{"b": 1}, {"b": [[]]}]}))
            yield case(key, "null", put(section, name, None))
            if key in REQUIRED:
                yield case(key, "missing", lambda plain, section=section, name=name: plain[section].pop(name))
            wrong = {"a list": [[]], "a text": "x", "vast": 10**400, "negative": -7}
            if isinstance(good, float):
                wrong |= {"infinite": math.inf, "not a number": math.nan}
                wrong.pop("negative") if key == "flow.mean" else None
            elif isinstance(good, str):
                wrong = {"a number": 5, "a list": ["x"], "a mapping": {}} | (
                    {} if name == "folder" else {"a word": "blue"}
                )
            elif isinstance(good, list):
                wrong = {"a number": 5, "numbers": [5], "a word": ["blue"]}
            yield from (case(key, title, put(section, name, value)) for title, value in wrong.items())


def config_ranges() -> Iterator[Case]:
    """Values of the right type that nothing can be done with."""
    beyond = {
        "model.layers": 10**9, "model.heads": 0, "model.head_width": 17, "model.text_width": 10**12,
        "model.channels": 3, "flow.std": 0.0, "flow.shift": 0.0, "flow.caption_dropout": 1.5,
        "optimizer.beta1": 1.0, "optimizer.beta2": 1.5, "optimizer.ema_decay": 1.0, "optimizer.epsilon": 0.0,
        "trainer.max_steps": 0, "trainer.global_batch": 10**12, "trainer.micro_batch": 3, "trainer.threads": 10**6,
        "trainer.checkpoint_every": 0, "trainer.log_every": 0, "trainer.seed": 2**63,
        "sample.steps": 10**9, "sample.fps": 1e300, "sample.guidance": 1e300, "sample.seed": -1,
        "parallel.tensor": 2, "parallel.pipeline": 10**9, "parallel.context": 0,
    }  # fmt: skip
    for key, value in beyond.items():
        section, name = key.split(".")
        change = of_yaml(lambda plain, section=section, name=name, value=value: plain[section].update({name: value}))
        yield Case(f"new.yaml: {key} {value}", "train", "new.yaml", change, (key,))
    folders = {"empty": "", "a NUL": "a\0b", "long": "x" * 5000}
    for section in ("run", "data"):
        for title, value in folders.items():
            change = of_yaml(lambda plain, section=section, value=value: plain[section].update(folder=value))
            yield Case(f"new.yaml: {section}.folder {title}", "train", "new.yaml", change, (f"{section}.folder",))


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def yaml_texts() -> Iterator[Case]:
    """Files that are no configuration at all, or would be more than one."""
    contents = {
        "a bomb": BOMB,
        "an anchor": "recipe: &a quickstart\nrun: *a\n",
        "an alias of itself": "&a [*a]",
        "a tag": "!!python/object/apply:os.getcwd []",
        "a tagged number": "recipe: !!int x",
        "a tagged boolean": "recipe: !!bool x",
        "a tagged date": "recipe: !!timestamp x",
        "binary": "recipe: !!binary x",
        "a set": "!!set {a, b}",
        "no date": "recipe: 2001-99-99",
        "a date": "recipe: 2001-01-01",
        "digits": "recipe: " + "9" * 5000,
        "no number": "recipe: 0x_",
        "deep lists": "[" * 50_000,
        "deep mappings": "{a: " * 20_000,
        "a key twice": "recipe: a\nrecipe: b\n",
        "a list for a key": "[a, b]: c",
        "a mapping for a key": "{a: b}: c",
        "two documents": "recipe: a\n---\nrecipe: b\n",
        "a tab": "\trecipe: a",
        "open quotes": 'recipe: "a',
        "nothing": "",
        "a comment": "# nothing\n",
        "a number": "5",
        "a text": "quickstart",
        "a list": "- recipe: quickstart",
        "UTF-16": "recipe: quickstart".encode("utf-16"),
        "Latin-1": "recipe: Bär".encode("latin-1"),
        "a NUL": b"recipe: a\0",
        "control": b"recipe: \x07",
        "a megabyte": "# " + "x" * 2**21,
        "a safetensors": b"\x08\0\0\0\0\0\0\0{}      ",
    }  # fmt: skip
    # Not for what they happen to say, which would be refused as well, but for what they are.
    anchors, tags = "anchors are not", "tags are not"
    reasons = {"bomb": anchors, "anchor": anchors, "alias": anchors, "tag": tags, "a key twice": "there twice"}
    for title, content in contents.items():
        told = tuple(words for name, words in reasons.items() if name in title)
        yield Case(f"new.yaml: {title}", "train", "new.yaml", damage.text(content), told)
    for title in ("absent", "a folder", "a pipe", "a link to nowhere", "a link to itself"):
        yield Case(f"new.yaml: {title}", "train", "new.yaml", damage.OTHER_KINDS[title])
