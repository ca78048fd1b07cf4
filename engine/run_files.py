"""What a run folder holds besides config.yaml and checkpoints, by name. Imports no torch."""

OUTCOME_FILE = "outcome.json"
METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
SAMPLES_FOLDER = "samples"
SHEET_FILE = "contact_sheet.png"
LOSS_FILE = "loss.png"
SUMMARY_FILE = "summary.json"
