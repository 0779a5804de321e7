"""What every low-rank method shares: its common settings, and its installation into a model, written once."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self, TypeVar

from torch import nn

from rankwise.adapter import FusedBlocks, Installed, LowRank, Method
from rankwise.base_layers import Block, sizes, weightless
from rankwise.dropout import can_be_drawn
from rankwise.errors import ConfigError, TargetError, nearest
from rankwise.left_out import left_out
from rankwise.methods.installing import parameters_under, plain_view
from rankwise.methods.settings import check_choices, is_count
from rankwise.targets import Site, check_targets, find_sites, listed_sites, trained_modules

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class LowRankMethod(Method):
    """Settings common to the low-rank methods."""

    size_setting: ClassVar[str | None] = "rank"
    bounded_rank: ClassVar[bool] = True  # whether a rank above the layer's own smaller size is refused as a waste

    rank: int = 8
    """Number of ranks of each update at the start."""
    dropout: float = 0.0
    """Dropout on the input of the low-rank branch, in [0, 1)."""
    targets: str | list[str] = "all-linear"
    """Layers to adapt: "all-linear", "attention", "ffn", name suffixes ("c_attn[q,v]" for blocks), or one regex."""
    exclude: str | list[str] | None = None
    """Layers to leave out, in the same forms."""
    also_train: str | list[str] = "auto"
    """Modules trained in full and saved with the adapter: "auto" (task heads, freshly initialised linears) or names."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Other ranks for the layers whose names end in the key."""

    def __post_init__(self) -> None:
        check_choices(self)
        if not is_count(self.rank):
            raise ConfigError(f"rank={self.rank!r}: a low-rank update needs a whole rank of at least 1.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout} is a probability and must be in [0, 1).")
        if self.dropout and not can_be_drawn(self.dropout):
            raise ConfigError(f"dropout={self.dropout}: in steps of 1/65,536 that drops nothing, or everything.")
        check_targets(self.targets, "targets")
        if self.exclude is not None:
            check_targets(self.exclude, "exclude")
        low = {name: rank for name, rank in self.rank_pattern.items() if not is_count(rank)}
        if low:
            raise ConfigError(f"rank_pattern={low}: ranks are whole and at least 1; use exclude to leave a layer out.")

    def resized(self, size: int) -> Self:
        """With rank `size`, and alpha/rank as it is."""
        return replace(super().resized(size), **rescaled(self, size))

    @abstractmethod
    def build(self, base: nn.Module, site: Site) -> LowRank:
        """The adapter for one base layer, with its initial rank."""

    def connect(self, adapters: Mapping[str, LowRank]) -> None:
        """Give the layers what they hold in common: all are built, and none is in the model yet. Most have nothing."""

    def initial_rank(self, name: str) -> int:
        """r_0 of the layer `name`: the scale α/r_0 keeps it for ever, however many ranks are left."""
        return matching(self.rank_pattern, name, self.rank)

    def install(self, model: nn.Module) -> Installed:
        """Check everything, build every adapter, then swap them in.

        Raises StateError if the model is adapted already, TargetError if targets or ranks do not fit it.
        """
        view = plain_view(model)
        trained = trained_modules(view, self.also_train)
        sites = find_sites(view, self.targets, self.exclude, trained)
        self._check_ranks(sites, min)
        return self._install(model, sites, trained)

    def install_saved(self, model: nn.Module, layers: Sequence[str], trained: list[str]) -> Installed:
        """As `install`, for exactly the layers and parameters that a saved adapter lists: its targets may be a pattern
        that someone made to run for ever, and match something else in a model that has changed since."""
        return self._install(model, listed_sites(plain_view(model), layers), trained)

    def build_bare(self, shapes: Mapping[str, tuple[int, int]]) -> dict[str, LowRank]:
        """New layers of these names and shapes (d_out, d_in), on bases without a weight: for their tensors alone."""
        return self._built([Site(name, name, weightless(*shape), "other") for name, shape in shapes.items()])

    def build_saved(self, model: nn.Module, layers: Sequence[str]) -> dict[str, LowRank]:
        """The layers that a saved adapter lists, built around the model's own and not put into it."""
        return self._built(listed_sites(plain_view(model), layers))

    def _install(self, model: nn.Module, sites: list[Site], trained: list[str]) -> Installed:
        return _swap_in(model, sites, self._built(sites), trained)

    def _built(self, sites: list[Site]) -> dict[str, LowRank]:
        self._check_patterns(sites)
        self._check_ranks(sites, max)  # others adapt a layer at more ranks than it has, and what they saved is read
        adapters = {site.name: self._build(site) for site in sites}
        self.connect(adapters)
        return adapters

    def _build(self, site: Site) -> LowRank:
        base = site.module if site.rows is None else Block(site.module, *site.rows)
        return self.build(base, site)

    def _check_patterns(self, sites: list[Site]) -> None:
        known = {ending for site in sites for ending in endings(site.name)}
        for setting in ("rank_pattern", "alpha_pattern"):
            for key in vars(self).get(setting, {}):  # not every method has an alpha for each layer
                if key not in known:
                    raise TargetError(
                        f"{setting} names {key!r}, which is none of the {len(sites)} adapted layers. Write the end of "
                        f"a layer's name, such as {sites[0].name.rpartition('.')[2]!r}.{nearest(key, known)}"
                    )

    def _check_ranks(self, sites: list[Site], most: Callable[[int, int], int]) -> None:
        """`most`: of the two sizes of a layer, the one that no rank may exceed."""
        for site in sites if self.bounded_rank else ():
            d_in, d_out = sizes(site.module)
            d_out = d_out if site.rows is None else site.rows[1] - site.rows[0]
            if self.initial_rank(site.name) > most(d_in, d_out):
                raise TargetError(
                    f"rank={self.initial_rank(site.name)} is above the largest possible rank {most(d_in, d_out)} of "
                    f"{site.name} ({d_out} × {d_in}). Lower the rank, set rank_pattern for it, or exclude it."
                )


def rescaled(method: LowRankMethod, rank: int) -> dict[str, Any]:
    """The settings that keep alpha/rank where the rank becomes `rank`; none for a method whose alpha follows it."""
    alpha = vars(method).get("alpha")  # not every method has one
    return {} if alpha is None else {"alpha": alpha * rank / method.rank}


def check_alpha(alpha: float | None, setting: str = "alpha") -> None:
    """Raise ConfigError for an alpha with which nothing would be learnt."""
    if alpha is not None and not alpha > 0:
        raise ConfigError(f"{setting}={alpha} scales the update and must be positive.")


def matching(pattern: Mapping[str, T], name: str, default: T) -> T:
    """The value of the longest key that `name` ends in."""
    return next((pattern[ending] for ending in endings(name) if ending in pattern), default)


def endings(name: str) -> Iterator[str]:
    """ "a.b.c", "b.c" and "c"."""
    while name:
        yield name
        name = name.partition(".")[2]


def _swap_in(model: nn.Module, sites: list[Site], adapters: dict[str, LowRank], trained: list[str]) -> Installed:
    frozen_before = {p: p.requires_grad for p in model.parameters()}
    heads = parameters_under(model, trained)  # by the plain model's names: in an adapted layer they change
    values_before = {name: parameter.detach().clone() for name, parameter in heads.items()}
    originals = {site.path: site.module for site in sites}
    notes = left_out(model, originals.values(), heads.values())
    places = _places(model, originals.values())
    for parameter in frozen_before:
        parameter.requires_grad_(False)
    for path, module in _replacements(sites, adapters).items():
        module.train(originals[path].training)
        for place in places[originals[path]]:
            model.set_submodule(place, module)
    for parameter in heads.values():
        parameter.requires_grad_(True)

    def undo() -> None:
        for original, found in places.items():
            for place in found:
                model.set_submodule(place, original)
        for parameter, required in frozen_before.items():
            parameter.requires_grad_(required)

    return Installed(adapters, heads, values_before, undo, notes)


def _replacements(sites: list[Site], adapters: dict[str, LowRank]) -> dict[str, nn.Module]:
    """What stands in each adapted layer's place, by path: its adapter, or the adapters of its blocks together."""
    replacements: dict[str, nn.Module] = {s.path: adapters[s.name] for s in sites if s.rows is None}
    for path in {s.path for s in sites if s.rows is not None}:
        parts = [s for s in sites if s.path == path]
        labels = [s.name.rpartition("[")[2].rstrip("]") for s in parts]
        blocks = {label: adapters[s.name] for label, s in zip(labels, parts, strict=True)}
        rows = {label: slice(*s.rows) for label, s in zip(labels, parts, strict=True) if s.rows}
        replacements[path] = FusedBlocks(parts[0].module, blocks, rows)
    return replacements


def _places(model: nn.Module, modules: Iterable[nn.Module]) -> dict[nn.Module, list[str]]:
    """All paths of each module: a layer that the model shares between places is adapted once, and in all of them."""
    places: dict[nn.Module, list[str]] = {module: [] for module in modules}
    for path, module in model.named_modules(remove_duplicate=False):
        if module in places:
            places[module].append(path)
    return places
