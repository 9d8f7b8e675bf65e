"""Folders of Hugging Face models: config.json and safetensors, one file or shards with an index. Never pickle.

config, params = hybrid.from_huggingface("path/to/folder")
hybrid.to_huggingface(config, params, "path/to/another")
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hybrid.config import ModelConfig
from hybrid.interop.families import FAMILIES, family_of
from hybrid.interop.family import Family
from hybrid.interop.rules import Shape, Table
from hybrid.layout import Tree, layers_of
from hybrid.lazy import jnp, np
from hybrid.params import declarations, declarations_per_layer, leaf_dtype, leaves
from hybrid.pattern import MAX_SUBLAYERS
from hybrid.validation import ConfigError, plain

SINGLE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers")
FLOATS = ("F64", "F32", "F16", "BF16")

FREE = frozenset(
    {
        "pattern", "encoder", "symbols", "groups", "dropout", "init_std", "residual_init", "compute_dtype",
        "param_dtype", "remat", "scan_layers", "max_length", "form", "scan", "chunk", "dispatch", "capacity_factor",
        "balance_loss", "z_loss", "bias_rate", "dt_min", "dt_max", "dt_floor", "a_min", "a_max", "min_radius",
        "max_radius",
    }
)  # fmt: skip
"""Fields of training, of initial values and of forms of operators: a published config need not say them. (The pattern
and its groups are compared sublayer by sublayer.)"""


# --- reading ----------------------------------------------------------------------------------------------------------


def from_huggingface(folder: str | os.PathLike[str], **changes: Any) -> tuple[ModelConfig, Tree]:
    """(config, params) of a published model, float32 (or `param_dtype`, if changed), as `config` trains in.

    folder: holds config.json and model.safetensors, or shards with an index. changes: fields of ModelConfig that do
    not change what the model is, such as `compute_dtype="bfloat16"` or `scan_layers=False`. The files may hold
    float32, float64, bfloat16 or float16. Raises ConfigError that names the field of config.json or the tensors.
    """
    home = Path(folder)
    said = _read_json(home / CONFIG)
    family = family_of(said.get("model_type"), "config.json: model_type")
    for name in DEPTHS:  # before a list of that many entries is made
        if isinstance(said.get(name), int) and said[name] > MAX_SUBLAYERS:
            raise ConfigError(
                f"config.json: {name}", f"{said[name]} is not read; at most {MAX_SUBLAYERS} sublayers are"
            )
    try:
        config = family.read(said)
    except ConfigError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # values of types that nobody writes
        raise ConfigError("config.json", f"cannot be read as a {said['model_type']} model ({error})") from None
    if changes:
        config = dataclasses.replace(config, **changes)
    with Tensors(home, family.renames) as tensors:
        return config, read_params(config, Table(tuple(family.rules(config, said)), shapes_of(config)), tensors)


def read_params(config: ModelConfig, table: Table, tensors: Any) -> Tree:
    """The parameters in the form that `config` trains in, from `tensors` (shapes, read(name), name in tensors).

    Each tensor is read once into the array that it ends in, so memory stays near one copy of the model.
    """
    table.check(tensors.shapes)
    spec = declarations(config)
    arrays = {path: np.empty(param.shape, leaf_dtype(config, param)) for path, param in leaves(spec)}
    places = locate(spec)

    def put(path: str, expert: int | None, value: Any) -> None:
        where, index = places[path]
        target = arrays[where] if index is None else arrays[where][index]
        target = target if expert is None else target[expert]
        if target.shape != value.shape:
            raise ValueError(f"{path}: shape {value.shape} for a leaf of {target.shape}")
        target[...] = value

    table.load(tensors.read, tensors.__contains__, put)
    tree: Tree = {}
    for path in list(arrays):
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = jnp.asarray(arrays.pop(path))
    return tree


def shapes_of(config: ModelConfig) -> dict[str, Shape]:
    """{"layers/0/norm/scale": (64,), ...}: the leaves of a model, one entry a layer."""
    return {"/".join(path): param.shape for path, param in leaves(declarations_per_layer(config))}


def locate(tree: Mapping[str, Any]) -> dict[str, tuple[tuple[str, ...], int | None]]:
    """Path of a leaf with one entry a layer -> where it lies in `tree`, and the index there if layers are stacked."""
    places: dict[str, tuple[tuple[str, ...], int | None]] = {}
    for path, _ in leaves(tree):
        at = next((i for i, name in enumerate(path) if i and path[i - 1] == "layers"), None)
        if at is None or ":" not in path[at]:
            places["/".join(path)] = path, None
            continue
        for index, layer in enumerate(layers_of(path[at])):
            places["/".join((*path[:at], str(layer), *path[at + 1 :]))] = path, index
    return places


class Tensors(contextlib.AbstractContextManager):
    """The safetensors of a folder: names and shapes from their headers, numbers when they are asked for."""

    def __init__(self, home: Path, renames: tuple[tuple[str, str], ...] = ()):
        self.shapes: dict[str, Shape] = {}
        self._files: dict[str, tuple[Any, str]] = {}  # name -> the open file, the name in it
        self._dtypes: dict[str, str] = {}
        self._open = contextlib.ExitStack()
        try:
            for file, names in _files(home).items():
                self._add(home / file, names, renames)
        except BaseException:
            self._open.close()
            raise

    def _add(self, path: Path, names: set[str] | None, renames: tuple[tuple[str, str], ...]) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            file = self._open.enter_context(safe_open(path, framework="numpy"))
        except FileNotFoundError:
            raise ConfigError("folder", f"{path.name} is missing in {path.parent}") from None
        except (SafetensorError, OSError) as error:
            raise ConfigError("folder", f"{path} cannot be read as safetensors ({error})") from None
        there = set(file.keys())
        if names is not None and names - there:
            problem = f"{sorted(names - there)[0]} is not in {path.name}, where the index has it"
            raise ConfigError("tensors", problem)
        for stored in sorted(there):
            name = stored
            for pattern, replacement in renames:
                name = re.sub(pattern, replacement, name)
            if name in self._files:
                raise ConfigError("tensors", f"{name} is stored twice")
            part = file.get_slice(stored)
            self._files[name] = file, stored
            self.shapes[name] = tuple(part.get_shape())
            self._dtypes[name] = part.get_dtype()

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def read(self, name: str) -> Any:
        """The numbers as float32 (float64 where the file has them)."""
        if self._dtypes[name] not in FLOATS:
            problem = f"{name} is stored as {self._dtypes[name]}; only {', '.join(FLOATS)} are read"
            raise ConfigError("tensors", problem)
        file, stored = self._files[name]
        array = file.get_tensor(stored)
        return array if self._dtypes[name] in ("F32", "F64") else array.astype(np.float32)

    def __exit__(self, *_: Any) -> None:
        self._open.close()


def _files(home: Path) -> dict[str, set[str] | None]:
    """File -> the names that an index says are in it (None: whatever there is)."""
    if (home / SINGLE).is_file():
        return {SINGLE: None}
    if (home / INDEX).is_file():
        places = _read_json(home / INDEX).get("weight_map")
        if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
            raise ConfigError(INDEX, "weight_map must map names of tensors to files")
        files: dict[str, set[str] | None] = {}
        for name, file in places.items():
            if Path(file).name != file:
                raise ConfigError(INDEX, f"{file!r} is not allowed; files must lie in the folder itself")
            names = files.setdefault(file, set())
            assert names is not None
            names.add(name)
        return files
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in home.glob(pattern))
    if pickled:
        problem = f"{home} holds {pickled[0]} and no safetensors; pickled weights are never read"
        raise ConfigError("folder", f"{problem} (save the model again with safe_serialization=True)")
    raise ConfigError("folder", f"{home} holds neither {SINGLE} nor {INDEX}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError("folder", f"{path.name} is missing in {path.parent}") from None
    except (OSError, ValueError) as error:
        raise ConfigError("folder", f"{path} cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise ConfigError("folder", f"{path} must hold an object")
    return value


# --- writing ----------------------------------------------------------------------------------------------------------


def to_huggingface(
    config: ModelConfig,
    params: Mapping[str, Any],
    folder: str | os.PathLike[str],
    family: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes config.json and safetensors that `transformers` reads; more than `max_shard_bytes` become shards.

    family: a model_type such as "llama"; None takes the first family that can say the config. config.json is written
    last and a folder that has one is refused, so a write that was cut off leaves nothing that looks whole and can be
    done again. Raises ConfigError where no family can say the config.
    """
    if max_shard_bytes < 1:
        raise ConfigError("max_shard_bytes", f"{max_shard_bytes} is not allowed; must be at least 1")
    home = Path(folder)
    if (home / CONFIG).exists():
        raise ConfigError("folder", f"{home} holds a model already; must be a new folder")
    chosen, said = say_config(config, family)
    shapes, get = shapes_of(config), _getter(params)
    for path, shape in shapes.items():
        if tuple(get(path).shape) != shape:
            raise ConfigError(path, f"shape {tuple(get(path).shape)} is not allowed; the config says {shape}")
    table = Table(tuple(chosen.rules(config, said)), shapes)
    home.mkdir(parents=True, exist_ok=True)
    for left in [*home.glob("model*.safetensors*"), *home.glob(f"{CONFIG}.partial")]:
        left.unlink()  # of a write that was cut off
    _write_tensors(table, get, home, max_shard_bytes)
    _write_json(home / CONFIG, {**said, "dtype": "float32"})


def say_config(config: ModelConfig, family: str | None = None) -> tuple[Family, dict[str, Any]]:
    """(family, config.json) of a config; ConfigError with the reasons where there is none.

    A stack of attention alone can be said by families of hybrids too: the one that reads back nearest is taken.
    """
    candidates = list(dict.fromkeys(FAMILIES.values())) if family is None else [family_of(family, "family")]
    reasons: dict[str, ConfigError] = {}
    found = []
    for candidate in candidates:
        name = family or candidate.model_types[0]
        try:
            said = {"model_type": name, **candidate.write(config)}
            found.append((_differences(config, _says_all(config, candidate, said)), candidate, said))
        except ConfigError as error:
            reasons[name] = error
    if found:
        _, candidate, said = min(found, key=lambda entry: entry[0])
        return candidate, said
    if family is not None:
        raise reasons[family]
    first = "; ".join(f"{name}: {error}" for name, error in list(reasons.items())[:3])
    raise ConfigError("family", f"none of {', '.join(reasons)} can say this model ({first}; ...)")


def _differences(config: ModelConfig, back: ModelConfig) -> int:
    """Groups of kinds that are not the same, whether the pattern has them or not."""
    return sum(ours != theirs for (_, ours), (_, theirs) in zip(config.groups, back.groups, strict=True))


def _says_all(config: ModelConfig, family: Family, said: Mapping[str, Any]) -> ModelConfig:
    """`said` read back: every field that makes the model what it is must return."""
    back = family.read(said)
    if shapes_of(back) != shapes_of(config):
        mine, yours = shapes_of(config), shapes_of(back)
        first = next(path for path in sorted({*mine, *yours}) if mine.get(path) != yours.get(path))
        problem = f"cannot be said in a {said['model_type']} model: {first} would have shape {yours.get(first)}"
        raise ConfigError("pattern", f"{config.pattern!r} {problem}, not {mine.get(first)}")
    models = [(config, back)]
    if config.encoder_config is not None and back.encoder_config is not None:
        models.append((config.encoder_config, back.encoder_config))
    for here, there in models:
        for i, ((kind, _), (other, _)) in enumerate(zip(here.kinds(), there.kinds(), strict=True)):
            if (kind.symbol, kind.group) != (other.symbol, other.group):
                raise ConfigError("pattern", f"sublayer {i}, {kind.group}, would come back as {other.group}")
    for (kind, ours), (_, theirs) in zip(config.parts(), back.parts(), strict=True):
        for group in (None, kind.group):
            triples = zip(_fields(ours, group), _values(ours, group), _values(theirs, group), strict=True)
            for name, value, other_value in triples:
                if name in FREE or value is None or (group is None and other_value is None):
                    continue
                if value != other_value:
                    field = name if group is None else f"{group}.{name}"
                    problem = f"{value!r} cannot be said in a {said['model_type']} model (it would be {other_value!r})"
                    raise ConfigError(field, problem)
    return back


def _fields(config: ModelConfig, group: str | None) -> list[str]:
    return [field.name for field in dataclasses.fields(config if group is None else getattr(config, group))]


def _values(config: ModelConfig, group: str | None) -> list[Any]:
    """The fields of a sublayer's config, or of its group: what stands for those that are not given, "none" where
    nothing does, and None where it does not matter: heads of a model without attention, and what a kind derives from
    the other fields where it is not given (the shapes are compared apart)."""
    from hybrid.sublayers.heads import heads

    owner = config if group is None else getattr(config, group)
    stand_ins: dict[str, Any] = {"d_ff": config.width_ff, "n_heads": None, "n_kv_heads": None, "head_dim": None}
    if config.n_heads is not None:
        stand_ins |= dict(zip(("n_heads", "n_kv_heads", "head_dim"), heads(config), strict=True))
        stand_ins["scale"] = stand_ins["head_dim"] ** -0.5
    if hasattr(owner, "stand_ins"):  # a group that says itself what its open fields mean
        stand_ins |= owner.stand_ins(config)
    values = {name: getattr(owner, name) for name in _fields(config, group)}
    if group is None and config.n_heads is None and config.positions == "rope":
        values["positions"] = "none"  # nothing is there to be turned
    derived = "none" if group is None else None
    return [stand_ins.get(name, derived) if value is None else plain(value) for name, value in values.items()]


def _getter(params: Mapping[str, Any]) -> Any:
    places, arrays = locate(params), dict(leaves(params))

    def get(path: str) -> Any:
        if path not in places:
            raise ConfigError("params", f"{path} is missing")
        where, index = places[path]
        return np.asarray(arrays[where] if index is None else arrays[where][index])

    return get


def _write_tensors(table: Table, get: Any, home: Path, most: int) -> None:
    """Shards of at most `most` bytes (a tensor is never cut), each made just before it is written."""
    shards: list[dict[str, Any]] = [{}]
    filled = total = 0
    for name, shape, make in table.save(get):
        size = 4 * int(np.prod(shape))
        if shards[-1] and filled + size > most:
            shards.append({})
            filled = 0
        shards[-1][name] = make
        filled, total = filled + size, total + size
    places = {}
    for i, shard in enumerate(shards):
        file = SINGLE if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        _save(home / file, {name: np.ascontiguousarray(make(), np.float32) for name, make in shard.items()})
        places.update(dict.fromkeys(shard, file))
    if len(shards) > 1:
        _write_json(home / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _save(path: Path, arrays: Mapping[str, Any]) -> None:
    from safetensors.numpy import save_file

    with _replacing(path) as partial:
        save_file(dict(arrays), partial, metadata={"format": "pt"})


def _write_json(path: Path, value: Any) -> None:
    with _replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place when all of it is on disk."""
    partial = path.with_name(f"{path.name}.partial")
    yield partial
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
