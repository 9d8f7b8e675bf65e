"""The command line of every command: a strict table of flags, and errors of one line. No absl, no jax.

    options = parse(sys.argv[1:], __doc__, flags=("config", "workdir", "dry_run"))

Absl's flags with ml_collections ignore a positional `config.lr=1`, let the last of two equal flags win and show typos
as tracebacks; here each of those is one line and exit code 2.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from experiments.files import Held
from hybrid.validation import ConfigError, nearest


@dataclass(frozen=True)
class Flag:
    """`read` makes the value from the text; a flag without `placeholder` is a switch."""

    placeholder: str
    read: Callable[[str, str], Any]
    help: str
    repeats: bool = False
    """May be given many times: its value is the tuple of all."""


def text_of(name: str, text: str) -> str:
    """What a flag's text is read by: any text but none. The others follow."""
    if not text:
        raise ConfigError(name, "must be given a value")
    return text


def path_of(name: str, text: str) -> Path:
    return Path(text_of(name, text))


def count_of(name: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(name, f"{text!r} is not allowed; must be an integer at least 1")
    return int(text)


def _switch(name: str, text: str) -> bool:
    if text.casefold() not in ("true", "false"):
        raise ConfigError(name, f"{text!r} is not allowed; must be true or false, or nothing")
    return text.casefold() == "true"


FLAGS = {
    "config": Flag("FILE", path_of, "the study: a Python file with get_config() and, for a sweep, sweep()"),
    "workdir": Flag("FOLDER", path_of, "where everything is kept; the same command again goes on from there"),
    "dry_run": Flag("", _switch, "list what would run, with its size and time, and write nothing"),
    "workers": Flag("N", count_of, "processes that train side by side (default: one a core, one on an accelerator)"),
    "status": Flag("", _switch, "show where the study in --workdir stands"),
    "retry": Flag("", _switch, "take up again the runs that failed by an error of their own, too"),
    "trial": Flag("FILE", path_of, "the config.json of a run: trains it again in its folder, without a Python config"),
    "report": Flag("", _switch, "--report=false leaves out the report at the end"),
    "stage": Flag("NAME", text_of, "end after this stage of the study (tune or confirm)"),
}


@dataclass(frozen=True)
class Options:
    """What was asked for. `overrides` holds (dotted field, text) of every `--config.FIELD=VALUE`, in order."""

    config: Path | None = None
    workdir: Path | None = None
    dry_run: bool = False
    workers: int | None = None
    status: bool = False
    retry: bool = False
    trial: Path | None = None
    report: bool = True
    stage: str | None = None
    overrides: tuple[tuple[str, str], ...] = ()

    def need(self, *names: str) -> None:
        """ConfigError unless each of these flags was given."""
        need(vars(self), FLAGS, *names)


def parse(argv: Sequence[str], doc: str | None, flags: Sequence[str]) -> Options:
    """The options of a command that knows `flags` (names of FLAGS); `--help` prints `doc` and exits."""
    _, given = split(argv, doc, {name: FLAGS[name] for name in flags})
    prefix = "config."
    overrides = [(name[len(prefix) :], given.pop(name)) for name in list(given) if name.startswith(prefix)]
    return Options(**given, overrides=tuple(overrides))


def split(
    argv: Sequence[str], doc: str | None, table: Mapping[str, Flag], *, words: bool = False
) -> tuple[list[str], dict[str, Any]]:
    """(the words, name -> value of the flags that were given); `--help` prints `doc` and exits.

    table: the flags of the command; one that knows `config` takes `--config.FIELD=TEXT` too. words: whether arguments
    without dashes are allowed. Raises ConfigError for whatever is not understood or given twice.
    """
    if any(word in ("--help", "-h", "--helpfull") for word in argv):
        print(usage(doc, table))
        raise SystemExit(0)
    plain: list[str] = []
    given: dict[str, list[str]] = {}
    left = list(argv)
    while left:
        word = left.pop(0)
        name, equals, text = word.partition("=")
        if words and not word.startswith("-"):
            plain.append(word)
            continue
        if not words and (not word.startswith("--") or len(word) == 2):
            raise ConfigError(word, _not_a_flag(word, table))
        name = name.removeprefix("--")
        if name not in table and not (name.startswith("config.") and "config" in table):
            raise ConfigError(name if name.startswith("-") else f"--{name}", _unknown_flag(name, table))
        repeats = name in table and table[name].repeats
        if name in given and not repeats:
            problem = f"is given twice ({given[name][0]!r} and {text or 'again'!r}); give it once"
            raise ConfigError(f"--{name}", problem)
        if not equals:
            text = _next(name, left, table)
        given.setdefault(name, []).append(text)
    values: dict[str, Any] = {}
    for name, texts in given.items():
        read = [table[name].read(f"--{name}", text) if name in table else text for text in texts]
        values[name] = tuple(read) if name in table and table[name].repeats else read[0]
    return plain, values


def need(given: Mapping[str, Any], table: Mapping[str, Flag], *names: str) -> None:
    """ConfigError unless each of these flags was given."""
    for name in names:
        if given.get(name) is None:
            raise ConfigError(f"--{name}", f"must be given, as --{name}={table[name].placeholder}")


def _next(name: str, words: list[str], table: Mapping[str, Flag]) -> str:
    if name in table and not table[name].placeholder:
        return "true"
    if not words or words[0].startswith("--"):
        raise ConfigError(f"--{name}", f"must be given a value, as --{name}={_placeholder(name, table)}")
    return words.pop(0)


def _placeholder(name: str, table: Mapping[str, Flag]) -> str:
    return table[name].placeholder if name in table else "VALUE"


def _not_a_flag(word: str, table: Mapping[str, Flag]) -> str:
    bare = word.lstrip("-")
    name = bare.partition("=")[0]
    if name in table or name.startswith("config."):
        return f"is not a flag; did you mean '--{bare}'?"
    allowed = [f"--{flag}" for flag in table]
    return f"is not a flag; arguments are --NAME=VALUE{nearest('--' + name, allowed)} (allowed: {', '.join(allowed)})"


def _unknown_flag(name: str, table: Mapping[str, Flag]) -> str:
    allowed = [f"--{flag}" for flag in table]
    more = ["--config.FIELD"] if "config" in table else []
    hint = nearest("--" + name.lstrip("-").replace("-", "_"), allowed)
    return f"unknown flag{hint} (allowed: {', '.join([*allowed, *more])})"


def usage(doc: str | None, table: Mapping[str, Flag]) -> str:
    """The text of --help."""
    rows = [
        (f"--{name}" + (f"={flag.placeholder}" if flag.placeholder else ""), flag.help) for name, flag in table.items()
    ]
    if "config" in table:
        rows.insert(1, ("--config.FIELD=VALUE", "any field of the config, such as --config.model.d_model=256"))
    width = max(len(flag) for flag, _ in rows)
    return "\n".join([(doc or "").strip(), "", *(f"  {flag:<{width}}  {text}" for flag, text in rows)])


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""What a disk says when nothing can be written to it: told in a line, no fault of the program."""


def main(function: Callable[[list[str]], int | None]) -> NoReturn:
    """Runs a command and exits: 2 and one line for what a person gave wrongly, 130 for Ctrl-C, else what it returns."""
    try:
        code = function(sys.argv[1:]) or 0
        sys.stdout.flush()
    except ConfigError as error:
        code = _refuse(str(error))
    except Held as held:
        code = _refuse(f"--workdir: {held}")
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # `| head`: the reader has what it wanted
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(141) from None
        if error.errno not in NO_ROOM:
            raise
        code = _refuse(str(error))
    except KeyboardInterrupt:
        code = 130
    raise SystemExit(code)


def _refuse(message: str) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 2
