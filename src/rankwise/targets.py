"""Which layers of a model a method adapts, and which parameters train beside them. Reads the model, changes nothing.

Forms of `targets` and `exclude`: "all-linear" (every linear of the backbone), "attention", "ffn", a list of name
suffixes (one may name blocks of a fused weight: "c_attn[q,v]"), or one regular expression for whole names.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from rankwise.architectures import Role, blocks_of, role_of
from rankwise.base_layers import is_from, is_packed, kind_of, sizes
from rankwise.errors import ConfigError, TargetError

Targets = str | Sequence[str]

KEYWORDS = ("all-linear", "attention", "ffn")


@dataclass(frozen=True)
class Site:
    """One layer, or one block of a fused layer, to adapt."""

    name: str  # of the module, with "[q]" behind it for a block
    path: str  # of the module
    module: nn.Module
    role: Role
    rows: tuple[int, int] | None = None  # of the block in the fused output


def check_targets(targets: Targets, setting: str) -> None:
    """Raise ConfigError unless `targets` has one of the known forms."""
    if not targets:
        raise ConfigError(f"{setting} is empty. Write {KEYWORDS}, a list of suffixes, or one regular expression.")
    if isinstance(targets, str):
        try:
            re.compile(targets)
        except (re.error, RecursionError, OverflowError) as error:  # the last two: nested or repeated too often
            raise ConfigError(f"{setting}={targets!r} is no regular expression: {error}.") from error
    elif not all(isinstance(t, str) and t for t in targets):
        raise ConfigError(f"{setting}={targets!r}: a list of targets holds names or name endings.")


class ModelView:
    """What targeting needs to know of a model: its backbone, its heads, its family."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        pretrained: Any = model if is_from("transformers", model, "PreTrainedModel") else None
        self.config: Any = None if pretrained is None else pretrained.config
        self.model_type: str = pretrained.config.model_type if pretrained is not None else ""
        self.backbone: nn.Module = model if pretrained is None else pretrained.base_model
        self.lm_head: nn.Module | None = None if pretrained is None else pretrained.get_output_embeddings()
        self.names = {id(m): n for n, m in model.named_modules()}

    def linears(self) -> dict[str, nn.Module]:
        """Every adaptable linear inside the model by name, in the order of the model."""
        return {n: m for n, m in self.model.named_modules() if n and kind_of(m) is not None}

    def in_backbone(self, name: str) -> bool:
        backbone = self.names[id(self.backbone)]
        under = not backbone or name == backbone or name.startswith(backbone + ".")
        return under and (self.lm_head is None or name != self.names.get(id(self.lm_head)))

    def role(self, name: str) -> Role:
        return role_of(name, self.model, self.model_type)

    def fresh(self) -> set[str]:
        """Names of modules whose parameters were not in the checkpoint: transformers marks every parameter it loads.

        Empty for a model built from a config, where nothing was loaded and nothing stands out. Quantising a loaded
        weight makes a new parameter of it, without the mark; a quantised layer is never fresh.
        """
        loaded = {n: "_is_hf_initialized" in p.__dict__ for n, p in self.model.named_parameters()}
        if not any(loaded.values()):
            return set()
        fresh = {n.rpartition(".")[0] for n, is_loaded in loaded.items() if not is_loaded}
        return {n for n in fresh if not is_packed(self.model.get_submodule(n))}

    def heads(self) -> list[str]:
        """Task-head modules: children outside the backbone that hold no language-model head; and fresh linears."""
        if self.backbone is self.model:
            outside = []
        else:
            outside = [n for n, child in self.model.named_children() if self._is_head(child)]
        fresh = [n for n in sorted(self.fresh()) if self.in_backbone(n) and n in self.linears()]
        return outside + fresh

    def _is_head(self, child: nn.Module) -> bool:
        inside = {id(m) for m in child.modules()}
        if id(self.backbone) in inside or (self.lm_head is not None and id(self.lm_head) in inside):
            return False
        return any(True for _ in child.parameters())


def trained_modules(view: ModelView, also_train: str | Sequence[str]) -> list[str]:
    """Names of the modules or parameters that train in full beside the adapters."""
    if also_train == "auto":
        return _refuse_packed(view, view.heads())
    names = [also_train] if isinstance(also_train, str) else list(also_train)
    known = set(view.names.values()) | {n for n, _ in view.model.named_parameters()}
    found: list[str] = []
    for name in names:
        matches = [k for k in known if k and (k == name or k.endswith("." + name))]
        if not matches:
            heads = [n for n, _ in view.model.named_children()]
            raise TargetError(f"also_train={name!r} is no module or parameter of the model. Its top modules: {heads}.")
        found += sorted(matches)
    return _refuse_packed(view, found)


def _refuse_packed(view: ModelView, trained: list[str]) -> list[str]:
    """The names as they came. Raises TargetError for a quantised layer: its weight cannot move by small steps."""
    for name, module in view.model.named_modules():
        if is_packed(module) and any(_is_under(inner, trained) for inner in (name, f"{name}.weight")):
            raise TargetError(
                f"{name} is to be trained in full, but its weight is quantised. Leave it out when quantising (a task "
                "head is small), or name what else to train in also_train, () for nothing."
            )
    return trained


def find_sites(view: ModelView, targets: Targets, exclude: Targets | None, trained: Sequence[str]) -> list[Site]:
    """The layers to adapt, in the order of the model.

    Raises TargetError when `targets`, or one suffix of the list, matches nothing, saying what the model has.
    """
    linears = {n: m for n, m in view.linears().items() if not _is_under(n, trained)}
    chosen = _select(view, linears, targets, "targets")
    if exclude:
        left_out = _select(view, linears, exclude, "exclude")
        chosen = {site: s for site, s in chosen.items() if site not in left_out and s.path not in left_out}
        if not chosen:
            raise TargetError(f"exclude={exclude!r} leaves none of the layers that targets={targets!r} matched.")
    sites = list(chosen.values())
    _refuse_twice(sites)
    _refuse_tied(view, sites)
    return sites


def listed_sites(view: ModelView, names: Sequence[str]) -> list[Site]:
    """The layers of exactly these names, in their order, as a saved adapter lists them. Raises TargetError for others.

    Nothing is searched for, and no name is a pattern.
    """
    linears = view.linears()
    sites = []
    for name in names:
        path, _, block = name.removesuffix("]").partition("[")
        if path not in linears:
            raise TargetError(f"the model has no linear layer {path!r}.")
        rows = _named_blocks(view, path, linears[path], block)[block.strip()] if block else None
        sites.append(Site(name, path, linears[path], view.role(path), rows))
    _refuse_twice(sites)
    _refuse_tied(view, sites)
    return sites


def _is_under(name: str, modules: Sequence[str]) -> bool:
    return any(name == m or name.startswith(m + ".") for m in modules)


def _select(view: ModelView, linears: dict[str, nn.Module], targets: Targets, setting: str) -> dict[str, Site]:
    if not isinstance(targets, str):
        sites: dict[str, Site] = {}
        for suffix in targets:
            found = _by_suffix(view, linears, suffix)
            if not found:
                raise _nothing(view, linears, suffix, setting)
            sites |= found
        return {s.name: s for s in sorted(sites.values(), key=lambda s: list(linears).index(s.path))}
    if targets in KEYWORDS:
        names = [n for n in linears if view.in_backbone(n) and targets in ("all-linear", view.role(n))]
    else:
        names = [n for n in linears if re.fullmatch(targets, n)]
    if not names:
        raise _nothing(view, linears, targets, setting)
    return {n: Site(n, n, linears[n], view.role(n)) for n in names}


def _by_suffix(view: ModelView, linears: dict[str, nn.Module], suffix: str) -> dict[str, Site]:
    match = re.fullmatch(r"(?P<end>.+?)(\[(?P<blocks>[^\]]+)\])?", suffix)
    assert match is not None  # every non-empty string matches; emptiness was refused when the settings were made
    end, blocks = match["end"], match["blocks"]
    names = [n for n in linears if n == end or n.endswith("." + end)]
    if blocks is None:
        return {n: Site(n, n, linears[n], view.role(n)) for n in names}
    sites = {}
    for name in names:
        for block, rows in _named_blocks(view, name, linears[name], blocks).items():
            sites[f"{name}[{block}]"] = Site(f"{name}[{block}]", name, linears[name], view.role(name), rows)
    return sites


def _named_blocks(view: ModelView, name: str, module: nn.Module, blocks: str) -> dict[str, tuple[int, int]]:
    known = blocks_of(name, view.model_type, view.config, sizes(module)[1])
    wanted = [b.strip() for b in blocks.split(",")]
    unknown = [b for b in wanted if b not in known]
    if unknown:
        has = f"its blocks are {list(known)}" if known else "it is not known to be a fused weight with separate blocks"
        raise TargetError(
            f"targets name block {unknown[0]!r} of {name} in a {view.model_type or 'custom'} model; {has}."
        )
    return {b: known[b] for b in wanted}


def _nothing(view: ModelView, linears: dict[str, nn.Module], target: str, setting: str) -> TargetError:
    endings = sorted({n.rpartition(".")[2] for n in linears})
    other = Counter(type(m).__name__ for n, m in view.model.named_modules() if n.endswith(target) and n not in linears)
    what = f" (only {', '.join(other)}, which cannot be adapted)" if other else ""
    if target in endings:  # as a list it would match, so it came as a string
        what += f", for a string is one regular expression for whole names; write [{target!r}] for a name's ending"
    return TargetError(
        f"{setting}={target!r} matches no linear layer{what}. The model's linear layers end in {endings}; "
        f"the keywords are {list(KEYWORDS)}. `rankwise inspect MODEL` lists full names."
    )


def _refuse_twice(sites: Sequence[Site]) -> None:
    whole = {s.path for s in sites if s.rows is None}
    for site in sites:
        if site.rows is not None and site.path in whole:
            raise TargetError(f"targets name {site.path} whole and its block {site.name} too. Name one of them.")


def _refuse_tied(view: ModelView, sites: Sequence[Site]) -> None:
    owners: dict[int, list[str]] = {}
    for name, module in view.model.named_modules():  # each module once: one layer in two places is no tie
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(name)
    for site in sites:
        others = [n for p in site.module.parameters(recurse=False) for n in owners[id(p)] if n != site.path]
        if others:
            raise TargetError(
                f"{site.path} shares its weight with {others[0]}; merging an update of one would change the other. "
                f"Leave it out with exclude=[{site.path!r}], or untie the weights first."
            )
