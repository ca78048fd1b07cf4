"""What a run folder holds besides config.yaml and checkpoints, by name. Imports no torch."""

from pathlib import Path

OUTCOME_FILE = "outcome.json"
METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
SAMPLES_FOLDER = "samples"
SHEET_FILE = "contact_sheet.png"
LOSS_FILE = "loss.png"
SUMMARY_FILE = "summary.json"
RESTARTS_FILE = "restarts.jsonl"
HEARTBEATS_FILE = "heartbeats.json"
STOP_FILE = "stop_requested.json"
NODES_FILE = "node_check.jsonl"
JOBS_FOLDER = "jobs"
LOGS_FOLDER = "logs"
PROFILE_FOLDER = "profile"
REPORT_FILE = "report.html"


def profile_folder(run: str | Path, steps: str) -> Path:
    """Where the profile of steps FIRST:LAST lies: of each rank a trace and, on a GPU, a snapshot of memory."""
    return Path(run) / PROFILE_FOLDER / f"steps-{steps.replace(':', '-')}"


def trace_file(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.trace.json.gz"
