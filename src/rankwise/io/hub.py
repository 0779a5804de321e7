"""Adapters on the Hugging Face hub: fetched by id into its cache, uploaded whole with a card."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypedDict, Unpack

from rankwise.distributed import is_first
from rankwise.errors import ConfigError, FolderError
from rankwise.io import peft_format
from rankwise.io.description import read_description
from rankwise.io.folder import DESCRIPTION, FILES
from rankwise.io.model_card import is_hub_id

ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class Upload(TypedDict, total=False):
    """How to upload: settings of the hub's own."""

    private: bool
    revision: str
    token: str
    commit_message: str


def located(source: str | Path, revision: str | None = None) -> Path:
    """The folder of an adapter: `source` itself if it exists, else what the hub has under it as an id.

    Raises FolderError, saying which of the two failed, and why.
    """
    path = Path(source)
    is_id = isinstance(source, str) and ID.fullmatch(source) is not None
    if path.exists() or not is_id:
        if revision is not None:
            raise ConfigError(f"revision={revision!r} is for adapters on the hub, and {path} is no id of one.")
        return path
    from huggingface_hub import snapshot_download  # here, so that importing rankwise does not wait for it
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HTTPError,  # of the httpx that it is built on, whose errors pass through it
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        # what an adapter is made of, and nothing else that the repository may hold
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=[*FILES, *peft_format.FILES]))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise FolderError(
            f"there is no folder {str(source)!r}, and as an adapter on the hub it is not in the cache and cannot be "
            "fetched: the hub is out of reach, or HF_HUB_OFFLINE is set. Check the path, or the connection."
        ) from error
    except (OSError, ValueError, HTTPError) as error:
        raise FolderError(_told(f"there is no folder {str(source)!r}, and the hub does not give it", error)) from error


def push(hub_id: str, save: Callable[[str], object], **given: Unpack[Upload]) -> str:
    """`save(folder)`, uploaded as `hub_id`, which is made if it does not exist. Returns the address of the commit.

    In a group of processes all save, and the first uploads; the others get an empty address.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    if ID.fullmatch(hub_id) is None:
        raise ConfigError(f"hub_id={hub_id!r} is no id on the hub; those are user/name.")
    with TemporaryDirectory() as folder:
        save(folder)
        if not is_first():
            return ""
        _write_card(Path(folder), hub_id)
        api = HfApi(token=given.get("token"))
        try:
            api.create_repo(hub_id, private=given.get("private"), exist_ok=True)
            if "revision" in given:
                api.create_branch(hub_id, branch=given["revision"], exist_ok=True)
            commit: Any = api.upload_folder(
                repo_id=hub_id,
                folder_path=folder,
                commit_message=given.get("commit_message", "Upload adapter"),
                revision=given.get("revision"),
            )
        except (OSError, ValueError, HTTPError) as error:
            raise FolderError(_told(f"{hub_id} was not uploaded", error)) from error
    return str(commit)


def _told(what: str, error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{what}: {' '.join(lines[:2])}"[:500]


def _write_card(folder: Path, hub_id: str) -> None:
    """README.md, and no local path in any file: the base is named only if its name is an id on the hub."""
    saved = read_description(folder / DESCRIPTION, folder)
    base = saved["base_model"]["name"]
    if base is None or not is_hub_id(base):
        base = None
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        description["base_model"]["name"] = None
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    front = ["---", *([f"base_model: {base}"] if base else []), "library_name: rankwise"]
    front += ["tags:", f"- {saved['method'].name}", "- rankwise", "---"]
    what = f"A {saved['method'].name} adapter{f' of {base}' if base else ''}, {len(saved['layers'])} layers."
    how = ["```python", f'adaptation = rankwise.load(model, "{hub_id}")', "```"]
    (folder / "README.md").write_text("\n".join([*front, "", what, "", *how, ""]), encoding="utf-8")
