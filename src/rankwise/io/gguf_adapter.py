"""A plain LoRA folder as an adapter file of llama.cpp, which takes no other: its names, its order of rows, its scale.

    <name of the base tensor>.lora_a (r, d_in)    ….lora_b (d_out, r)    Δ = alpha/r · lora_b lora_a

llama.cpp rotates neighbouring pairs of a head's rows, where transformers rotates its first half with its second; its
base files have the rows of q and k reordered for that, and so must every update of them.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from rankwise.errors import ConfigError, FolderError, not_installed
from rankwise.io import peft_format
from rankwise.io.atomic import replaced_path
from rankwise.io.engine_rules import llama_cpp

ROTATED = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}  # the layers, and how many heads each has


def convert(folder: Path, config: Any, out: Path) -> None:
    """Write the LoRA in `folder` as the file `out`; `config` is the base model's.

    Raises ConfigError for an architecture other than Llama, FolderError for a folder that llama.cpp would misread.
    """
    if find_spec("gguf") is None:
        raise ConfigError(not_installed("an adapter of llama.cpp", "gguf", "gguf"))
    import gguf  # an optional package

    if config.model_type != "llama":
        raise ConfigError(
            f"only Llama is converted here, and the base model is a {config.model_type}. llama.cpp's own "
            f"convert_lora_to_gguf.py reads {folder} too."
        )
    content = peft_format.read(folder)
    refused = llama_cpp(content, ()).refused
    if refused or content.config.get("alpha_pattern") or content.config.get("use_rslora"):
        reason = "; ".join(refused) or "its scale depends on patterns or rank stabilisation"
        raise FolderError(f"llama.cpp would misread {folder}: {reason}. Export the portable layout, without heads.")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    with replaced_path(out) as staging:
        writer = gguf.GGUFWriter(staging, "llama")
        writer.add_type("adapter")
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(content.config["lora_alpha"]))
        for path, (up, down) in content.pairs().items():
            name = names.get_name(path)
            if name is None:
                raise FolderError(f"{folder} adapts {path}, for which llama.cpp has no name in a Llama.")
            heads = ROTATED.get(path.rpartition(".")[2])
            up = up if heads is None else in_rotated_order(up, vars(config)[heads])
            writer.add_tensor(f"{name}.weight.lora_a", down.float().numpy())
            writer.add_tensor(f"{name}.weight.lora_b", up.float().contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def in_rotated_order(up: Tensor, heads: int) -> Tensor:
    """Rows of each head in the order 0, h, 1, h + 1, …, with h half the head's rows: those that are rotated together
    become neighbours."""
    d_out, rank = up.shape
    return up.view(heads, 2, d_out // heads // 2, rank).transpose(1, 2).reshape(d_out, rank)
