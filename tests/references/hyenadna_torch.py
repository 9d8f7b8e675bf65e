"""The published operator of HyenaDNA in torch, on the tensors of a folder: what our reader is held to.

Written from the model code that lies beside the weights of `LongSafari/hyenadna-*-hf` (transformers does not have it):
projection to three streams, a convolution of three taps, gate, long convolution by Fourier transforms with a skip,
gate, projection. No model classes: functions of a dict of tensors.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

SIZES = {
    "model_type": "hyenadna", "d_model": 16, "d_inner": 24, "n_layer": 2, "vocab_size": 12, "max_seq_len": 48,
    "pad_vocab_size_multiple": 8, "emb_dim": 5, "filter_order": 12, "num_inner_mlps": 2, "activation_freq": 10,
    "hyena_order": 2, "short_filter_order": 3, "train_freq": True, "use_bias": True, "layer_norm_epsilon": 1e-5,
}  # fmt: skip


def filter_taps(tensors: dict[str, torch.Tensor], name: str, config: dict[str, Any], length: int) -> torch.Tensor:
    """(d_model, length): the network of the positional features, times its decaying window with a floor of 0.05."""
    sine = tensors[f"{name}.implicit_filter.1.freq"]
    hidden = tensors[f"{name}.pos_emb.z"][0, :length]
    layers = config["num_inner_mlps"] + 1
    for i in range(layers):
        weight, bias = (tensors[f"{name}.implicit_filter.{2 * i}.{part}"] for part in ("weight", "bias"))
        hidden = torch.sin(sine * (hidden @ weight.T + bias))
    taps = hidden @ tensors[f"{name}.implicit_filter.{2 * layers}.weight"].T
    target = math.log(1e-2)
    rates = torch.linspace(target / 1.5, target / 0.3, config["d_model"]).abs()
    time = torch.linspace(0, 1, config["max_seq_len"])[:length, None]
    return (taps * (torch.exp(-time * rates) + 0.05)).T


def mixer(tensors: dict[str, torch.Tensor], name: str, config: dict[str, Any], x: torch.Tensor) -> torch.Tensor:
    """x, y: (batch, length, d_model)."""
    length, d = x.shape[1], config["d_model"]
    streams = (x @ tensors[f"{name}.in_proj.weight"].T + tensors[f"{name}.in_proj.bias"]).transpose(1, 2)
    taps, bias = (tensors[f"{name}.short_filter.{part}"] for part in ("weight", "bias"))
    streams = functional.conv1d(streams, taps, bias, padding=2, groups=3 * d)[..., :length]
    first, second, v = streams.split(d, dim=1)
    v = v * second
    k = torch.fft.rfft(filter_taps(tensors, f"{name}.filter_fn", config, length), n=2 * length)
    y = torch.fft.irfft(torch.fft.rfft(v, n=2 * length) * k, n=2 * length)[..., :length]
    y = (y + v * tensors[f"{name}.filter_fn.bias"][:, None]) * first
    return y.transpose(1, 2) @ tensors[f"{name}.out_proj.weight"].T + tensors[f"{name}.out_proj.bias"]


def logits(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """(batch, length, padded vocabulary) of the model in a folder, float32."""
    config = json.loads((folder / "config.json").read_text())
    tensors = {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}

    def normed(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, (config["d_model"],), tensors[f"{name}.weight"], tensors[f"{name}.bias"], 1e-5)

    embedding = tensors["hyena.backbone.embeddings.word_embeddings.weight"]
    x = embedding[torch.tensor(np.asarray(tokens, np.int64))]
    for i in range(config["n_layer"]):
        name = f"hyena.backbone.layers.{i}"
        x = x + mixer(tensors, f"{name}.mixer", config, normed(f"{name}.norm1", x))
        fc1, fc2 = f"{name}.mlp.fc1", f"{name}.mlp.fc2"
        hidden = normed(f"{name}.norm2", x) @ tensors[f"{fc1}.weight"].T + tensors[f"{fc1}.bias"]
        x = x + functional.gelu(hidden, approximate="tanh") @ tensors[f"{fc2}.weight"].T + tensors[f"{fc2}.bias"]
    head = embedding if config.get("tie_word_embeddings", True) else tensors["lm_head.weight"]
    return (normed("hyena.backbone.ln_f", x) @ head.T).numpy()


def write(folder: Path, seed: int = 0, **fields: Any) -> Path:
    """A folder in the published layout, buffers included, with weights away from their initial values."""
    config = {**SIZES, **fields}
    d, width, emb, length = config["d_model"], config["filter_order"], config["emb_dim"], config["max_seq_len"]
    vocabulary = -(-config["vocab_size"] // config["pad_vocab_size_multiple"]) * config["pad_vocab_size_multiple"]
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float, around: float = 0.0) -> torch.Tensor:
        return around + scale * torch.randn(shape, generator=generator)

    tensors: dict[str, torch.Tensor] = {}

    def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> None:
        tensors[f"{name}.weight"] = draw(outputs, inputs, scale=inputs**-0.5)
        if bias:
            tensors[f"{name}.bias"] = draw(outputs, scale=0.2)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = draw(d, scale=0.2, around=1.0), draw(d, scale=0.2)

    tensors["hyena.backbone.embeddings.word_embeddings.weight"] = draw(vocabulary, d, scale=1.0)
    norm("hyena.backbone.ln_f")
    if not config.get("tie_word_embeddings", True):
        linear("lm_head", d, vocabulary, bias=False)
    time = torch.linspace(0, 1, length)[None, :, None]
    phase = 2 * math.pi * torch.arange(length)[:, None] / length * torch.linspace(1e-4, (emb - 3) / 2, (emb - 1) // 2)
    features = torch.cat([time, torch.cos(phase)[None], -torch.sin(phase)[None]], dim=-1)
    for i in range(config["n_layer"]):
        layer = f"hyena.backbone.layers.{i}"
        mixer_name, network = f"{layer}.mixer", f"{layer}.mixer.filter_fn.implicit_filter"
        norm(f"{layer}.norm1")
        norm(f"{layer}.norm2")
        linear(f"{layer}.mlp.fc1", d, config["d_inner"])
        linear(f"{layer}.mlp.fc2", config["d_inner"], d)
        linear(f"{mixer_name}.in_proj", d, 3 * d)
        linear(f"{mixer_name}.out_proj", d, d)
        tensors[f"{mixer_name}.short_filter.weight"] = draw(3 * d, 1, 3, scale=0.6)
        tensors[f"{mixer_name}.short_filter.bias"] = draw(3 * d, scale=0.2)
        tensors[f"{mixer_name}.filter_fn.bias"] = draw(d, scale=1.0)
        tensors[f"{mixer_name}.filter_fn.pos_emb.z"] = features + draw(*features.shape, scale=0.1)
        tensors[f"{mixer_name}.filter_fn.pos_emb.t"] = time.clone()
        tensors[f"{mixer_name}.filter_fn.modulation.deltas"] = torch.zeros(1, 1, d)
        tensors[f"{network}.1.freq"] = draw(1, width, scale=1.0, around=float(config["activation_freq"]))
        linear(f"{network}.0", emb, width)
        for j in range(config["num_inner_mlps"]):
            linear(f"{network}.{2 * j + 2}", width, width)
        linear(f"{network}.{2 * config['num_inner_mlps'] + 2}", width, d, bias=False)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def greedy(folder: Path, tokens: np.ndarray, steps: int) -> np.ndarray:
    """The likeliest continuation (batch, steps), each token from the whole row again."""
    row = np.asarray(tokens)
    for _ in range(steps):
        row = np.concatenate([row, logits(folder, row)[:, -1:].argmax(-1)], axis=1)
    return row[:, -steps:]
