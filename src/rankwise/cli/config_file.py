"""From a YAML file and the command line to a RunConfig, with the nearest name for whatever is unknown."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from rankwise.cli import arguments as command_line
from rankwise.cli.explain import explained
from rankwise.cli.help_page import examples, method_help
from rankwise.errors import ConfigError, nearest
from rankwise.io.untrusted_yaml import MOST_YAML, parse_yaml
from rankwise.methods import METHODS, PRESETS
from rankwise.methods.presets import without_preset
from rankwise.train.config import RunConfig

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)  # field docstrings are the help texts


INTROS = {
    "train": "Train an adapter, evaluate it and save it with everything about the run in the folder `output`.",
    "plan": "Parameters, memory and schedule of the run that `rankwise train` would make; no weight is loaded.",
}
SHOWN = {
    "train": (
        "rankwise train run.yaml",
        "rankwise train run.yaml --training.learning_rate 3e-4 --output runs/slower",
        "rankwise train run.yaml --method lora --method.rank 8 --print_config",
        "rankwise train run.yaml --resume",
        "rankwise train --method adalora --help",
    ),
    "plan": (
        "rankwise plan run.yaml --device_memory 24GB",
        "rankwise plan sentence-transformers/all-MiniLM-L6-v2 --method adalora --training.steps 3000",
    ),
}


def make_parser(command: str) -> jsonargparse.ArgumentParser:
    """The parser of a command that takes a run's configuration."""
    parser = command_line.make_parser(
        command,
        usage=f"rankwise {command} CONFIG.yaml{'|MODEL' if command == 'plan' else ''} [--FIELD VALUE ...]",
        description=f"{INTROS[command]} Each field below stands in CONFIG.yaml (`training.steps` as `steps` under "
        "`training`), or is given on the command line, which goes before the file. None is null in YAML. The method is "
        "{name: adalora, rank: 12} in the file, `--method adalora --method.rank 12` on the command line; a method "
        "named there replaces the file's, settings and all. NAME may be a preset's too, such as adalora/magnitude. "
        "`--method NAME --help` shows the settings of one method.",
        epilog=examples(*SHOWN[command]),
        print_config=None,
    )
    parser.add_argument(
        "--config", action=jsonargparse.ActionConfigFile, help="the config file; the same as giving it first"
    )
    parser.add_argument("--print_config", action="store_true", help="print the whole configuration and exit")
    if command == "plan":
        parser.add_argument(
            "--device_memory", type=str, help="also say whether the run fits into this much, such as 24GB or 80GiB"
        )
    else:
        parser.add_argument(
            "--resume", action="store_true", help="continue the unfinished run in `output` from its last checkpoint"
        )
    parser.add_class_arguments(RunConfig, as_group=False)
    return parser


_parser = cache(make_parser)  # making one takes as long as parsing with it, and a comparison reads dozens of configs


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """What a command line says."""

    config: RunConfig
    print_config: bool
    resume: bool = False
    device_memory: str | None = None


def parse(command: str, arguments: list[str]) -> Parsed:
    """Raises ConfigError for what is unknown or unreadable."""
    parser = _parser(command)
    try:
        parsed = parser.parse_args(_as_parser_reads(arguments))
        built = parser.instantiate(parsed)
    except jsonargparse.ArgumentError as error:
        raise ConfigError(
            explained(str(error), command, _options(parser), command_line.hints(parser), RunConfig)
        ) from error
    config = RunConfig(**{f.name: built[f.name] for f in fields(RunConfig)})
    own = {name: parsed[name] for name in ("resume", "device_memory") if name in parsed}
    return Parsed(config=config, print_config=parsed.print_config, **own)


def config_from_dict(data: Mapping[str, Any]) -> RunConfig:
    """The RunConfig that a config file's content describes."""
    return parse("train", ["--config", json.dumps(_parser_form(data))]).config


def config_of_run(folder: Path, content: Mapping[str, Any], *, trusts: bool) -> RunConfig:
    """The RunConfig in a run folder, which may be from somebody else: raises ConfigError if it asks to run the code of
    a model and the user does not trust that."""
    config = config_from_dict(content)
    if config.trust_remote_code and not trusts:
        raise ConfigError(
            f"{folder} asks to run the code that comes with the model {config.model!r}. "
            "If you trust it, say so with --trust_remote_code."
        )
    return config


def _as_parser_reads(arguments: list[str]) -> list[str]:
    """Files are read and checked here; method names become classes. A file may be given first or as --config."""
    pairs = [a.partition("=") if a.startswith("--") else ("", "", a) for a in arguments]
    # a method on the command line takes the place of the file's: settings of another method must not linger
    replaced = any(option in _METHOD for option, _, _ in pairs)
    read: list[str] = []
    takes: str | None = None
    for position, (option, equals, value) in enumerate(pairs):
        if takes is not None or (position == 0 and not option and not value.startswith("-")):
            read += [takes or "--config", _value(takes or "--config", arguments[position], replaced)]
            takes = None
        elif option == "--config" or option in _METHOD:
            takes = "--config" if option == "--config" else "--method"
            if equals:
                read += [takes, _value(takes, value, replaced)]
                takes = None
        else:
            read.append(arguments[position])
    return read if takes is None else [*read, takes]


_METHOD = ("--method", "--method.name")


def _value(option: str, value: str, method_replaced: bool) -> str:
    if option == "--config" and value.lstrip().startswith("{"):
        return value
    if option == "--config":
        content = _parser_form(read_yaml(Path(value)))
        return json.dumps({k: v for k, v in content.items() if k != "method" or not method_replaced})
    if value.lstrip().startswith("{"):
        return json.dumps(_method_class(yaml.safe_load(value)))
    return _class_path(value) if value in METHODS else json.dumps(_method_class(value))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError with the file, and for bad YAML with the line."""
    try:
        if path.exists() and (not path.is_file() or path.stat().st_size > MOST_YAML):
            raise ConfigError(f"config file {str(path)!r} is no ordinary file of at most {MOST_YAML:,} bytes.")
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is not UTF-8 (byte {error.start + 1})"
        raise ConfigError(f"config file {str(path)!r} cannot be read: {reason}.") from error
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise ConfigError(f"config file {str(path)!r}{line}: not YAML ({error.problem}).") from error
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"config file {str(path)!r}: not YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(data, dict):
        raise ConfigError(f"config file {str(path)!r} must hold a mapping of fields, not {_kind(data)}.")
    return data


def _kind(data: Any) -> str:
    return "nothing" if data is None else f"a {type(data).__name__}"


def _parser_form(data: Mapping[str, Any]) -> dict[str, Any]:
    check_keys(data, RunConfig, "")
    return {**data, "method": _method_class(data["method"])} if "method" in data else dict(data)


def check_keys(data: Mapping[str, Any], cls: type, where: str) -> None:
    """Raise ConfigError at the first key of `data`, at any depth, that is no field of the dataclass `cls`."""
    known = {f.name: f for f in fields(cls)}
    for key, value in data.items():
        if key not in known:
            raise ConfigError(
                f"unknown key {where + str(key)!r}; known here are {list(known)}.{nearest(str(key), known)}"
            )
        factory = known[key].default_factory if known[key].default_factory is not MISSING else known[key].type
        if is_dataclass(factory) and isinstance(factory, type) and key != "method":
            if not isinstance(value, Mapping):
                names = [f.name for f in fields(factory)]
                raise ConfigError(f"{where}{key}={value!r} is not possible; {key} takes a mapping of fields: {names}.")
            check_keys(value, factory, f"{where}{key}.")


def _method_class(method: Any) -> dict[str, Any]:
    """{name: adalora, rank: 12} -> jsonargparse's {class_path: ..., init_args: {rank: 12}}."""
    if isinstance(method, str):
        method = {"name": method}
    if not isinstance(method, Mapping) or "name" not in method:
        raise ConfigError(f"method={method!r} must be a mapping with a name, such as {{name: adalora, rank: 12}}.")
    method = without_preset(method)
    settings = {key: value for key, value in method.items() if key != "name"}
    if method["name"] not in METHODS:
        raise ConfigError(unknown_method(method["name"]))
    check_keys(settings, METHODS[method["name"]], "method.")
    return {"class_path": _class_path(method["name"]), "init_args": settings}


def unknown_method(name: Any) -> str:
    """What is said of a name that is neither a method's nor, with its slash, a preset's."""
    known = PRESETS if "/" in str(name) else METHODS
    return f"unknown method {name!r}; known are {sorted(known)}.{nearest(str(name), [*METHODS, *PRESETS])}"


def _class_path(name: str) -> str:
    return f"{METHODS[name].__module__}.{METHODS[name].__name__}"


def _options(parser: jsonargparse.ArgumentParser) -> list[str]:
    settings = {f"--method.{f.name}" for cls in METHODS.values() for f in fields(cls)}
    return [*command_line.options(parser), *sorted(settings)]


def full_help(command: str, arguments: Sequence[str]) -> str:
    """What `--help` prints: every field, and every setting of every method; after --method NAME those of that one."""
    named = [name for name in METHODS if name in arguments or f"--method={name}" in arguments]
    return method_help(named) if named else "\n".join([make_parser(command).format_help(), method_help(list(METHODS))])
