"""Models to generate with, wherever they lie: a GGUF file, a folder of Hugging Face, a run of ours.

    weights = find(Path("model.gguf"))       # refuses at once what is none
    tokens = weights.text.encode("Once upon")
    params = weights.params()                # jax from here on

`find` reads no more than config files and the first bytes of others, and neither it nor `text` loads jax.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from experiments.config import Trial, trial_from
from experiments.files import read_json
from experiments.runs import RunFolder
from hybrid.config import ModelConfig
from hybrid.validation import ConfigError

FORMS = "a GGUF file, a folder with config.json, *.safetensors and tokenizer.json, or the folder of a run"


@dataclass(frozen=True)
class Text:
    """Text <-> tokens."""

    encode: Callable[[str], list[int]]
    """A prompt as the model has seen texts begin: with its first token, if it has one."""
    decode: Callable[[Sequence[int]], str]
    """Without special tokens; torn characters become U+FFFD."""
    ends: frozenset[int]
    """Tokens after which a text is over."""


class Weights(Protocol):
    """A model on disk."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def text(self) -> Text: ...

    def params(self) -> Any:
        """The parameters, read now."""


def find(path: Path) -> Weights:
    """The weights at `path`; ConfigError of one line for what is none, or of a kind that is not read."""
    path = path.expanduser()
    if path.is_file():
        return Gguf(path)
    if not path.is_dir():
        raise ConfigError("", f"{str(path)!r} is not there; must be {FORMS}")
    about = read_json(path / "config.json")
    if isinstance(about, dict) and "trial" in about:
        return Run(path)
    if isinstance(about, dict):
        return Published(path, about)
    if (path / "manifest.json").is_file():
        raise ConfigError("", f"{str(path)!r} is a study; give one of its runs, {path}/trials/ID")
    raise ConfigError("", f"{str(path)!r} holds no config.json; must be {FORMS}")


class Gguf:
    """A GGUF file, with its tokenizer inside."""

    def __init__(self, path: Path):
        from hybrid.interop.gguf import architecture

        self.path = path
        architecture(path)

    @functools.cached_property
    def _file(self) -> Any:
        from hybrid.interop.gguf import GgufFile
        from hybrid.interop.gguf_tokenizer import check_tokenizer

        file = GgufFile(self.path)
        check_tokenizer(file.metadata)
        return file

    @functools.cached_property
    def config(self) -> ModelConfig:
        return self._file.config()

    @functools.cached_property
    def text(self) -> Text:
        from hybrid.interop.gguf_tokenizer import end_tokens, read_tokenizer

        return _library_text(read_tokenizer(self._file.metadata), end_tokens(self._file.metadata))

    def params(self) -> Any:
        return self._file.model()[1]


class Published:
    """A folder of Hugging Face."""

    def __init__(self, path: Path, about: dict[str, Any]):
        from hybrid.interop.families import family_of

        self.path, self._about = path, about
        self.config = family_of(about.get("model_type"), "config.json: model_type").read(about)
        if not list(path.glob("*.safetensors")):
            raise ConfigError("", f"{str(path)!r} holds no *.safetensors")
        if not (path / "tokenizer.json").is_file():
            raise ConfigError("", f"{str(path)!r} holds no tokenizer.json")

    @functools.cached_property
    def text(self) -> Text:
        from tokenizers import Tokenizer

        try:
            library = Tokenizer.from_file(str(self.path / "tokenizer.json"))
        except Exception as error:  # the library raises nothing narrower
            raise ConfigError("", f"{self.path / 'tokenizer.json'} cannot be read ({error})") from None
        library.no_truncation()
        library.no_padding()
        return _library_text(library, self._ends())

    def _ends(self) -> frozenset[int]:
        try:
            generation = read_json(self.path / "generation_config.json") or {}
        except json.JSONDecodeError:
            generation = {}
        said = generation.get("eos_token_id", self._about.get("eos_token_id"))
        return frozenset(said if isinstance(said, list) else [] if said is None else [said])

    def params(self) -> Any:
        from hybrid.interop.huggingface import from_huggingface

        return from_huggingface(self.path)[1]


class Run:
    """The newest checkpoint of a run of ours."""

    def __init__(self, path: Path):
        self.run = RunFolder(path)
        self.trial: Trial = trial_from(self.run.record["trial"])
        self.config = self.trial.model
        if self.trial.data.is_task:
            problem = f"was trained on the synthetic task {self.trial.data.source!r}; it does not continue a prompt"
            raise ConfigError("", f"{str(path)!r} {problem}")
        if self.trial.data.objective != "causal":
            problem = f"was trained with data.objective = {self.trial.data.objective!r}; it does not continue a prompt"
            raise ConfigError("", f"{str(path)!r} {problem}")
        if not any(step.name.isdecimal() for step in self.run.checkpoints.glob("*")):
            raise ConfigError("", f"{str(path)!r} has no checkpoint yet")

    @functools.cached_property
    def text(self) -> Text:
        from experiments.data.stream import prepare
        from experiments.data.tokenizers import KINDS

        kind, data = KINDS[self.trial.data.tokenizer], self.trial.data
        trained = data.vocab_size is not None  # others have a vocabulary of their own, and need no files
        tokenizer = kind.load(prepare(data, _told) if trained else Path(), kind.vocab_size(data))
        return Text(
            encode=lambda text: [tokenizer.separator, *map(int, tokenizer.encode([text])[0])],
            decode=tokenizer.decode,
            ends=frozenset([tokenizer.separator]),
        )

    def params(self) -> Any:
        import dataclasses

        from experiments.checkpoint import Checkpoints
        from experiments.config import MeshConfig
        from experiments.states import saved_shapes
        from experiments.step import Program

        program = Program(dataclasses.replace(self.trial, mesh=MeshConfig()))  # on one device, wherever it was trained

        def passed_over(step: int, reason: str) -> None:
            _told(f"the checkpoint of step {step} is passed over: {reason}")

        with Checkpoints(self.run.checkpoints, None, passed_over) as checkpoints:
            found = checkpoints.newest(saved_shapes(self.config, program.shapes, program.mesh))
        if found is None:
            raise ConfigError("", f"{str(self.run.path)!r} has no checkpoint that verifies")
        return found.tree["params"]


def _told(message: str) -> None:
    print(message, file=sys.stderr)


def _library_text(library: Any, ends: frozenset[int]) -> Text:
    """Of a `tokenizers.Tokenizer`."""

    def encode(text: str) -> list[int]:
        """With the tokens that stand before a text, without those that some tokenizers put behind it."""
        bare = list(library.encode(text, add_special_tokens=False).ids)
        whole = list(library.encode(text).ids)
        if not bare:
            return [token for token in whole if token not in ends]
        first = next((n for n in range(len(whole) - len(bare) + 1) if whole[n : n + len(bare)] == bare), 0)
        return whole[:first] + bare

    return Text(encode=encode, decode=lambda tokens: library.decode(list(tokens), skip_special_tokens=True), ends=ends)
