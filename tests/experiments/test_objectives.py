"""Masked tokens, spans and DNA in training: which models they take, what is scored, going on after an interruption."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.config import trial_from
from experiments.data import load
from experiments.evaluate import evaluate
from experiments.identity import group_id, run_id, trial_plain
from experiments.loop import train
from experiments.step import Program
from experiments.train import describe
from hybrid.validation import ConfigError
from tests.experiments.training import quick, run_of, trial

quick = pytest.fixture(autouse=True, scope="module")(quick)
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # see test_checkpoint.py

MASKED = {"model__pattern": "B-", "data__objective": "masked", "study__score": "loss"}
SPAN = {"model__pattern": "AX-", "model__encoder": "B-", "data__objective": "span", "study__score": "loss"}
DNA = {"model__pattern": "HA-", "data__source": "fasta", "data__tokenizer": "bases", "study__score": "bits_per_base"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Documents of three words, and a genome in which every base follows from the three before it."""
    source, folder = random.Random(0), tmp_path_factory.mktemp("texts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYBRID_DATA", str(tmp_path_factory.mktemp("home")))
        for number in range(40):
            text = " ".join(source.choices(["winter", "of", "our"], k=60))
            (folder / f"{number}.txt").write_text(text)
        bases = [0, 1, 3]
        for _ in range(8000):
            bases.append((bases[-1] + 2 * bases[-3] + (source.random() < 0.02)) % 4)
        (folder / "one.fa").write_text(">one\n" + "".join("ACGT"[base] for base in bases) + "\n")
        yield folder


def made(chosen, folder, **fields):
    here = {"data__source": "folder", **chosen, **fields}
    return trial(data__folder=str(folder), model__vocab_size=None, model__hyena={"filter_length": 32}, **here)


def started(one, path):
    data = load(one.data, seed=one.seed, evaluation_sequences=one.evaluate.sequences)
    return data, run_of(one, path, data)


@pytest.mark.parametrize("chosen", [MASKED, SPAN, DNA], ids=["masked", "span", "dna"])
def test_a_run_learns_and_one_that_was_cut_off_ends_with_the_same_bits(chosen, folder, tmp_path):
    one = made(chosen, folder, data__seq_len=32, train__steps=40, optimizer__learning_rate=2e-2)
    programs: dict[str, Program] = {}
    data, run = started(one, tmp_path / "straight")
    with run.claim():
        assert train(one, run, programs, data=data) == "done"
    rows = run.rows()
    assert rows[-2]["validation/loss"] < rows[0]["train/loss"] - 0.5

    _, other = started(one, tmp_path / "cut")
    for stop in (13, 27):
        broken = load(one.data, seed=one.seed, evaluation_sequences=one.evaluate.sequences)
        with other.claim(), pytest.raises(KeyboardInterrupt):
            train(one, other, programs, data=_Breaking(broken, stop))
    with other.claim():
        assert train(one, other, programs) == "done"
    assert (other.path / "metrics.jsonl").read_bytes() == (run.path / "metrics.jsonl").read_bytes()

    bits = {name for row in rows for name in row if "bits" in name}
    expected = {f"{part}/bits_per_base" for part in ("train", "validation", "test")} if chosen is DNA else set()
    assert bits == expected
    assert ("bits per base" in describe(run.result)) is (chosen is DNA)
    if chosen is DNA:
        scores = evaluate(run, "test", data=data)
        assert scores["loss"] == pytest.approx(run.result["test"]["loss"], rel=1e-6)
        assert scores["bits_per_base"] == pytest.approx(scores["loss"] / math.log(2))


class _Breaking:
    """Data that breaks off before the batch of a step."""

    def __init__(self, data, step):
        self._data, self._step = data, step

    def __getattr__(self, name):
        return getattr(self._data, name)

    def batches(self, start_step=0):
        return _BreakingBatches(self._data.batches(start_step), self._step)


class _BreakingBatches:
    def __init__(self, batches, step):
        self._batches, self._step = batches, step

    def __next__(self):
        if self._batches.step == self._step:
            raise KeyboardInterrupt
        return next(self._batches)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._batches.close()


def test_spans_are_written_from_what_the_encoder_read(folder):
    """The loss depends on both inputs, and padding of either side hides what is padded."""
    one = made(SPAN, folder, data__seq_len=32)
    program = Program(one)
    params = program.init(program.values(one)).params
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(0), leaf.shape), params)
    batch = load(one.data, seed=0, evaluation_sequences=8).batch(0)

    def loss(**changes):
        return float(program.eval_step(params, program.put({**batch, **changes}))[0])

    sides = {"padding": "tokens", "decoder_padding": "decoder_tokens"}
    there = {name: np.ones(batch[side].shape, bool) for name, side in sides.items()}
    assert loss(**there) == pytest.approx(loss(), rel=1e-5)
    for padding, side in sides.items():
        other, real, labels = batch[side].copy(), there[padding].copy(), batch["labels"].copy()
        other[:, -1] = (other[:, -1] + 1) % 200
        real[:, -1] = False
        labels[:, -1] = -1  # what is padded is not scored
        assert loss(**{side: other}) != loss()
        hidden = {**there, padding: real, "labels": labels}
        assert loss(**{**hidden, side: other}) == pytest.approx(loss(**hidden), rel=1e-5)


def test_the_vocabulary_grows_by_what_the_objective_adds(folder):
    sizes = {name: made(chosen, folder).model.vocab_size for name, chosen in {"m": MASKED, "s": SPAN, "d": DNA}.items()}
    assert sizes == {"m": 258, "s": 257 + 2 + 1, "d": 12}


BOTH = {"model__pattern": "AX-", "model__encoder": "B-"}
REFUSED = [
    ({**MASKED, "model__pattern": "MA-"}, r"data\.objective: 'masked' is not allowed; no sublayer of 'MA-' sees later"),
    ({**MASKED, **BOTH}, r"model\.encoder: 'B-' is not allowed; .*'masked' has one stack"),
    (BOTH, r"model\.encoder: 'B-' is not allowed; .*'causal' has one stack"),
    ({**SPAN, "model__encoder": None, "model__pattern": "A-"}, r"model\.encoder: must be given for .* = 'span'"),
    ({**SPAN, "model__pattern": "BX-"}, r"model\.pattern: B \(bidirectional_attention\) sees later tokens"),
    ({"model__pattern": "B-"}, r"model\.pattern: B \(bidirectional_attention\) sees later tokens"),
    ({**MASKED, "study__score": "bits_per_byte"}, r"study\.score: 'bits_per_byte' .*scored by 'loss'$"),
    ({"model__pattern": "A-", "study__score": "bits_per_base"}, r"study\.score: .*by 'bits_per_byte' or 'loss'$"),
    ({**DNA, "study__score": "bits_per_byte"}, r"study\.score: .*by 'bits_per_base' or 'loss'$"),
    (
        {**SPAN, "model__encoder": "HB-", "data__seq_len": 64},
        r"data\.seq_len: 64 is not .* longest sequence of hyena is 32",
    ),
]


@pytest.mark.parametrize(("fields", "problem"), REFUSED, ids=range(len(REFUSED)))
def test_an_objective_and_a_model_that_do_not_fit_are_refused_in_one_line(fields, problem, folder):
    with pytest.raises(ConfigError, match=problem) as error:
        made(fields, folder)
    assert "\n" not in str(error.value)


def test_identity_follows_the_objective_and_what_it_uses(folder):
    def identity(fields):
        return run_id(made(fields, folder), "f")

    plain = {"model__pattern": "A-"}
    assert identity(plain) == identity({**plain, "data__masked": {"rate": 0.4}, "data__span": {"density": 0.3}})
    assert identity(MASKED) != identity({**MASKED, "data__masked": {"rate": 0.4}})
    assert identity(MASKED) == identity({**MASKED, "data__span": {"density": 0.3}})
    assert identity(SPAN) != identity({**SPAN, "data__span": {"mean_length": 2.0}})
    assert identity(SPAN) != identity({**SPAN, "model__encoder": "BB-"})
    assert identity(DNA) != identity({**DNA, "data__dna": {"reverse_complement": "half"}})
    one = made(MASKED, folder)
    assert group_id(one, "f") == group_id(dataclasses.replace(one, seed=3), "f")
    assert group_id(one, "f") != group_id(made({**MASKED, "data__masked": {"rate": 0.4}}, folder), "f")
    for fields in (MASKED, SPAN, DNA):
        assert trial_from(trial_plain(made(fields, folder))) == made(fields, folder)
