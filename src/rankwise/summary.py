"""What `print(adaptation)` says."""

from collections.abc import Sequence


def summary(
    method: str,
    what: tuple[int, int, int],  # layers adapted, modules added, parameters of the model itself that train
    sizes: tuple[int, int, int],  # parameters that train now, that trained at the start, of the whole model
    heads: Sequence[str],
    frozen: Sequence[str],
    notes: Sequence[str],
) -> str:
    """The method, what it put where, how much trains, and what it left out."""
    now, initial, total = sizes
    kinds = ("layers adapted", "modules added", "parameters tuned")
    counted = [f"{number:,} {kind}" for number, kind in zip(what, kinds, strict=True) if number]
    lines = [
        f"{method}: {', '.join(counted) or 'nothing adapted'}",
        f"trainable: {now:,} of {total:,} ({100 * now / total:.2f} %)"
        + (f", {initial:,} at the start" if now != initial else ""),
    ]
    if heads:
        lines.append(f"trained in full: {', '.join(heads)}")
    if frozen:
        lines.append(f"frozen: {len(frozen)} projections")
    return "\n".join([*lines, *notes])
