"""Writes small GGUF files of the Llama family, as llama.cpp's converter lays them out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

WIDTH, HEADS, KV_HEADS, HEAD, HIDDEN, VOCABULARY, BLOCKS = 64, 4, 2, 16, 96, 40, 2

SETTINGS = {
    "block_count": BLOCKS,
    "context_length": 128,
    "embedding_length": WIDTH,
    "feed_forward_length": HIDDEN,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV_HEADS,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 500.0,
    "rope.dimension_count": HEAD,
}


def weights(*, biases: bool = False, head: bool = False, seed: int = 0) -> dict[str, Any]:
    """Random weights in the order and with the shapes of Hugging Face's Llama (out, in), by the names of GGUF."""
    draw = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCABULARY, WIDTH), "output_norm.weight": (WIDTH,)}
    if head:
        shapes["output.weight"] = (VOCABULARY, WIDTH)
    for block in range(BLOCKS):
        sizes = {
            "attn_q": (HEADS * HEAD, WIDTH), "attn_k": (KV_HEADS * HEAD, WIDTH), "attn_v": (KV_HEADS * HEAD, WIDTH),
            "attn_output": (WIDTH, HEADS * HEAD), "ffn_gate": (HIDDEN, WIDTH), "ffn_up": (HIDDEN, WIDTH),
            "ffn_down": (WIDTH, HIDDEN), "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,),
        }  # fmt: skip
        for name, shape in sizes.items():
            shapes[f"blk.{block}.{name}.weight"] = shape
            if biases and len(shape) == 2:
                shapes[f"blk.{block}.{name}.bias"] = shape[:1]
    return {
        name: (draw.standard_normal(shape) / np.sqrt(shape[-1]) + ("norm" in name)).astype(np.float32)
        for name, shape in shapes.items()
    }


def permuted(array: Any, heads: int) -> Any:
    """Rows of each head from (first half, second half) to neighbouring pairs, by llama.cpp's definition."""
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def write(
    path: Path,
    tensors: dict[str, Any],
    *,
    settings: dict[str, Any] | None = None,
    architecture: str = "llama",
    kind: Any = None,
    more: dict[str, Any] | None = None,
) -> Path:
    """A file of these weights. kind: how matrices are stored (float32 if not given). more: metadata as they are."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in {
        **{f"{architecture}.{n}": v for n, v in (settings or SETTINGS).items()},
        **(more or {}),
    }.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, bool: writer.add_bool}
        add.get(type(value), writer.add_array)(name, value)
    for name, array in tensors.items():
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name.split(".")[2] if name.startswith("blk") else "")
        array = permuted(array, heads) if heads else array
        if kind is None or array.ndim == 1:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
