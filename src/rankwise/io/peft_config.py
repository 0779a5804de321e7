"""What PEFT's settings become: the fields of LoraConfig, AdaLoraConfig and VeraConfig, from a file or from the object.

Every field is taken, is known to say nothing about the update, or is refused with its reason as soon as it is set.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rankwise.adapter import Method
from rankwise.errors import ConfigError
from rankwise.io.description import fits
from rankwise.io.peft_patterns import Clock, Pattern, as_pattern
from rankwise.io.untrusted import brief
from rankwise.methods import METHODS

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Taken:
    """A field that is taken: its type, what PEFT takes where it is not given, and the setting that it becomes."""

    type: Any
    default: Any
    setting: str


@dataclass(frozen=True)
class Kind:
    """One type of PEFT's configs."""

    method: str
    taken: Mapping[str, Taken]
    silent: tuple[str, ...] = ()  # beside IGNORED
    refused: Mapping[str, str] = field(default_factory=dict)  # beside REFUSED


KINDS = {
    "LORA": Kind(
        "lora",
        {
            "r": Taken(int, 8, "rank"),
            "lora_alpha": Taken(float, 8, "alpha"),
            "lora_dropout": Taken(float, 0.0, "dropout"),
            "use_rslora": Taken(bool, False, "rank_stabilized"),
            "rank_pattern": Taken(dict[str, int], {}, "rank_pattern"),
            "alpha_pattern": Taken(dict[str, float], {}, "alpha_pattern"),
            "init_lora_weights": Taken(bool | str, True, "init"),
        },
    ),
    "ADALORA": Kind(
        "adalora",
        {
            "init_r": Taken(int, 12, "rank"),
            "target_r": Taken(int, 8, "target_rank"),
            "lora_alpha": Taken(float, 8, "alpha"),
            "lora_dropout": Taken(float, 0.0, "dropout"),
            "tinit": Taken(int, 0, "warmup"),
            "tfinal": Taken(int, 0, "cooldown"),
            "deltaT": Taken(int, 1, "every"),
            "beta1": Taken(float, 0.85, "beta1"),
            "beta2": Taken(float, 0.85, "beta2"),
            "orth_reg_weight": Taken(float, 0.5, "orthogonality"),
            "init_lora_weights": Taken(bool | str, True, ""),
            "rank_pattern": Taken(dict[str, list[bool]], {}, ""),  # what was decided, no setting
            "total_step": Taken(int, 0, ""),  # is given to `attached`
        },
        silent=("r",),  # there is init_r instead, but PEFT writes r all the same
        refused={
            "alpha_pattern": "PEFT's own AdaLoRA ignores it, and every layer has lora_alpha",
            "use_rslora": "PEFT's own AdaLoRA ignores it, and the scale is lora_alpha / init_r",
        },
    ),
    "VERA": Kind(
        "vera",
        {
            "r": Taken(int, 256, "rank"),
            "vera_dropout": Taken(float, 0.0, "dropout"),
            "projection_prng_key": Taken(int, 0, "seed"),
            "save_projection": Taken(bool, True, "save_projections"),
            "d_initial": Taken(float, 0.1, "init_gate"),
            "init_weights": Taken(bool, True, ""),
        },
    ),
}

# Which layers are meant: of a folder its tensors tell, of an object `peft_targets`.
TARGETS = (
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "task_type"),
    "ensure_weight_tying",  # what is tied stays tied here, and must where it would not in PEFT: see who reads it
)

IGNORED = (
    *("peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("fan_in_fan_out", "runtime_config"),  # the layer is asked; how to compute
    # only together with fields that are refused or taken:
    *("megatron_core", "qalora_group_size", "eva_config", "corda_config", "lora_ga_config", "loftq_config"),
)

REFUSED = {
    "bias": "a bias that trains is no low-rank update",
    "use_dora": "DoRA's renormalised weight is no product of thin factors",
    "lora_bias": "a bias beside B has no place in B A",
    "use_qalora": "QALoRA pools its input, which the product B A does not",
    "trainable_token_indices": "single rows of an embedding are no low-rank update of a linear layer",
    "target_parameters": "parameters outside linear layers cannot be adapted",
    "layer_replication": "it changes the base model itself",
    "megatron_config": "Megatron's parallel layers cannot be adapted",
    "alora_invocation_tokens": "an update that begins at a token is not one update for every position",
    "monteclora_config": "it draws the update at random in every forward pass",
    "use_bdlora": "rankwise would not keep the factors block-diagonal",
    "arrow_config": "it routes between adapters",
    "kasa_config": "KaSA changes the base weights when it begins",
    "velora_config": "it compresses what the backward pass is computed from",
}
ONLY_WHILE_TRAINING = ("velora_config",)  # what was trained with it is an ordinary LoRA

UNSET: tuple[Any, ...] = (None, False, "none", [], {}, ())

# How training began does not matter to a folder, unless it changed the base model.
HARMLESS_STARTS = ("gaussian", "eva", "orthogonal", "mica")


def method_from(fields: Fields, names: Sequence[str], trained: Sequence[str], *, trains: bool) -> Method:
    """The method that the fields describe, for the layers of these names and what trains beside them.

    `trains`: the config is for a run that is yet to begin, not of one that was saved. Raises ConfigError at the first
    field that cannot be honoured, with the reason.
    """
    kind, found = checked(fields, trains=trains)
    settings = {taken.setting: found[name] for name, taken in kind.taken.items() if taken.setting}
    settings |= {"targets": list(names), "also_train": list(trained)}
    return METHODS[kind.method](**settings | _NOT_ONE_TO_ONE[kind.method](found, names))


def checked(fields: Fields, *, trains: bool) -> tuple[Kind, dict[str, Any]]:
    """The kind of config, and the value of each field that is taken."""
    peft_type = fields.get("peft_type")
    if not isinstance(peft_type, str) or peft_type not in KINDS:
        raise ConfigError(f"peft_type={brief(peft_type)} cannot be taken over; those that can are {sorted(KINDS)}.")
    kind = KINDS[peft_type]
    refused = REFUSED | dict(kind.refused)
    passed = {*kind.taken, *IGNORED, *TARGETS, *kind.silent, *(() if trains else ONLY_WHILE_TRAINING)}
    given = {name: fields[name] for name in kind.taken if fields.get(name) is not None}
    for name, value in given.items():
        if not fits(value, kind.taken[name].type):
            raise ConfigError(f"{name}={brief(value)} is of a type that PEFT's {peft_type} does not take there.")
    for name, value in fields.items():
        if name in passed or any(type(value) is type(unset) and value == unset for unset in UNSET):
            continue
        if name in refused:
            raise ConfigError(f"{name}={brief(value)} cannot be honoured: {refused[name]}.")
        raise ConfigError(f"{brief(name)} is no field of {peft_type} that rankwise knows, and is set: {brief(value)}.")
    found = {name: taken.default for name, taken in kind.taken.items()} | given
    _check_start(kind, found, trains=trains)
    return kind, found


def _check_start(kind: Kind, found: Fields, *, trains: bool) -> None:
    name = "init_weights" if kind.method == "vera" else "init_lora_weights"
    start = found[name]
    if trains and start is not True and (start, kind.method) != ("gaussian", "lora"):
        raise ConfigError(
            f"{name}={brief(start)} cannot be honoured: every method here starts at the base model, with "
            'the factors as PEFT\'s True draws them, or in LoRA "gaussian".'
        )
    if not trains and not isinstance(start, bool) and start not in HARMLESS_STARTS:
        raise ConfigError(
            f"{name}={brief(start)}: it changed the base weights when training began, so that the factors "
            "are not the whole update. Save with PEFT's path_initial_model_for_weight_conversion, which makes a plain "
            "LoRA of it."
        )


def _of_lora(found: Fields, names: Sequence[str]) -> dict[str, Any]:
    """Patterns by our rule, for each layer what PEFT gives it by its own; and the start of A."""
    clock = Clock()
    rank_of, alpha_of = Pattern(found["rank_pattern"], clock), Pattern(found["alpha_pattern"], clock)
    ranks = {name: rank_of(name, found["r"]) for name in names}
    alphas = {name: alpha_of(name, found["lora_alpha"]) for name in names}
    start: dict[str, Any] = {"init": "kaiming"}
    if found["init_lora_weights"] == "gaussian":  # N(0, (1/r)²)
        if len(set(ranks.values())) > 1:
            raise ConfigError(
                'init_lora_weights="gaussian" draws with 1/r, and has one r here: leave rank_pattern out.'
            )
        start = {"init": "normal", "init_std": 1 / max(next(iter(ranks.values()), found["r"]), 1)}
    return {
        "rank_pattern": as_pattern(ranks, found["r"]),
        "alpha_pattern": as_pattern(alphas, found["lora_alpha"]),
        **start,
    }


def _of_adalora(found: Fields, names: Sequence[str]) -> dict[str, Any]:
    """PEFT's scale is α/(r₀ + 10⁻⁵), and what is taken over is scaled as it was."""
    r0, alpha = found["init_r"], found["lora_alpha"]
    if not alpha > 0:
        raise ConfigError(
            f"lora_alpha={alpha} cannot be honoured: PEFT then scales by a rank, which is init_r while it trains and "
            "what is left of it when it loads what it pruned. Set it, to init_r for the scale of training."
        )
    return {"alpha": alpha * r0 / (r0 + 1e-5)}


_NOT_ONE_TO_ONE: dict[str, Callable[[Fields, Sequence[str]], dict[str, Any]]] = {
    "lora": _of_lora,
    "adalora": _of_adalora,
    "vera": lambda found, names: {},
}


def described(name: str, fields: Fields, method: Method) -> str:
    """One line: what each field became that is not as PEFT has it by default."""
    kind, found = checked(fields, trains=True)
    parts = []
    for own, taken in kind.taken.items():
        if taken.setting and (found[own] != taken.default or taken.setting in ("rank", "alpha", "target_rank")):
            parts.append(f"{own}={found[own]!r} is {taken.setting}={vars(method)[taken.setting]!r}")
    if found.get("total_step"):
        parts.append(f"total_step={found['total_step']} is attached(..., total_steps={found['total_step']})")
    return f"{name}: " + "; ".join(parts)
