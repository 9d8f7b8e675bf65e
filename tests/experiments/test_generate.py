"""The command that continues a prompt: from each form of weights, as a program, and what it refuses."""

from __future__ import annotations

import dataclasses
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hybrid
from experiments.checkpoint import Checkpoints
from experiments.data.tokenizers import Bytes
from experiments.generate import command
from experiments.states import host, saved
from experiments.step import Program
from experiments.weights import find
from hybrid.interop.gguf_tokenizer import read_tokenizer
from hybrid.validation import ConfigError
from tests.experiments.training import run_of, trial
from tests.interop import gguf_files as files

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # see test_checkpoint.py

WORDS = ["<end>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "Ċ", ",", ".", "th", "Ã", "©", "<user>", "!", "?", "-", "'", ";"]
TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": WORDS,
    "tokenizer.ggml.token_type": [3 if word.startswith("<") else 1 for word in WORDS],
    "tokenizer.ggml.merges": ["t h"],
    "tokenizer.ggml.eos_token_id": 0,
}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    assert len(WORDS) == files.VOCABULARY
    tensors = files.weights(seed=4)
    tensors["token_embd.weight"][0] = 0.0  # the end is unlikely
    return files.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tensors, more=TOKENIZER)


@pytest.fixture(scope="module")
def published(gguf, tmp_path_factory):
    """The same model as a folder of Hugging Face."""
    folder = tmp_path_factory.mktemp("published")
    config, params = hybrid.from_gguf(gguf)
    hybrid.to_huggingface(config, params, folder, family="llama")
    read_tokenizer(TOKENIZER).save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text('{"eos_token_id": [34]}')
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of ours with a checkpoint of its initial values."""
    one = trial(model__pattern="AM-", model__init_std=0.5)
    folder = run_of(one, tmp_path_factory.mktemp("run") / "run")
    program = Program(one)
    with Checkpoints(folder.checkpoints, keep=1) as checkpoints:
        state = dataclasses.replace(program.init(program.values(one)), step=np.int32(7))
        checkpoints.save(7, host(saved(state)), {})
        checkpoints.wait()
    return folder


def text_of(capsys, *arguments):
    assert command(list(arguments)) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    return shown.out


def test_a_gguf_file_goes_on_as_generate_does(gguf, capsys):
    config, params = hybrid.from_gguf(gguf)
    tokenizer = read_tokenizer(TOKENIZER)
    tokens = tokenizer.encode("the cat").ids
    assert tokens == [WORDS.index(word) for word in ("th", "e", "Ġ", "c", "a", "t")]
    wanted = hybrid.generate(config, params, jnp.asarray([tokens]), 12)[0].tolist()
    assert 0 not in wanted and len(set(wanted)) > 3
    assert text_of(capsys, f"--weights={gguf}", "--prompt=the cat", "--steps=12") == tokenizer.decode(wanted)
    drawn = hybrid.generate(config, params, jnp.asarray([tokens]), 12, key=jax.random.key(3), temperature=1.0, top_k=5)
    found = text_of(capsys, f"--weights={gguf}", "--prompt", "the cat", "--steps=12", "--seed=3", "--top_k=5")
    assert found == tokenizer.decode(drawn[0].tolist())


def test_a_folder_of_hugging_face_gives_the_text_of_the_gguf_file(gguf, published, capsys):
    options = ("--prompt=a th", "--steps=10", "--temperature=0.9", "--top_p=0.9", "--seed=5")
    found = text_of(capsys, f"--weights={published}", *options)
    assert found == text_of(capsys, f"--weights={gguf}", *options) and len(found) > 4


@pytest.mark.parametrize(
    ("template", "prompt", "empty"),
    [
        ("$A", [2, 3], []),
        ("<s> $A", [0, 2, 3], [0]),
        ("<s> $A </s>", [0, 2, 3], [0]),
        ("$A </s>", [2, 3], []),
        ("<s> <s> $A </s> </s>", [0, 0, 2, 3], [0, 0]),
    ],
)
def test_a_prompt_has_what_stands_before_a_text_and_not_what_ends_it(published, tmp_path, template, prompt, empty):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    library = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 34, "a": 2, "b": 3, "?": 4}, unk_token="?"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [("<s>", 0), ("</s>", 34)]
    library.post_processor = processors.TemplateProcessing(single=template, special_tokens=marks)
    folder = shutil.copytree(published, tmp_path / "model")
    library.save(str(folder / "tokenizer.json"))
    text = find(folder).text
    assert text.ends == {34}
    assert (text.encode("a b"), text.encode("")) == (prompt, empty)


def test_a_run_goes_on_from_its_own_tokens(run, capsys):
    one = text_of(capsys, f"--weights={run.path}", "--prompt=cat", "--steps=9", "--seed=1")
    params = jax.tree.map(np.asarray, find(run.path).params())
    tokens = jnp.array([[256, *b"cat"]])
    drawn = hybrid.generate(find(run.path).config, params, tokens, 9, key=jax.random.key(1), temperature=1.0)[0]
    assert one == Bytes().decode(drawn.tolist()) and 256 not in drawn
    assert one == text_of(capsys, f"--weights={run.path}", "--prompt=cat", "--steps=9", "--seed=1")
    assert one != text_of(capsys, f"--weights={run.path}", "--prompt=cat", "--steps=9", "--seed=2")
    assert text_of(capsys, f"--weights={run.path}", "--prompt=", "--steps=9", "--seed=1") != ""


def test_stop_strings_end_the_text_and_are_not_shown(gguf, capsys):
    whole = text_of(capsys, f"--weights={gguf}", "--prompt=the cat", "--steps=12")
    first, second = whole[6:8], whole[3:5]
    arguments = (f"--weights={gguf}", "--prompt=the cat", "--steps=12", f"--stop={first}", f"--stop={second}")
    assert text_of(capsys, *arguments) == whole[: min(whole.index(first), whole.index(second))]


def test_the_text_ends_where_the_model_ends_it(tmp_path, capsys):
    tensors = files.weights(seed=4)
    tensors["output_norm.weight"] = np.zeros(files.WIDTH, np.float32)  # all tokens alike: the likeliest is the first
    path = files.write(tmp_path / "ends.gguf", tensors, more=TOKENIZER)
    assert text_of(capsys, f"--weights={path}", "--prompt=the cat") == ""


# --- as a program -----------------------------------------------------------------------------------------------------


def start(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.generate", *map(str, arguments)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **environment},
    )  # fmt: skip


def test_ctrl_c_ends_it_and_keeps_what_was_shown(run):
    process = start(f"--weights={run.path}", "--prompt=cat", "--steps=100000", "--seed=1")
    begun = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"")
    assert len((begun + out).decode(errors="ignore")) < 90_000


def test_a_reader_that_has_enough_ends_it(run):
    process = start(f"--weights={run.path}", "--prompt=cat", "--steps=100000", "--seed=1")
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bad(tmp_path_factory, gguf, published, run):
    """A folder of things that are no weights."""
    folder = tmp_path_factory.mktemp("bad")
    for name in ("empty", "study", "strange", "torn", "bare", "queued"):
        (folder / name).mkdir()
    (folder / "study" / "manifest.json").write_text("{}")
    (folder / "strange" / "config.json").write_text('{"model_type": "lama"}')
    (folder / "torn" / "config.json").write_text('{"model_type": "ll')
    for name in ("config.json", "model.safetensors"):
        (folder / "bare" / name).write_bytes((published / name).read_bytes())
    (folder / "queued" / "config.json").write_bytes((run.path / "config.json").read_bytes())
    (folder / "text.gguf").write_text("no weights at all")
    files.write(folder / "gemma.gguf", files.weights(), architecture="gemma3")
    (folder / "gguf").symlink_to(gguf)
    (folder / "run").symlink_to(run.path)
    no_jax = folder / "no_jax"
    no_jax.mkdir()
    for name in ("jax", "orbax", "flax", "grain", "torch"):
        (no_jax / f"{name}.py").write_text(f"raise RuntimeError('{name} was imported')")
    return folder


PROMPT = "--prompt=the"
BAD = {
    "nothing": ((), ("--weights", "must be given")),
    "no prompt": (("--weights={}/gguf",), ("--prompt", "must be given, as --prompt=TEXT")),
    "no such path": (("--weights={}/none", PROMPT), ("--weights", "is not there", "GGUF")),
    "empty folder": (("--weights={}/empty", PROMPT), ("--weights", "no config.json")),
    "study": (("--weights={}/study", PROMPT), ("is a study", "trials/ID")),
    "model type, near miss": (("--weights={}/strange", PROMPT), ("model_type", "'lama'", "did you mean 'llama'?")),
    "torn config": (("--weights={}/torn", PROMPT), ("--weights", "config.json")),
    "no tokenizer": (("--weights={}/bare", PROMPT), ("no tokenizer.json",)),
    "run without checkpoint": (("--weights={}/queued", PROMPT), ("no checkpoint yet",)),
    "no GGUF": (("--weights={}/text.gguf", PROMPT), ("is no GGUF file",)),
    "architecture": (("--weights={}/gemma.gguf", PROMPT), ("'gemma3'", "only 'llama'")),
    "no steps": (("--weights={}/run", PROMPT, "--steps=0"), ("--steps", "'0'", "at least 1")),
    "steps over the limit": (("--weights={}/short", PROMPT, "--steps=14"), ("--steps", "14", "takes 16 tokens")),
    "negative temperature": (("--weights={}/run", PROMPT, "--temperature=-1"), ("--temperature", "'-1'", "at least 0")),
    "temperature nan": (("--weights={}/run", PROMPT, "--temperature=nan"), ("--temperature", "'nan'")),
    "top_k of zero": (("--weights={}/run", PROMPT, "--top_k=0"), ("--top_k", "'0'", "at least 1")),
    "top_p over one": (("--weights={}/run", PROMPT, "--top_p=1.5"), ("--top_p", "'1.5'", "at most 1")),
    "top_p of zero": (("--weights={}/run", PROMPT, "--top_p=0"), ("--top_p", "'0'", "above 0")),
    "empty stop": (("--weights={}/run", PROMPT, "--stop="), ("--stop", "must be given")),
    "seed as a word": (("--weights={}/run", PROMPT, "--seed=one"), ("--seed", "'one'")),
    "flag, near miss": (("--weight={}/run", PROMPT), ("--weight", "did you mean '--weights'?")),
    "dashes": (("--weights={}/run", PROMPT, "--top-k=3"), ("did you mean '--top_k'?",)),
    "word": (("{}/run", PROMPT), ("is not a flag", "--weights")),
    "twice": (("--weights={}/run", PROMPT, PROMPT), ("--prompt", "twice")),
    "no value": (("--weights={}/run", "--prompt"), ("--prompt", "must be given a value")),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_at_once_and_without_jax(name, bad, short):
    arguments, words = BAD[name]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = start(*(argument.format(bad) for argument in arguments), PYTHONPATH=str(bad / "no_jax"))
    out, err = process.communicate(timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = err.decode()
    assert (process.returncode, out) == (2, b""), line
    assert line.startswith("error: ") and line.count("\n") == 1 and all(word in line for word in words), line
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


@pytest.fixture(scope="module")
def short(bad):
    """A run of a model that takes 16 tokens."""
    one = trial(model__pattern="H", model__hyena={"filter_length": 16})
    run_of(one, bad / "short")
    (bad / "short" / "checkpoints" / "5").mkdir(parents=True)


def test_settings_of_a_gguf_file_are_refused_under_the_flag(tmp_path):
    path = files.write(tmp_path / "a.gguf", files.weights(), more={**TOKENIZER, "tokenizer.ggml.model": "llama"})
    with pytest.raises(ConfigError, match=r"--weights: tokenizer.ggml.model: 'llama' is not allowed"):
        command([f"--weights={path}", "--prompt=a"])
