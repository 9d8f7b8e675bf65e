"""Continues a prompt with a model, and prints the text as it is made.

    python -m experiments.generate --weights=model.gguf --prompt="The capital of France is"
    python -m experiments.generate --weights=runs/quickstart/trials/0123456789ab --prompt="ROMEO:" --temperature=0.8

--weights is a GGUF file of the Llama family, a folder of Hugging Face (config.json, *.safetensors, tokenizer.json) or
the folder of a run with checkpoints. The text ends after --steps tokens, at a stop string (which is not printed) or
where the model ends it. Standard output holds the text alone. Ctrl-C ends it (exit code 130).
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.commandline import Flag, main, need, path_of, split, text_of
from experiments.streaming import Pieces, Until
from hybrid.validation import ConfigError

if TYPE_CHECKING:
    from experiments.weights import Weights

STEPS = 128


def _plain(name: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(name, "is not UTF-8 text") from None
    return text


def _words(name: str, text: str) -> str:
    return _plain(name, text_of(name, text))


def _integer(low: int) -> Callable[[str, str], int]:
    def read(name: str, text: str) -> int:
        if not (text.isascii() and text.isdecimal()) or int(text) < low:
            raise ConfigError(name, f"{text!r} is not allowed; must be an integer at least {low}")
        return int(text)

    return read


def _number(holds: Callable[[float], bool], words: str) -> Callable[[str, str], float]:
    def read(name: str, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and holds(value)):
            raise ConfigError(name, f"{text!r} is not allowed; must be a number {words}")
        return value

    return read


FLAGS = {
    "weights": Flag("PATH", path_of, "a GGUF file, or a folder"),
    "prompt": Flag("TEXT", _plain, "what the text begins with"),
    "steps": Flag("N", _integer(1), f"the most tokens that are made ({STEPS}, or what the model has room for)"),
    "temperature": Flag(
        "T",
        _number(lambda value: value >= 0, "at least 0"),
        "0 takes the likeliest token (0, or 1 where --top_k, --top_p or --seed is given)",
    ),
    "top_k": Flag("K", _integer(1), "draw among the K likeliest tokens"),
    "top_p": Flag("P", _number(lambda value: 0 < value <= 1, "above 0 and at most 1"), "and among the fewest with P"),
    "stop": Flag("TEXT", _words, "end before it; may be given many times", repeats=True),
    "seed": Flag("N", _integer(0), "of the draws (0)"),
}


@dataclass(frozen=True)
class Asked:
    weights: Path
    prompt: str
    stop: tuple[str, ...] = ()
    steps: int | None = None
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0


def command(argv: list[str]) -> int:
    asked = parse(argv)
    with _of_weights():
        from experiments.weights import find

        weights = find(asked.weights)
        prompt, steps = _fitted(weights, asked)
    shown = _Terminal(asked.prompt)
    try:
        for piece in pieces(weights, prompt, steps, asked, shown):
            sys.stdout.write(piece)
            sys.stdout.flush()
    finally:
        shown.end()
    return 0


def parse(argv: list[str]) -> Asked:
    """The flags, each given once except --stop."""
    _, given = split(argv, __doc__, FLAGS)
    need(given, FLAGS, "weights", "prompt")
    if given.keys() & {"top_k", "top_p", "seed"}:
        given.setdefault("temperature", 1.0)
    return Asked(**given)


class _of_weights:  # noqa: N801  (reads as a block: with _of_weights():)
    """Errors of what --weights names, under the name of the flag."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, ConfigError) and not error.field.startswith("--"):
            raise ConfigError("--weights", str(error)) from None
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
            raise ConfigError("--weights", f"its config.json cannot be read ({error})") from None


def _fitted(weights: Weights, asked: Asked) -> tuple[list[int], int]:
    """The tokens of the prompt, and how many may follow; ConfigError where that is none."""
    from hybrid.decoding.limits import longest

    limit = longest(weights.config)
    try:
        prompt = weights.text.encode(asked.prompt)
    except ConfigError as error:
        raise ConfigError("--prompt", error.problem) from None
    if not prompt:
        raise ConfigError("--prompt", "must not be empty: this model has no token that texts begin with")
    steps = asked.steps or STEPS
    if limit is None:
        return prompt, steps
    room = limit - len(prompt)
    if room < 1:
        raise ConfigError("--prompt", f"has {len(prompt)} tokens; the model takes {limit}, those that follow included")
    if asked.steps is not None and asked.steps > room:
        problem = f"{asked.steps} is not allowed; the model takes {limit} tokens and the prompt has {len(prompt)}"
        raise ConfigError("--steps", problem)
    return prompt, min(steps, room)


def pieces(weights: Weights, prompt: list[int], steps: int, asked: Asked, shown: _Terminal) -> Iterator[str]:
    """The text, in the pieces in which it becomes sure."""
    from experiments.environment import prepare

    prepare()
    shown.note("loading")
    import jax
    import numpy as np

    from hybrid.decoding.stream import stream

    with _of_weights():
        params = weights.params()
    shown.note("compiling")
    text, until = Pieces(weights.text.decode, prompt), Until(asked.stop)
    tokens = stream(
        weights.config, params, np.asarray([prompt]), steps, key=jax.random.key(asked.seed),
        temperature=asked.temperature, top_k=asked.top_k, top_p=asked.top_p,
    )  # fmt: skip
    for token in tokens:
        shown.count()
        if int(token[0]) in weights.text.ends:
            break
        yield until.feed(text.feed(int(token[0])))
        if until.done:
            return
    yield until.feed(text.flush())
    yield until.flush()


class _Terminal:
    """What a person sees beside the text; nothing where standard error is no terminal."""

    def __init__(self, prompt: str):
        self._on, self._prompt, self._tokens = sys.stderr.isatty(), prompt, 0
        self._began = self._first = time.monotonic()

    def note(self, what: str) -> None:
        if self._on:
            print(f"\r\033[K{what} ...", end="", file=sys.stderr, flush=True)

    def count(self) -> None:
        """A token has come. Before the first the prompt is shown, so that the text goes on from it."""
        self._tokens += 1
        if self._tokens == 1:
            self._first = time.monotonic()
            if self._on:
                print(f"\r\033[K{self._prompt}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if not self._on:
            return
        print(file=sys.stderr)
        if self._tokens > 1:
            rate = (self._tokens - 1) / max(time.monotonic() - self._first, 1e-9)
            first = self._first - self._began
            print(f"[{self._tokens} tokens, {rate:.1f} a second; the first after {first:.1f} s]", file=sys.stderr)


if __name__ == "__main__":
    main(command)
