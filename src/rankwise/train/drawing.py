"""Parts of the rows, drawn with a seed. Rows that share a prompt stay together:

they are references of one text, and a model that has trained on some of them knows the prompt of the others.
"""

from itertools import accumulate

import datasets
import numpy as np
from numpy.typing import NDArray

from rankwise.errors import DataError
from rankwise.train.data_config import DataConfig

Places = NDArray[np.int64]


def hold_out(
    rows: datasets.Dataset, prompt: str | None, config: DataConfig
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """(training, validation): a part of the rows drawn with the seed, both in the order of the file.

    `prompt` is the column whose equal values stay together; the part is as much larger as the last of them needs.
    """
    held = round(len(rows) * config.validation_fraction)
    groups = drawn_groups(rows, prompt, config.seed)
    sizes = list(accumulate(len(group) for group in groups))
    taken = next(count for count, size in enumerate(sizes, start=1) if size >= held)
    if held == 0 or taken == len(groups):
        whole = f", of {len(groups)} prompts whose rows stay together" if len(groups) < len(rows) else ""
        raise DataError(
            f"{config.train}: validation_fraction={config.validation_fraction} of {len(rows)} rows is {held} rows"
            f"{whole}. Give a `validation:` file, more rows, or another fraction."
        )
    order = np.concatenate(groups)
    place = sizes[taken - 1]
    return rows.select(np.sort(order[place:])), rows.select(np.sort(order[:place]))


def draw(rows: datasets.Dataset, most: int | None, prompt: str | None, seed: int) -> datasets.Dataset:
    """At most `most` rows, drawn with the seed: the first ones of a sorted file would all bear one label.

    `prompt` as for `hold_out`; only where one prompt alone has more rows than may be taken is a part of them left.
    """
    if most is None or most >= len(rows):
        return rows
    groups = drawn_groups(rows, prompt, seed)
    sizes = accumulate(len(group) for group in groups)
    whole = [group for group, size in zip(groups, sizes, strict=True) if size <= most] or [groups[0][:most]]
    return rows.select(np.sort(np.concatenate(whole)))


def drawn_groups(rows: datasets.Dataset, prompt: str | None, seed: int) -> list[Places]:
    """The places of all rows in groups that share a prompt, the groups in an order drawn with the seed."""
    groups: list[list[int]] = [[place] for place in range(len(rows))] if prompt is None else sharing(rows, prompt)
    order = np.random.default_rng(seed).permutation(len(groups))
    return [np.array(groups[group]) for group in order]


def sharing(rows: datasets.Dataset, column: str) -> list[list[int]]:
    """The places of the rows of each value, in the order in which the values first come."""
    groups: dict[int, list[int]] = {}
    for place, value in enumerate(rows[column]):
        groups.setdefault(hash(repr(value)), []).append(place)  # long documents are not kept
    return list(groups.values())
