"""Config files: Python with `get_config()` and `sweep()`, the fields that a person may set, and text as values.

A ConfigDict is the form that people write; `values(...)` gives the plain nested mapping that `trial_from` checks.
Texts of the command line become values by the type of the field (never by evaluating them).
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import importlib.util
import sys
import traceback
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, Union

from experiments.budgets import Match
from experiments.config import Placed, Trial
from hybrid.config import ModelConfig
from hybrid.sublayers import KINDS
from hybrid.validation import ConfigError, checked, hints, unknown

Point = Mapping[str, Any]
"""Dotted field -> value."""


# --- the file ---------------------------------------------------------------------------------------------------------


class ConfigFile:
    """A config file, run once; every trial asks `get_config()` again, so that references between fields hold."""

    def __init__(self, path: Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise ConfigError("--config", f"{str(path)!r} is not a file{_nearest_file(self.path)}")
        self.module = _run(self.path)
        if not callable(getattr(self.module, "get_config", None)):
            raise ConfigError("--config", f"{path} must define get_config()")

    def values(self, overrides: Iterable[tuple[str, Any]] = ()) -> dict[str, Any]:
        """The config with these fields replaced, as plain nested values."""
        from ml_collections import ConfigDict

        with _one_line(self.path):
            config = self.module.get_config()
        if isinstance(config, Mapping):
            config = ConfigDict(config)
        if not isinstance(config, ConfigDict):
            problem = f"get_config() of {self.path} gives {type(config).__name__}; must give a ConfigDict"
            raise ConfigError("--config", problem)
        with config.unlocked(), config.ignore_type():
            for name, value in overrides:
                _set(config, name, value)
        return _plain(config, "")

    def points(self) -> list[Point] | None:
        """What sweep() lists, None where the file has no sweep()."""
        if not hasattr(self.module, "sweep"):
            return None
        with _one_line(self.path):
            listed = self.module.sweep()
            points = list(listed) if isinstance(listed, Iterable) and not isinstance(listed, Mapping | str) else None
        if points is None or not all(isinstance(point, Mapping) for point in points):
            raise ConfigError("sweep", f"{listed!r} is not allowed; must be a list of {{field: value}}")
        return [dict(point) for point in points]


def _run(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("hybrid_config_file", path)
    if spec is None or spec.loader is None:
        raise ConfigError("--config", f"{str(path)!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    keep, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # leave no __pycache__ beside the configs
    try:
        with _one_line(path):
            spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = keep
    return module


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Turns whatever the file raises into one line with the file and the line of it."""
    try:
        yield
    except SyntaxError as error:
        raise ConfigError("--config", f"{error.filename}:{error.lineno}: {error.msg}") from None
    except (Exception, SystemExit) as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path.absolute())]
        frames = frames or [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name == path.name]
        where = f"{path}:{frames[-1].lineno}" if frames else str(path)
        what = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        raise ConfigError("--config", f"{where}: {what}") from None


def _nearest_file(path: Path) -> str:
    beside = [str(other) for other in path.parent.glob("*.py")] if path.parent.is_dir() else []
    close = difflib.get_close_matches(str(path), beside, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _set(config: Any, name: str, value: Any) -> None:
    from ml_collections import ConfigDict

    *groups, leaf = name.split(".")
    for group in groups:
        if not isinstance(config.get(group, None), ConfigDict):
            config[group] = ConfigDict()
        config = config[group]
    config[leaf] = value


def _plain(value: Any, name: str) -> Any:
    from ml_collections import ConfigDict
    from ml_collections.config_dict import RequiredValueError

    if isinstance(value, ConfigDict | Mapping):
        plain = {}
        for key in value:
            field = f"{name}.{key}" if name else str(key)
            try:
                plain[str(key)] = _plain(value[key], field)
            except RequiredValueError:
                raise ConfigError(field, f"must be given, as --config.{field}=VALUE") from None
        return plain
    if isinstance(value, list | tuple):
        return tuple(_plain(item, f"{name}[{i}]") for i, item in enumerate(value))
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a numpy scalar
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(name, f"{value!r} is not allowed; must be a number, a text, True, False, None or a tuple of them")


# --- the fields -------------------------------------------------------------------------------------------------------


@functools.cache
def fields() -> dict[str, Any]:
    """Dotted name -> annotation of every field that a config may set."""
    known = _walk(Trial, "")
    known |= {f"model.{name}": hint for name, hint in hints(ModelConfig).items() if name != "groups"}
    known["model.symbols"] = Mapping
    for kind in KINDS.values():
        known |= _walk(kind.config, f"model.{kind.group}.")
    return known | _walk(Placed, "model.") | _walk(Match, "model.match.")


def _walk(cls: type, prefix: str) -> dict[str, Any]:
    known: dict[str, Any] = {}
    for name, hint in hints(cls).items():
        if hint is ModelConfig:
            continue
        if is_dataclass(hint):
            known |= _walk(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            known[prefix + name] = hint
    return known


def hint_of(name: str) -> Any:
    """The annotation of a field, or ConfigError with the nearest name and those allowed beside it."""
    known = fields()
    if name in known:
        return known[name]
    if name.startswith(("model.symbols.", "data.task.", "data.slices.")):
        return Any
    parts = name.split(".")
    prefix = ""
    for part in parts:
        beside = list(dict.fromkeys(n[len(prefix) :].split(".")[0] for n in known if n.startswith(prefix)))
        if part not in beside:
            close = difflib.get_close_matches(part, beside, n=1, cutoff=0.6)
            full = [n for n in known if n.split(".")[-1] == parts[-1]]
            if not close and full:
                raise ConfigError(name, f"unknown field; did you mean {full[0]!r}? (allowed: {', '.join(beside)})")
            raise unknown(name, part, beside, f"unknown field {part!r}" if part != name else "unknown field")
        prefix += f"{part}."
        if prefix[:-1] in known:
            raise ConfigError(name, f"unknown field; {prefix[:-1]!r} is a value and not a group of fields")
    raise ConfigError(name, f"is a group of fields; set one of them (allowed: {', '.join(_below(name))})")


def _below(group: str) -> list[str]:
    return list(dict.fromkeys(n[len(group) + 1 :].split(".")[0] for n in fields() if n.startswith(group + ".")))


# --- text to value ----------------------------------------------------------------------------------------------------


def read_overrides(overrides: Sequence[tuple[str, str]]) -> list[tuple[str, Any]]:
    """The values of `--config.FIELD=TEXT`, each read and checked by the type of its field."""
    return [(name, read(name, text)) for name, text in overrides]


def read(name: str, text: str) -> Any:
    """The value that `text` says for the field `name`."""
    hint = hint_of(name)
    if hint is Any or hint is Mapping:
        return _literal(text)
    found, value = _convert(text, hint)
    if not found and _is_tuple(hint):
        problem = f"{text!r} is not allowed; must be a tuple, such as ({text},) for one entry or (a,b) for two"
        raise ConfigError(name, problem)
    return checked(name, value if found else text, hint)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _is_tuple(hint: Any) -> bool:
    return typing.get_origin(hint) is tuple


def _convert(text: str, hint: Any) -> tuple[bool, Any]:
    """(whether the text can be read so, the value)."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _convert(text, args[0])
    if origin in (Union, types.UnionType):
        if type(None) in args and text in ("None", "none", "null"):
            return True, None
        options = sorted((a for a in args if a is not type(None)), key=lambda option: option is str)  # text at last
        return next((result for result in (_convert(text, option) for option in options) if result[0]), (False, text))
    if origin is Literal:
        named = {str(option).casefold() if isinstance(option, bool) else str(option): option for option in args}
        key = text if text in named else text.casefold() if text.casefold() in ("true", "false") else text
        return (True, named[key]) if key in named else (False, text)
    if origin is tuple:
        return _convert_tuple(text, args)
    reader = _READERS.get(hint)
    if reader is None:
        return False, text
    try:
        return True, reader(text)
    except (ValueError, OverflowError):
        return False, text


def _convert_tuple(text: str, args: tuple[Any, ...]) -> tuple[bool, Any]:
    text = text.strip()
    inside = text[1:-1] if text[:1] + text[-1:] in ("()", "[]") else None
    if inside is None and "," not in text:
        return False, text
    parts = [part.strip().strip("'\"") for part in (text if inside is None else inside).split(",")]
    if parts[-1] == "":
        parts.pop()
    items = [_convert(part, args[0] if len(args) == 2 and args[1] is Ellipsis else str) for part in parts]
    return all(found for found, _ in items), tuple(value for _, value in items)


def _read_int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        number = float(text)  # 1e3
        if not number.is_integer():
            raise
        return int(number)


def _read_bool(text: str) -> bool:
    return {"true": True, "false": False}[text.casefold()] if text.casefold() in ("true", "false") else _refuse()


def _refuse() -> bool:
    raise ValueError


_READERS: dict[Any, Any] = {int: _read_int, float: float, bool: _read_bool, str: str}
