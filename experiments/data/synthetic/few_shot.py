"""Few-shot label mapping: examples of a map from patterns to label words, which every prompt draws anew.

    . . p p -> w ; q q -> u ; p p -> w ; q q ->       the word of the last pattern

Two things can fail: the map (a wrong label word), and the form (no label word at all), which is how Mamba without
attention failed in the few-shot tests of Jamba (Lieber et al. 2024, section 6.2). `valid` scores the second alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experiments.data.synthetic.task import IGNORED, Row, Task, accuracy, distinct, must
from hybrid.lazy import jax, jnp
from hybrid.validation import Checked, PositiveInt

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLANK, ARROW, END = 0, 1, 2


@dataclass(frozen=True)
class FewShotConfig(Checked):
    shots: PositiveInt = 16
    """k, examples before the question; every class is among them."""
    classes: PositiveInt = 4
    """Patterns of a prompt, each with a label word of its own."""
    pattern_length: PositiveInt = 2
    label_words: PositiveInt = 16
    """Words that labels are drawn from."""
    vocab_size: PositiveInt = 64
    """Blank, arrow, end, then the label words, then what patterns are made of."""


def _first_label(config: FewShotConfig) -> int:
    return 3


def _alphabet(config: FewShotConfig) -> int:
    """Tokens that patterns are made of."""
    return config.vocab_size - 3 - config.label_words


def row(config: FewShotConfig, seq_len: int, key: Any, training: bool) -> Row:
    """In training every shot whose pattern was shown before is asked for too."""
    classes, shots = config.classes, config.shots
    for_patterns, for_first, for_words, for_more, for_order, for_question = jax.random.split(key, 6)
    # Patterns of a prompt begin with different tokens, so no two are the same.
    letters = jax.random.randint(for_patterns, (classes, config.pattern_length), 0, _alphabet(config))
    letters = letters.at[:, 0].set(distinct(for_first, _alphabet(config), classes))
    patterns = 3 + config.label_words + letters
    words = _first_label(config) + distinct(for_words, config.label_words, classes)
    more = jax.random.randint(for_more, (shots - classes,), 0, classes)
    shown = jax.random.permutation(for_order, jnp.concatenate([jnp.arange(classes), more]))
    shown = jnp.append(shown, jax.random.randint(for_question, (), 0, classes))

    def column(token: int) -> Any:
        return jnp.full((shots + 1, 1), token)

    lines = jnp.concatenate([patterns[shown], column(ARROW), words[shown][:, None], column(END)], 1)
    width = config.pattern_length + 3
    asked = config.pattern_length + width * jnp.arange(shots + 1)  # the arrows
    content = lines.reshape(-1)[: width * (shots + 1) - 2]
    before = seq_len - content.shape[0]
    tokens = jnp.concatenate([jnp.full((before,), BLANK), content])
    if not training:
        return {"tokens": tokens, "label_positions": before + asked[-1:], "labels": words[shown[-1:]]}
    again = ((shown[:, None] == shown) & jnp.tri(shots + 1, k=-1, dtype=bool)).any(1)
    return {"tokens": tokens, "label_positions": before + asked, "labels": jnp.where(again, words[shown], IGNORED)}


def check(config: FewShotConfig, seq_len: int) -> None:
    least = (config.pattern_length + 3) * (config.shots + 1) - 2
    must(seq_len >= least, "seq_len", f"{seq_len} is not allowed; {config.shots} shots have {least} tokens")
    problem = f"{config.shots} is not allowed; each of the {config.classes} classes is shown"
    must(config.shots >= config.classes, "task.shots", problem)
    problem = f"{config.label_words} is not allowed; each of the {config.classes} classes has a word of its own"
    must(config.label_words >= config.classes, "task.label_words", problem)
    problem = f"{config.vocab_size} is not allowed; {config.classes} patterns begin with different tokens"
    must(_alphabet(config) >= config.classes, "task.vocab_size", problem)


def scores(config: FewShotConfig, answers: NDArray, labels: NDArray) -> dict[str, float]:
    """`valid`: the share of answers that are label words, right or wrong."""
    first = _first_label(config)
    said = answers[labels != IGNORED]
    valid = float(((said >= first) & (said < first + config.label_words)).mean()) if said.size else 0.0
    return {**accuracy(config, answers, labels), "valid": valid}


TASK = Task(
    about="examples of a map from patterns to label words that every prompt draws anew",
    source="this project; what is scored apart follows Lieber et al. 2024 (Jamba), section 6.2",
    config=FewShotConfig,
    vocab_size=lambda config: config.vocab_size,
    row=row,
    chance=lambda config, seq_len: 1 / config.classes,
    check=check,
    scores=scores,
    names=("accuracy", "exact", "valid"),
)
