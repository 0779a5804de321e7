"""What a run reads of its model: config, tokenizer and weights, or an error that says what to do."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rankwise.errors import ConfigError
from rankwise.train.config import RunConfig


def source_of(config: RunConfig) -> dict[str, Any]:
    """Where transformers finds the model, beside its name."""
    return {"revision": config.revision, "trust_remote_code": config.trust_remote_code}


def read_tokenizer(config: RunConfig) -> PreTrainedTokenizerBase:
    """The model's, with a padding token where it has an end token. Raises ConfigError when it has none of its own."""
    tokenizer: PreTrainedTokenizerBase = from_pretrained(AutoTokenizer, config.model, source_of(config))
    special = len(tokenizer.all_special_ids)
    if len(tokenizer) <= special:  # what transformers makes when there are no files: every word would be unknown
        raise ConfigError(
            f"model={config.model!r} brings no tokenizer: its vocabulary holds {special} special tokens and no word. "
            "Save the tokenizer into the model's folder with tokenizer.save_pretrained(folder)."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # decoder families without one; padding is masked everywhere
    return tokenizer


def from_pretrained(loader: Any, name: str, settings: dict[str, Any]) -> Any:
    """What an Auto class of transformers makes of it. Raises ConfigError."""
    try:
        return loader.from_pretrained(name, **settings)
    except RuntimeError as error:  # shapes differ; transformers prints which
        raise ConfigError(
            f"model={name!r} does not fit: its weights have other shapes than the task's head with "
            f"num_labels={settings.get('num_labels', 'its own')}. It was probably fine-tuned for other classes; choose "
            "the model that it was made from."
        ) from error
    except (OSError, ValueError, SafetensorError) as error:
        path = Path(name).expanduser()
        local = path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2
        missing = local and not path.exists()
        reason = f"there is no folder {path}." if missing else str(error).strip().split("\n")[0]
        advice = "Give a hub id or a folder with a model."
        if "trust_remote_code" in str(error):
            advice = "If you trust that code, set trust_remote_code: true."
        raise ConfigError(f"model={name!r} cannot be loaded: {reason} {advice}") from error
