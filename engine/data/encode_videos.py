"""Anybody's videos to latent shards, by as many processes as there are, through any number of kills.

    plan -> codec -> parts, each claimed by one process -> manifest, by whichever process comes last

Processes need no world: they meet in the folder they fill, by locks that go with the process that holds them. Each runs
until everything is done, by itself or by others, and takes over what a killed one left.
"""

import csv
import io
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...model.codecs import load_codec
from ...model.codecs.codec import Codec, saved_identity
from ...model.codecs.pca import PCACodec
from ...model.codecs.pca_fit import fit
from ...model.text.text import TextEncoder
from ...parallel.durable import sync_tree, write_text
from ..encoders import open_codec, open_text
from ..progress import Progress
from ..video import to_pixels
from .buckets import Buckets
from .encode import codec_psnr
from .encoding_part import Encoded, Part, claim, finished_shards, lock
from .encoding_plan import WORK_FOLDER, EncodingRequest, Plan, PlannedClip, check_same, make_plan, read_plan, save_plan
from .manifest import CODEC_FOLDER, MANIFEST_FILE, SPLITS, Manifest, read_manifest
from .refusal import ClipRefused
from .shard_writer import Sample, publish
from .source_video import Cut, cut, look, read_cut

LOCK_FILE = "lock"
REPORT_FILE = "report.csv"
FITTING_CLIPS = 256
"""Clips that the pca codec is fitted on, evenly spread over those that are trained on."""
SECONDS_BETWEEN_LOOKS = 0.5
"""While others hold the last parts."""
CAPTIONS_KEPT = 16
"""Whose features are kept: clips of one video often share one, and those of sd3 take 5 MiB each."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an encoding came to."""

    manifest: Manifest
    refused: dict[str, int]
    """Kind of refusal -> clips or files."""
    reused: bool
    """Everything was there already."""
    clips: int
    """Encoded by this very process."""
    frames: int
    seconds: float
    """It was at work; loading and waiting do not count."""


def encode_videos(request: EncodingRequest, folder: Path, *, workers: int, device: torch.device) -> Outcome:
    """Fills `folder` with shards, or helps to; returns when it is whole. `workers` threads decode.

    Raises ValueError for a folder that is being filled with something else, and where no clip can be used.
    """
    folder, wanted = Path(folder), make_plan(request)
    if (folder / MANIFEST_FILE).exists():
        return _reuse(folder, wanted)
    trained = None if request.codec == PCACodec.kind else open_codec(request.codec)
    text = open_text(request.text, device=device)
    work = folder / WORK_FOLDER
    work.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        pool = ThreadPoolExecutor(workers)
        stack.callback(pool.shutdown, cancel_futures=True)
        decoder = Decoder(Path(request.videos), request.buckets, request.windows, pool, workers)
        with open(work / LOCK_FILE, "a") as begin:
            lock(begin, wait=True)
            plan, codec = _begin(folder, replace(wanted, text_identity=text.identity), trained, decoder)
        encoder = Encoder(codec, text, request.windows, device)
        _work_until_done(plan, folder, decoder, encoder)
    with open(work / LOCK_FILE, "a") as end:
        lock(end, wait=True)
        manifest, refused = _finish(folder, plan, codec, text)
    return Outcome(manifest=manifest, refused=refused, reused=False, **encoder.done())


class Decoder:
    """Reads clips ahead, in threads: ffmpeg decodes outside Python's lock."""

    def __init__(self, videos: Path, buckets: Buckets, windows: int, pool: ThreadPoolExecutor, ahead: int):
        self.videos, self.buckets, self.windows = videos, buckets, windows
        self._pool, self._ahead = pool, ahead

    def read(self, clips: Sequence[PlannedClip]) -> Iterator[tuple[PlannedClip, Future]]:
        """Each clip and, in its future, (cut, windows) or ClipRefused; in the order given."""
        waiting: deque[tuple[PlannedClip, Future]] = deque()
        for clip in clips:
            waiting.append((clip, self._pool.submit(self._read, clip)))
            if len(waiting) > self._ahead:
                yield waiting.popleft()
        yield from waiting

    def _read(self, clip: PlannedClip) -> tuple[Cut, list[Tensor]]:
        path = self.videos / clip.file
        planned = cut(look(path), self.buckets, clip.begin, clip.end, self.windows)
        return planned, read_cut(path, planned)


class Encoder:
    """Windows to samples, on one device; keeps count."""

    def __init__(self, codec: Codec, text: TextEncoder, windows: int, device: torch.device):
        self.codec, self.text, self.windows, self.device = codec, text, windows, device
        self._features = lru_cache(CAPTIONS_KEPT)(self._encode_caption)
        self.clips = self.frames = 0
        self.seconds = 0.0

    def encode(self, clip: PlannedClip, decoded: Future, *, measure: bool) -> Encoded:
        """A clip's samples, or why there are none. With `measure`, the first one says how well the codec keeps it."""
        began = time.monotonic()
        try:
            planned, windows = decoded.result()
        except ClipRefused as refusal:
            return Encoded(refused=refusal.kind, detail=refusal.detail)
        samples = tuple(
            self._sample(clip, number, start, pixels_3FYX, measure=measure and number == 0)
            for number, (start, pixels_3FYX) in enumerate(zip(planned.starts, map(to_pixels, windows), strict=True))
        )
        self.clips, self.frames = self.clips + 1, self.frames + len(samples) * planned.bucket.frames
        self.seconds += time.monotonic() - began
        return Encoded(bucket=planned.bucket, samples=samples)

    def done(self) -> dict[str, Any]:
        return {"clips": self.clips, "frames": self.frames, "seconds": self.seconds}

    def _sample(self, clip: PlannedClip, number: int, start: float, pixels_3FYX: Tensor, *, measure: bool) -> Sample:
        pixels_3FYX = pixels_3FYX.to(self.device)
        tokens_TW, pooled_W = self._features(clip.caption)
        facts = {"caption": clip.caption, "clip": clip.file, "begin": round(start, 6)}
        if measure:
            facts["codec_psnr_db"] = round(codec_psnr(self.codec, pixels_3FYX), 2)
        return Sample(
            sample=clip.number * self.windows + number,
            latents_CFYX=self.codec.encode(pixels_3FYX[None])[0],
            tokens_TW=tokens_TW,
            pooled_W=pooled_W,
            facts=facts,
        )

    def _encode_caption(self, caption: str) -> tuple[Tensor, Tensor]:
        tokens_BTW, pooled_BW = self.text.encode([caption])
        return tokens_BTW[0], pooled_BW[0]


def _begin(folder: Path, wanted: Plan, trained: Codec | None, decoder: Decoder) -> tuple[Plan, Codec]:
    """The plan and the codec every process works with: kept by the first, read by the others.

    `trained` is the codec that was named; None: one is fitted.
    """
    kept = read_plan(folder)
    if kept is not None:
        check_same(folder, kept, wanted)
        identity = saved_identity(folder / CODEC_FOLDER)
        _check_identity(folder, "text encoder", kept.text_identity, wanted.text_identity)
        _check_identity(folder, "codec", identity, trained.identity if trained else identity)
    else:
        (trained or _fit(wanted, decoder)).save(folder / CODEC_FOLDER)
        sync_tree(folder / CODEC_FOLDER)
        save_plan(folder, wanted)
    # A fitted one too is read back, as others read it: where tensors lie in memory may decide a product's last bit.
    return kept or wanted, trained or load_codec(folder / CODEC_FOLDER)


def _check_identity(folder: Path, what: str, kept: str, here: str) -> None:
    if kept != here:
        raise ValueError(
            f"{folder} was begun with {what} {kept[:12]}, but the one here is {here[:12]}: give the former, or encode "
            "into another folder"
        )


def _fit(plan: Plan, decoder: Decoder) -> Codec:
    training = [clip for clip in plan.clips if clip.split == SPLITS[0]]
    clips = training[:: -(-len(training) // FITTING_CLIPS)]
    obstacles = [(clip, _obstacle(future)) for clip, future in decoder.read(clips)]
    usable = [clip for clip, obstacle in obstacles if not obstacle]
    if not usable:
        clip, obstacle = obstacles[0]
        raise ValueError(
            f"codec pca is fitted on videos of 5 frames or more, and none of {len(clips)} clips gives one ({clip.file} "
            f"is {obstacle}): change --frames, --size or --fps, give other videos, or --codec with the folder of a "
            "trained codec"
        )
    passes = iter(("fitting bases", "fitting decoder"))

    def windows() -> Iterator[Tensor]:
        with closing(Progress(next(passes), total=len(usable), unit="clip")) as progress:
            for done, (_, decoded) in enumerate(decoder.read(usable), start=1):
                yield from map(to_pixels, decoded.result()[1])
                progress.advance_to(done)

    return fit(windows)


def _obstacle(decoded: Future) -> str:
    """What keeps a clip from being a video that a codec can be fitted on; "" if nothing does."""
    try:
        return "" if decoded.result()[0].bucket.frames > 1 else "taken as an image"
    except ClipRefused as refusal:
        return str(refusal)


def _work_until_done(plan: Plan, folder: Path, decoder: Decoder, encoder: Encoder) -> None:
    """Takes on one part after another until all are finished, whoever finished them."""
    unfinished = dict(enumerate(plan.parts()))
    with closing(Progress("encoding", total=len(plan.clips), unit="clip")) as progress:
        done = 0
        while unfinished:
            begun = len(unfinished)
            for number, clips in list(unfinished.items()):
                with claim(number, clips, folder, folder / WORK_FOLDER) as part:
                    if part is None:
                        continue
                    _finish_part(part, decoder, encoder, partial(_show, progress, encoder, done))
                done += len(clips)
                del unfinished[number]
            if len(unfinished) == begun:
                time.sleep(SECONDS_BETWEEN_LOOKS)


def _finish_part(part: Part, decoder: Decoder, encoder: Encoder, show: Any) -> None:
    if part.is_finished:
        show(len(part.clips))
        return
    part.go_on()
    remaining = part.remaining()
    first = len(part.clips) - len(remaining)
    for done, (clip, decoded) in enumerate(decoder.read(remaining), start=first + 1):
        # The first that is trained on: it takes as long as encoding and decoding again.
        measure = clip.split == SPLITS[0] and not part.has_samples(SPLITS[0])
        part.add(clip, encoder.encode(clip, decoded, measure=measure))
        show(done)
    part.finish()


def _show(progress: Progress, encoder: Encoder, before: int, done: int) -> None:
    rates = {}
    if encoder.seconds:
        rates = {"clips/s": encoder.clips / encoder.seconds, "frames/s": encoder.frames / encoder.seconds}
    progress.advance_to(before + done, rates)


def _finish(folder: Path, plan: Plan, codec: Codec, text: TextEncoder) -> tuple[Manifest, dict[str, int]]:
    """Report and manifest, unless another process wrote them."""
    parts = [finished_shards(number, folder / WORK_FOLDER) for number in range(len(plan.parts()))]
    rows = _report(plan, [line for _, lines in parts for line in lines])
    refused = _count(rows)
    if (folder / MANIFEST_FILE).exists():
        return read_manifest(folder), refused
    _write_report(folder, rows)
    shards = [shard for found, _ in parts for shard in found]
    if not any(shard.split == SPLITS[0] for shard in shards):
        raise ValueError(f"no clip to train on could be encoded ({_list(refused)}): see {folder / REPORT_FILE}")
    return publish(folder, shards, codec, text, plan.digest()), refused


def _reuse(folder: Path, wanted: Plan) -> Outcome:
    kept = read_plan(folder)
    if kept is None:
        raise ValueError(f"{folder} holds shards that were not encoded from videos: choose another folder")
    check_same(folder, kept, wanted)
    lines = [line for number in range(len(kept.parts())) for line in finished_shards(number, folder / WORK_FOLDER)[1]]
    refused = _count(_report(kept, lines))
    return Outcome(manifest=read_manifest(folder), refused=refused, reused=True, clips=0, frames=0, seconds=0.0)


def _report(plan: Plan, lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each clip, and for each file and caption that is none."""
    clips = {clip.number: clip for clip in plan.clips}
    rows = [{"file": each.file, "outcome": each.kind, "detail": each.detail} for each in plan.unused]
    for line in lines:
        clip = clips[line["clip"]]
        outcome = line["refused"] or "encoded"
        detail = line["detail"] or f"{len(line['samples'])} of {'x'.join(map(str, line['bucket']))}"
        rows.append({"file": clip.file, "begin": clip.begin, "split": clip.split, "outcome": outcome, "detail": detail})
    return sorted(rows, key=lambda row: (row["file"], row.get("begin", -1.0)))


def _write_report(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["file", "begin", "split", "outcome", "detail"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / REPORT_FILE, text.getvalue())


def _count(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    return dict(sorted(Counter(row["outcome"] for row in rows if row["outcome"] != "encoded").items()))


def _list(refused: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in refused.items())
