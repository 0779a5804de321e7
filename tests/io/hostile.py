"""Ways to break a saved adapter, by name. Each takes a good folder and leaves one that must be refused.

Made from rules rather than kept as files: every rule says what is wrong, and new settings are broken as they come.
"""

import hostile_files
import hostile_tensors
import hostile_text
from hostile_folder import CANARY, FILES, GOOD, Spoil

__all__ = ["CANARY", "FILES", "GOOD", "corpus"]


def corpus() -> dict[str, tuple[str, Spoil]]:
    """{name: (good folder to start from, what to do to it)}."""
    found: dict[str, tuple[str, Spoil]] = {}
    for part in (*hostile_files.PARTS, *hostile_tensors.PARTS, *hostile_text.PARTS):
        for name, good, spoil in part():
            found[name if name not in found else f"{name}-{len(found)}"] = (good, spoil)
    return found
