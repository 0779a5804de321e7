"""rankwise plan CONFIG.yaml|MODEL [--FIELD VALUE ...] [--device_memory 24GB]"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from rankwise.cli.config_file import full_help, parse
from rankwise.cli.console import make_console
from rankwise.heads import read_config
from rankwise.planning.plan import Plan
from rankwise.planning.planner import plan
from rankwise.train import record
from rankwise.train.config import RunConfig
from rankwise.train.outline import outline
from rankwise.train.quiet import quiet_libraries
from rankwise.train.tasks import check_length

NO_DATA = {"train": ""}


def run(arguments: list[str]) -> int:
    if not arguments or {"-h", "--help"} & set(arguments):
        print(full_help("plan", arguments))
        return 0
    given = parse("plan", _with_config(arguments))
    if given.print_config:
        yaml.safe_dump(record.config_as_dict(given.config), sys.stdout, sort_keys=False, allow_unicode=True)
        return 0
    quiet_libraries()
    make_console().print(plan_run(given.config, given.device_memory), highlight=False)
    return 0


def _with_config(arguments: list[str]) -> list[str]:
    """A model in the place of a config file stands for a configuration of that model, without data."""
    first, *rest = arguments
    if first.startswith("-") or first.endswith((".yaml", ".yml")) or Path(first).is_file():
        return arguments
    return ["--config", json.dumps({"model": first, "data": NO_DATA, "output": ""}), *rest]


def plan_run(config: RunConfig, device_memory: str | None) -> Plan:
    """The plan of the run that `rankwise train` would make of a configuration; of its data, the rows are counted."""
    training = config.training
    told: dict[str, Any] = {"task": config.task, "total_steps": training.steps}
    if config.data.train != NO_DATA["train"]:
        known = outline(config)
        model_config, (steps, steps_per_epoch) = known.model_config, training.length(known.rows)
        told = {"task": known.task, "total_steps": steps, "steps_per_epoch": steps_per_epoch}
    else:
        model_config = read_config(config.model, revision=config.revision, trust_remote_code=config.trust_remote_code)
        check_length(config.data.max_length, model_config)
    return plan(
        model_config,
        config.method,
        batch_size=training.batch_size,
        sequence_length=config.data.max_length,
        gradient_accumulation=training.gradient_accumulation,
        precision=training.precision,
        gradient_checkpointing=training.gradient_checkpointing,
        device_memory=device_memory,
        **told,
    )
