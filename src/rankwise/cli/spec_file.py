"""From a spec.yaml and the command line to a Spec and its runs, with the nearest name for whatever is unknown."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import yaml

from rankwise.cli import arguments as command_line
from rankwise.cli.config_file import check_keys, config_from_dict, read_yaml
from rankwise.cli.explain import explained
from rankwise.cli.help_page import HelpFormatter, examples
from rankwise.compare.entries import Contender
from rankwise.compare.spec import Published, Spec, check_rates
from rankwise.errors import ConfigError, nearest
from rankwise.io.description import fits
from rankwise.methods import METHODS, PRESETS
from rankwise.methods.presets import without_preset
from rankwise.train.config import RunConfig, TrainingConfig

RUN_FIELDS = {f.name: f for f in fields(RunConfig) if f.name not in ("method", "output")}
OF_TASK = ("metric", "higher_is_better", "methods")
OF_METHOD = ("training", "learning_rates", "counted")
OPEN = ("base", "tasks", "methods", "search")  # --tasks.rte.data.train PATH reaches into these


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a command line of `rankwise compare` says."""

    spec: Spec
    contenders: list[Contender]
    print_config: bool
    report_only: bool
    executor: Literal["serial", "ray"]
    workers: int | None
    max_hours: float | None
    cpus: int
    gpus: float


def make_parser() -> jsonargparse.ArgumentParser:
    parser = command_line.make_parser(
        "compare",
        usage="rankwise compare SPEC.yaml [--model NAME] [--base.FIELD VALUE ...] [--FIELD VALUE ...]",
        description="Train every method on every task, at every budget and seed, each at the learning rate that is "
        "best for it, and say in words which to take. Called again, an interrupted comparison goes on. Each field "
        "below stands in SPEC.yaml, or is given on the command line, which goes before the file; of base, tasks, "
        "methods and search any part, as in --tasks.rte.data.train PATH. None is null in YAML.",
        epilog=examples(
            "rankwise compare spec.yaml --workers 2",
            "rankwise compare spec.yaml --max_hours 5",
            "rankwise compare spec.yaml --report_only",
            "rankwise compare spec.yaml --model my/model --seeds 5 --output runs/mine",
        ),
        print_config=None,
    )
    parser.add_argument("--config", action=jsonargparse.ActionConfigFile, help="the spec; the same as giving it first")
    parser.add_argument("--print_config", action="store_true", help="print the whole spec and exit")
    parser.add_argument("--model", type=str | None, default=None, help="the same as --base.model")
    parser.add_argument("--report_only", action="store_true", help="run nothing; show the results there are")
    parser.add_argument(
        "--max_hours", type=float | None, default=None, help="stop after so many hours; the same command goes on later"
    )
    parser.add_argument(
        "--workers",
        type=int | None,
        default=None,
        help="how many runs at a time. None: 1, or with Ray as many as the cluster has room for",
    )
    parser.add_argument(
        "--executor",
        type=Literal["serial", "ray"],
        default="serial",
        help="serial: on this machine; ray: on the Ray cluster at RAY_ADDRESS",
    )
    parser.add_argument("--cpus", type=int, default=1, help="CPU cores of each run, with --executor ray")
    parser.add_argument("--gpus", type=float, default=0.0, help="GPUs of each run, with --executor ray")
    parser.add_class_arguments(Spec, as_group=False)
    return parser


def full_help() -> str:
    """What `--help` prints: the fields of a comparison, and of the runs in `base`."""
    runs = jsonargparse.ArgumentParser(add_help=False, usage="--base.FIELD VALUE", formatter_class=HelpFormatter)
    runs.add_class_arguments(RunConfig, "base", skip={"method", "output"})
    return "\n".join([make_parser().format_help(), runs.format_help().removeprefix("usage: ")])


def parse(arguments: Sequence[str]) -> Asked:
    """Raises ConfigError for what is unknown or unreadable."""
    content, rest = _read(arguments)
    check_keys(content, Spec, "")
    published = _published(content.pop("published", []))
    parser = make_parser()
    try:
        parsed = parser.parse_args(["--config", json.dumps(content), *rest])
        built = parser.instantiate(parsed)
    except jsonargparse.ArgumentError as error:
        raise ConfigError(
            explained(str(error), "compare", _options(parser), command_line.hints(parser), Spec)
        ) from error
    given = {f.name: built[f.name] for f in fields(Spec)}
    given["base"] = _whole_base(given["base"])
    given["published"] = [*published, *given["published"]]
    spec = Spec(**given)
    own = {f.name: parsed[f.name] for f in fields(Asked) if f.name in parsed}
    return Asked(spec=spec, contenders=contenders_of(spec), **own)


def _read(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The spec's content, with what the command line says of its open parts in it; and the other arguments."""
    content: dict[str, Any] = {}
    rest: list[str] = []
    given = list(arguments)
    if given and not given[0].startswith("--"):
        content = read_yaml(Path(given.pop(0)))
    while given:
        option, equals, value = given.pop(0).partition("=")
        path = option.removeprefix("--").split(".")
        inside = path[0] in OPEN and len(path) > 1
        if not (inside or option in ("--model", "--config")):
            rest.append(option + equals + value)
            continue
        if not equals and not given:
            raise ConfigError(f"{option} needs a value.")
        value = value if equals else given.pop(0)
        if option == "--config":
            content = read_yaml(Path(value))
        else:
            _put(content, ["base", "model"] if option == "--model" else path, value)
    return content, rest


def _published(rows: Any) -> list[Published]:
    """Read here, since a table of a paper has a hundred numbers, and jsonargparse takes 20 ms for each."""
    known = {f.name: f for f in fields(Published)}
    if not isinstance(rows, list):
        raise ConfigError(f"published={rows!r} is not possible; it takes a list of mappings of {list(known)}.")
    for place, row in enumerate(rows):
        _check_fields(row, known, f"published[{place}].")
        missing = [name for name, field in known.items() if not _has_default(field) and name not in row]
        wrong = [name for name, value in row.items() if not fits(value, known[name].type)]
        if missing or wrong:
            told = f"has no {missing[0]}" if missing else f"has {wrong[0]}={row[wrong[0]]!r}"
            raise ConfigError(f"published[{place}] {told}; it needs a number as value, and text for the others.")
    return [Published(**row) for row in rows]


def _put(content: dict[str, Any], path: Sequence[str], value: str) -> None:
    here = content
    for name in path[:-1]:
        inner = here.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--{'.'.join(path)}: {name} is {inner!r} in the spec, with nothing inside to be set.")
        here = inner
    try:
        here[path[-1]] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--{'.'.join(path)}={value} cannot be read ({' '.join(str(error).split())}).") from error


def _whole_base(base: Mapping[str, Any]) -> dict[str, Any]:
    """With every default that a run has, so that the spec in the folder says all."""
    _check_fields(base, RUN_FIELDS, "base.")
    defaults: dict[str, Any] = {}
    for name, known in RUN_FIELDS.items():
        kind = known.default_factory if known.default_factory is not MISSING else known.type
        if isinstance(kind, type) and is_dataclass(kind):
            defaults[name] = {f.name: _default(f) for f in fields(kind) if _has_default(f)}
        elif _has_default(known):
            defaults[name] = _default(known)
    return merged(defaults, base)


def _has_default(known: Any) -> bool:
    return known.default is not MISSING or known.default_factory is not MISSING


def _default(known: Any) -> Any:
    return known.default if known.default is not MISSING else known.default_factory()


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` in place of what `base` has, mapping by mapping."""
    made = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(made.get(key), Mapping)
        made[key] = merged(made[key], value) if both else value
    return made


def contenders_of(spec: Spec) -> list[Contender]:
    """Every method on every task, each as the configuration of a run, checked as that of `rankwise train` is."""
    return [_contender(spec, task, label) for task in spec.tasks for label in spec.methods]


def _contender(spec: Spec, task: str, label: str) -> Contender:
    of_task = spec.tasks[task]
    _check_fields(of_task, {**RUN_FIELDS, **dict.fromkeys(OF_TASK)}, f"tasks.{task}.")
    of_method = _of_method(spec, task, label)
    training = of_method.get("training", {})
    _check_fields(training, {f.name: f for f in fields(TrainingConfig)}, f"methods.{label}.training.")
    method = {key: value for key, value in of_method.items() if key not in OF_METHOD}
    method = without_preset(method if "name" in method else {"name": label, **method})
    if method["name"] not in METHODS:
        raise ConfigError(
            f"methods.{label}: {method['name']!r} is no method; known are {sorted(METHODS)}. Say `name:`."
            + nearest(str(method["name"]), [*METHODS, *PRESETS])
        )
    run = merged(spec.base, {key: value for key, value in of_task.items() if key not in OF_TASK})
    run = merged(run, {"training": training})
    try:
        config = config_from_dict({**run, "method": method, "output": spec.output})
    except ConfigError as error:
        raise ConfigError(f"methods.{label} on {task}: {error}") from error
    rates = _rates(of_method.get("learning_rates", spec.search.learning_rates))
    if rates is None:
        rates = [float(f"{factor * config.method.learning_rate:.2g}") for factor in (0.3, 1, 3)]
    check_rates(rates, f"methods.{label}.learning_rates")
    return Contender(
        task=task,
        method=label,
        config=config,
        says_alpha="alpha" in method,
        counted=_counted(of_method.get("counted", spec.counted), label),
        rates=tuple(dict.fromkeys(float(rate) for rate in rates)),
        metric=of_task.get("metric"),
        higher_is_better=of_task.get("higher_is_better"),
    )


def _rates(given: Any) -> Any:
    """With numbers where YAML has text: it takes 1e-3, which has no point, for a word."""
    return [_number(rate) for rate in given] if isinstance(given, list) else given


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _of_method(spec: Spec, task: str, label: str) -> dict[str, Any]:
    """The settings of a method, with those that only this task has in their place."""
    here = spec.tasks[task].get("methods", {})
    where = f"tasks.{task}.methods."
    _check_fields(here, spec.methods, where)
    of_label = here.get(label, {})
    if not isinstance(of_label, Mapping):
        raise ConfigError(f"{where}{label}={of_label!r} is not possible; it takes a mapping of settings.")
    return merged(spec.methods[label], of_label)


def _counted(word: Any, label: str) -> Any:
    if word not in ("end", "average", "start"):
        raise ConfigError(f"methods.{label}.counted={word!r} is none of ['end', 'average', 'start'].")
    return word


def _check_fields(data: Any, known: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError unless `data` is a mapping of these fields; a run's own sections are checked with the run."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where.rstrip('.')}={data!r} is not possible; it takes a mapping of {list(known)}.")
    for key in data:
        if key not in known:
            raise ConfigError(
                f"unknown key {where + str(key)!r}; known here are {list(known)}.{nearest(str(key), known)}"
            )


def _options(parser: jsonargparse.ArgumentParser) -> list[str]:
    return [*(f"--base.{name}" for name in RUN_FIELDS), *command_line.options(parser)]
