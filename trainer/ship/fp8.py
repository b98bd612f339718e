"""A model directory in FP8: the linear layers' weights as float8_e4m3fn, in compressed-tensors' format.

One scale an output channel, symmetric, fixed; activations become float8 at run time, with a scale a
token. Embeddings, norms and the output stay as they are. vLLM and transformers read it by the
`quantization_config` of config.json.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from trainer.files import read_json, write_json

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
QUANTIZATION_CONFIG = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False,
            },
            "input_activations": {
                "num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True,
            },
        }
    },
    "ignore": ["lm_head"],
}  # fmt: skip


def write_fp8(model: Path, destination: Path) -> None:
    """Write a complete Hugging Face directory; everything but config and weights is copied."""
    layers = _linear_layers(model)
    state: dict[str, Any] = {}
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():
                values = opened.get_tensor(name)
                if name in layers:
                    state[name], state[f"{name}_scale"] = to_fp8(values)
                else:
                    state[name] = values
    save_torch_state_dict(state, destination)
    config = read_json(model / "config.json")
    write_json(destination / "config.json", {**config, "quantization_config": QUANTIZATION_CONFIG})
    for file in model.iterdir():
        if file.is_file() and ".safetensors" not in file.name and file.name != "config.json":
            shutil.copy(file, destination)


def to_fp8(weight: Any) -> tuple[Any, Any]:
    """weight: (out, in). Returns: (out, in) float8_e4m3fn, and (out, 1) scales in bfloat16.

    A scale is rounded to bfloat16 before the division, so that the product gives back the weight.
    """
    wide = weight.float()
    scale = (wide.abs().amax(dim=1, keepdim=True) / LARGEST).clamp(min=torch.finfo(torch.bfloat16).tiny)
    scale = scale.to(torch.bfloat16)
    return (wide / scale.float()).clamp(-LARGEST, LARGEST).to(FLOAT8), scale


def _linear_layers(model: Path) -> set[str]:
    """Names of the weights of all linear layers but the output."""
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model, local_files_only=True))
    return {
        f"{name}.weight"
        for name, layer in empty.named_modules()
        if isinstance(layer, torch.nn.Linear) and layer is not empty.get_output_embeddings()
    }
