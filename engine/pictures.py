"""What a person looks at after a run: one video a caption, the contact sheet, the loss curve."""

import re
from pathlib import Path

import torch

from .metrics import read_metrics
from .run_files import LOSS_FILE, METRICS_FILE, SAMPLES_FOLDER, SHEET_FILE
from .video import SheetRow, contact_sheet, write_mp4


def write_samples(folder: Path, samples: dict[str, torch.Tensor], fps: float) -> list[Path]:
    """samples/CAPTION.mp4 for each caption -> pixels_3FYX."""
    names = [file_name(caption) for caption in samples]
    # Two captions may shorten to one name: those carry their number too.
    paths = [
        folder / SAMPLES_FOLDER / (f"{name}.mp4" if names.count(name) == 1 else f"{name}-{number}.mp4")
        for number, name in enumerate(names, start=1)
    ]
    for path, pixels_3FYX in zip(paths, samples.values(), strict=True):
        write_mp4(path, pixels_3FYX, fps)
    return paths


def write_sheet(folder: Path, sources: dict[str, torch.Tensor], samples: dict[str, torch.Tensor]) -> Path:
    """contact_sheet.png: source frames above sampled frames, per caption."""
    rows = [
        SheetRow(caption=caption, videos={"source": sources[caption], "sampled": samples[caption]})
        for caption in samples
    ]
    contact_sheet(folder / SHEET_FILE, rows)
    return folder / SHEET_FILE


def write_loss_curve(folder: Path) -> Path:
    """loss.png: the loss of every step, its running mean over 25 steps, and the validation loss."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = read_metrics(folder / METRICS_FILE)
    steps = [line["step"] for line in lines if "loss" in line]
    losses = torch.tensor([line["loss"] for line in lines if "loss" in line], dtype=torch.float64)
    validation = [(line["step"], line["validation_loss"]) for line in lines if "validation_loss" in line]
    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    axes.plot(steps, losses, color="0.8", linewidth=0.8, label="loss of a step")
    if len(steps) >= 25:
        axes.plot(steps[24:], losses.unfold(0, 25, 1).mean(dim=1), label="mean of 25 steps")
    if validation:
        axes.plot(*zip(*validation, strict=True), "o--", label="held-out windows (8 noise levels)")
    axes.set(xlabel="step", ylabel="velocity MSE", ylim=(0, None), title=folder.name)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / LOSS_FILE, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    return folder / LOSS_FILE


def file_name(caption: str) -> str:
    """A caption as a file name: lower case, words joined by dashes, at most 60 characters."""
    return re.sub(r"[^a-z0-9]+", "-", caption.lower()).strip("-")[:60].rstrip("-") or "caption"
