"""GGUF files of the Llama family, through the `gguf` package: from_gguf(file) -> (config, params).

    file = GgufFile(path)              # metadata, and tensors as they lie on disk
    config, params = file.model()      # quantised tensors made float32 one after the other

llama.cpp turns neighbouring numbers of a head, so its files hold the rows of queries and keys in the order (0, half,
1, half + 1, ...). Ours turns pairs (i, i + half), as Hugging Face's Llama does; the rows are put back on reading.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hybrid.config import ModelConfig
from hybrid.interop.huggingface import read_params, shapes_of
from hybrid.interop.rules import TRANSPOSED, Entry, Step, Table, ignored, linear, norm, reordered, same
from hybrid.layout import Tree
from hybrid.lazy import np
from hybrid.validation import ConfigError

MAGIC = b"GGUF"
STRING = 8
"""GGUF's type of values that are texts."""
ARCHITECTURE = "llama"
"""The only one that is read; converters write Llama, Mistral, SmolLM and others under this name."""


def from_gguf(file: str | Path, **changes: Any) -> tuple[ModelConfig, Tree]:
    """(config, params) of a GGUF file, float32 (or `param_dtype`, if changed), as `config` trains in.

    changes: fields of ModelConfig that do not change what the model is, such as `compute_dtype="bfloat16"`. Raises
    ConfigError of one line for a file that is no GGUF or is cut short, for an architecture or a setting that is not
    known here, and for tensors that are missing, left over or of a wrong shape, by their names.
    """
    return GgufFile(file).model(**changes)


def architecture(file: str | Path) -> str:
    """The architecture that a file names, from its first bytes: quick, without the `gguf` package."""
    path = Path(file)
    try:
        with open(path, "rb") as opened:
            head = opened.read(1 << 16)
    except OSError as error:
        raise ConfigError("file", f"{str(path)!r} cannot be read ({error.strerror})") from None
    if head[:4] != MAGIC:
        raise ConfigError("file", f"{str(path)!r} is no GGUF file")
    order = "<" if int.from_bytes(head[4:8], "little") < 1 << 16 else ">"
    key = b"general.architecture"
    where = head.find(struct.pack(f"{order}Q", len(key)) + key)
    if where < 0:
        raise ConfigError("file", f"{str(path)!r} does not say its architecture")
    try:
        kind, length = struct.unpack_from(f"{order}IQ", head, where + 8 + len(key))
    except struct.error:
        kind, length = 0, 0
    start = where + 8 + len(key) + 12
    name = head[start : start + length].decode(errors="replace") if kind == STRING and length < 256 else ""
    if name != ARCHITECTURE:
        raise ConfigError("file", f"{path.name} has the architecture {name!r}; only {ARCHITECTURE!r} is read")
    return name


class GgufFile:
    """An open GGUF file of a known architecture."""

    def __init__(self, file: str | Path):
        self.path = Path(file)
        self.architecture = architecture(self.path)
        import gguf

        try:
            reader = gguf.GGUFReader(self.path)
            self.metadata: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
        except (ValueError, IndexError, KeyError, OverflowError, MemoryError, OSError) as error:
            why = " ".join(str(error).split())[:200]
            raise ConfigError("file", f"{self.path.name} cannot be read; is it whole? ({why})") from None
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.shapes = {name: tuple(int(n) for n in tensor.shape[::-1]) for name, tensor in self._tensors.items()}
        parts = int(self.metadata.get("split.count", 1))
        if parts > 1:
            raise ConfigError("file", f"{self.path.name} is one of {parts} parts; join them first")

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def read(self, name: str) -> Any:
        """One tensor as float32; a linear's is (out, in)."""
        from gguf import quants

        tensor = self._tensors[name]
        try:
            array = quants.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            problem = f"is stored as {tensor.tensor_type.name}, which the gguf package does not make numbers of"
            raise ConfigError(name, problem) from None
        return np.asarray(array, np.float32).reshape(self.shapes[name])

    def config(self) -> ModelConfig:
        """What the file says of the model."""
        return read_config(self.metadata, self.shapes, self.read)

    def model(self, **changes: Any) -> tuple[ModelConfig, Tree]:
        """The config and the parameters, as `from_gguf` gives them."""
        config = dataclasses.replace(self.config(), **changes)
        return config, read_params(config, Table(tuple(entries(config)), shapes_of(config)), self)


# --- the config -------------------------------------------------------------------------------------------------------

KNOWN = frozenset(
    (
        "vocab_size block_count context_length embedding_length feed_forward_length tensor_data_layout expert_count "
        "expert_used_count attention.head_count attention.head_count_kv attention.layer_norm_rms_epsilon "
        "attention.key_length attention.value_length rope.dimension_count rope.freq_base rope.scale_linear "
        "rope.scaling.type rope.scaling.factor rope.scaling.original_context_length rope.scaling.finetuned"
    ).split()
)
"""Settings of the architecture that are read, or that say nothing about what is computed."""


def read_config(metadata: Mapping[str, Any], shapes: Mapping[str, Any], tensor: Any) -> ModelConfig:
    """The config that the metadata and the tensors that are there (biases, a head of its own) speak of.

    tensor: name -> array, asked for the factors of the rotation alone.
    """
    about = _Settings(metadata)
    for name in about.names():
        if name not in KNOWN:
            raise about.refusal(name, "is not known here")
    if about.integer("expert_count", 0):
        raise about.refusal("expert_count", "is not allowed; experts are not read")
    width, heads = about.integer("embedding_length"), about.integer("attention.head_count")
    head_dim = about.integer("attention.key_length", width // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if about.integer(name, head_dim) != head_dim:
            raise about.refusal(name, f"is not allowed; must be {head_dim}, the width of a head")
    if "token_embd.weight" not in shapes:
        raise ConfigError("tensors", "missing: token_embd.weight")
    theta = about.number("rope.freq_base", 10000.0)
    return ModelConfig(
        pattern=f"(A-){about.integer('block_count')}",
        vocab_size=shapes["token_embd.weight"][0],
        d_model=width,
        n_heads=heads,
        n_kv_heads=about.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        d_ff=about.integer("feed_forward_length"),
        max_length=about.integer("context_length"),
        norm="rmsnorm",
        norm_position="before",
        norm_eps=about.number("attention.layer_norm_rms_epsilon"),
        positions="rope",
        tie_embeddings="output.weight" not in shapes,
        attention={
            "rope_theta": theta,
            "qkv_bias": "blk.0.attn_q.bias" in shapes,
            "out_bias": "blk.0.attn_output.bias" in shapes,
            **_scaling(about, theta, head_dim, tensor(FACTORS) if FACTORS in shapes else None),
        },
        mlp={"activation": "swiglu", "bias": "blk.0.ffn_up.bias" in shapes},
    )


FACTORS = "rope_freqs.weight"
"""(head_dim / 2,): what each frequency of the rotation is divided by."""


class Llama3(NamedTuple):
    """How Llama 3.1 and later are stretched; the file holds the factors that follow from it."""

    rope_scaling: str
    rope_factor: float
    rope_low: float
    rope_high: float
    rope_original_length: int

    def factors(self, theta: float, head_dim: int) -> Any:
        turns = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
        rounds = self.rope_original_length * turns / (2 * math.pi)
        kept = np.clip((rounds - self.rope_low) / (self.rope_high - self.rope_low), 0.0, 1.0)
        return 1.0 / ((1.0 - kept) / self.rope_factor + kept)


def _scaling(about: _Settings, theta: float, head_dim: int, factors: Any) -> dict[str, Any]:
    """The fields of attention that stretch the rotation."""
    kind = about.text("rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise about.refusal("rope.scaling.type", "is not allowed; none and linear are read")
    if factors is not None and not np.allclose(factors, 1.0):
        length = about.integer("rope.scaling.original_context_length", 8192)
        rule = Llama3("llama3", float(np.max(factors)), 1.0, 4.0, length)
        fits = factors.shape == (head_dim // 2,) and np.allclose(rule.factors(theta, head_dim), factors, rtol=1e-3)
        if kind != "none" or not fits:
            raise ConfigError(
                FACTORS, f"is no scaling of the rotation that is known here (Llama 3's, of {length} tokens)"
            )
        return rule._asdict()
    factor = about.number("rope.scaling.factor", about.number("rope.scale_linear", 1.0))
    if factor == 1.0 or (kind == "none" and about.has("rope.scaling.type")):
        return {}
    return {"rope_scaling": "linear", "rope_factor": factor}


class _Settings:
    """The settings of the architecture, by the names behind its own."""

    def __init__(self, metadata: Mapping[str, Any]):
        self._prefix = f"{ARCHITECTURE}."
        self._values = {n.removeprefix(self._prefix): v for n, v in metadata.items() if n.startswith(self._prefix)}

    def names(self) -> list[str]:
        return list(self._values)

    def has(self, name: str) -> bool:
        return name in self._values

    def refusal(self, name: str, problem: str) -> ConfigError:
        value = f"{self._values[name]!r} " if name in self._values else ""
        return ConfigError(f"{self._prefix}{name}", f"{value}{problem}")

    def integer(self, name: str, otherwise: int | None = None) -> int:
        value = self._values.get(name, otherwise)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.refusal(name, "is not allowed; must be one integer" if self.has(name) else "is not in the file")
        return value

    def number(self, name: str, otherwise: float | None = None) -> float:
        """A float32 of the file as the decimal number that was meant: 1e-05 and not 9.999999747378752e-06."""
        value = self._values.get(name, otherwise)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.refusal(name, "is not allowed; must be a number" if self.has(name) else "is not in the file")
        return float(str(np.float32(value)))

    def text(self, name: str, otherwise: str) -> str:
        return str(self._values.get(name, otherwise))


# --- the tensors ------------------------------------------------------------------------------------------------------


def half_split(heads: int, head_dim: int) -> Step:
    """Rows of queries or keys from the order of neighbouring pairs to that of halves."""
    rows = np.arange(heads * head_dim).reshape(heads, head_dim // 2, 2).swapaxes(1, 2)
    return reordered(rows.reshape(-1).tolist(), 0)


def entries(config: ModelConfig) -> list[Entry]:
    """How the tensors and our leaves correspond."""
    group, head_dim = config.attention, config.head_dim
    found: list[Entry] = [same("token_embd.weight", "embedding/tokens"), *norm("output_norm", "final_norm")]
    if not config.tie_embeddings:
        found += linear("output", "head/kernel")
    for block in range(config.n_layers // 2):
        theirs, mixer, channel = f"blk.{block}", f"layers/{2 * block}", f"layers/{2 * block + 1}"
        found += norm(f"{theirs}.attn_norm", f"{mixer}/norm")
        found += norm(f"{theirs}.ffn_norm", f"{channel}/norm")
        for name, ours, heads in (("q", "query", config.n_heads), ("k", "key", config.n_kv_heads)):
            order = half_split(heads or 0, head_dim or 0)
            found.append(same(f"{theirs}.attn_{name}.weight", f"{mixer}/sublayer/{ours}", order, TRANSPOSED))
            if group.qkv_bias:
                found.append(same(f"{theirs}.attn_{name}.bias", f"{mixer}/sublayer/{ours}_bias", order))
        found += linear(f"{theirs}.attn_v", f"{mixer}/sublayer/value", group.qkv_bias)
        found += linear(f"{theirs}.attn_output", f"{mixer}/sublayer/out", group.out_bias)
        for name in ("gate", "up", "down"):
            found += linear(f"{theirs}.ffn_{name}", f"{channel}/sublayer/{name}", config.mlp.bias)
    return [*found, ignored(FACTORS, "read into the config")]
