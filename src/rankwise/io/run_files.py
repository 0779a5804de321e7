"""Names of the files in a run folder, for those who write it and for those who read it without torch."""

CONFIG, ENVIRONMENT, HISTORY, METRICS, RESULTS = (
    "config.yaml",
    "environment.json",
    "history.jsonl",
    "metrics.jsonl",
    "results.json",
)
