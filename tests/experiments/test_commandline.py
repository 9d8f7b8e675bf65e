"""Flags and config files: what is read, as which type, and that nothing is executed that is not the config itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.commandline import parse
from experiments.configfile import ConfigFile, fields, read
from experiments.study import describe
from hybrid.validation import ConfigError

FLAGS = ("config", "workdir", "dry_run", "workers")


def test_flags_are_read_with_and_without_equals_sign():
    words = ["--config", "a.py", "--workdir=b", "--dry_run", "--workers", "3", "--config.model.d_model", "8"]
    options = parse([*words, "--config.arm=x=y"], None, FLAGS)
    assert (options.config, options.workdir, options.dry_run, options.workers) == (Path("a.py"), Path("b"), True, 3)
    assert options.overrides == (("model.d_model", "8"), ("arm", "x=y"))


def test_negative_values_follow_their_flag_without_an_equals_sign():
    assert parse(["--config.optimizer.weight_decay", "-1"], None, FLAGS).overrides == (
        ("optimizer.weight_decay", "-1"),
    )


def test_switch_can_be_turned_off():
    assert parse(["--dry_run=false"], None, FLAGS).dry_run is False


def test_command_knows_only_its_own_flags():
    with pytest.raises(ConfigError, match="--trial: unknown flag"):
        parse(["--trial=x"], None, FLAGS)
    with pytest.raises(ConfigError, match="unknown flag"):
        parse(["--config.seed=1"], None, ("workdir",))


def test_help_prints_the_doc_and_every_flag(capsys):
    with pytest.raises(SystemExit) as end:
        parse(["--workers=0", "--help"], "What it does.", FLAGS)
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("What it does.\n") and all(f"--{name}" in text for name in FLAGS)
    assert "--config.FIELD=VALUE" in text and "--trial" not in text


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("model.d_model", "256", 256),
        ("model.d_model", "1e3", 1000),
        ("train.steps", "1_000", 1000),
        ("optimizer.learning_rate", "3e-4", 3e-4),
        ("optimizer.learning_rate", "1", 1.0),
        ("optimizer.clip_norm", "None", None),
        ("optimizer.clip_norm", "2", 2.0),
        ("model.d_ff", "none", None),
        ("model.tie_embeddings", "False", False),
        ("model.tie_embeddings", "true", True),
        ("model.scan_layers", "true", True),
        ("model.scan_layers", "auto", "auto"),
        ("optimizer.schedule", "wsd", "wsd"),
        ("model.ratio", "1:7", "1:7"),
        ("model.ratio", "0.25", 0.25),
        ("model.placement", "even", "even"),
        ("model.placement", "0,3", (0, 3)),
        ("model.placement", "(1,)", (1,)),
        ("tracking.tags", "a,b", ("a", "b")),
        ("tracking.tags", "('a', 'b')", ("a", "b")),
        ("tracking.tags", "(a,)", ("a",)),
        ("tracking.tags", "()", ()),
        (
            "study.tune",
            "optimizer.learning_rate,optimizer.weight_decay",
            ("optimizer.learning_rate", "optimizer.weight_decay"),
        ),
        ("model.pattern", "(M-)3A-", "(M-)3A-"),
        ("arm", "None", "None"),
        ("model.mamba.d_state", "8", 8),
        ("model.match.parameters", "1e6", 1_000_000),
        ("model.symbols", "{'w': {'kind': 'A'}}", {"w": {"kind": "A"}}),
    ],
)
def test_text_is_read_by_the_type_of_its_field(name, text, expected):
    value = read(name, text)
    assert value == expected and type(value) is type(expected)


def test_text_is_never_evaluated(tmp_path):
    marker = tmp_path / "marker"
    text = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    for name in fields():
        try:
            read(name, text)
        except ConfigError:
            continue
    assert not marker.exists()


def test_every_field_of_the_groups_can_be_named():
    names = set(fields())
    assert {
        "model.d_model",
        "model.mamba.d_state",
        "model.ratio",
        "model.match.by",
        "data.source",
        "seed",
        "arm",
    } <= names
    assert not any(name.endswith(".groups") for name in names)


CONFIG = """
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder
import numpy as np

def get_config():
    c = ConfigDict({"model": {"d_model": 16}, "train": {"steps": 100}, "optimizer": {"clip_norm": placeholder(float)}})
    c.model.d_ff = c.model.get_ref("d_model") * 4
    c.optimizer.warmup_steps = np.int64(3)
    c.tracking = ConfigDict({"tags": ("a", "b")})
    return c.lock()
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "study.py").write_text(CONFIG)
    return ConfigFile(tmp_path / "study.py")


def test_config_is_plain_values_and_references_follow_overrides(file):
    values = file.values([("model.d_model", 32), ("optimizer.clip_norm", 2.0), ("data.source", "stdlib")])
    assert values == {
        "model": {"d_model": 32, "d_ff": 128},
        "train": {"steps": 100},
        "optimizer": {"clip_norm": 2.0, "warmup_steps": 3},
        "tracking": {"tags": ("a", "b")},
        "data": {"source": "stdlib"},
    }
    assert type(values["optimizer"]["warmup_steps"]) is int
    assert file.values()["optimizer"]["clip_norm"] is None
    assert file.values()["model"] == {"d_model": 16, "d_ff": 64}, "an override stays in its own trial"


def test_config_file_leaves_nothing_beside_it(file):
    assert os.listdir(file.path.parent) == ["study.py"]
    assert file.points() is None


def test_override_may_change_the_type_that_the_file_gave(file):
    assert file.values([("model.d_ff", None)])["model"]["d_ff"] is None
    assert file.values([("tracking.tags", ())])["tracking"]["tags"] == ()


def test_names_are_shortened_only_where_they_stay_apart():
    assert describe({"model.d_model": 8, "optimizer.learning_rate": 1e-3}) == "d_model=8 learning_rate=0.001"
    assert describe({"model.a.x": 1, "model.b.x": (1, 2)}) == "model.a.x=1 model.b.x=1,2"


SCRIPT = """
import sys
from experiments.commandline import main
from experiments.files import Held
from hybrid.validation import ConfigError
from pathlib import Path

def command(argv):
    print("output")
    {body}

main(command)
"""


@pytest.mark.parametrize(
    ("body", "code", "err"),
    [
        ("return 3", 3, ""),
        ("return None", 0, ""),
        ("raise ConfigError('train.steps', 'two\\n  lines')", 2, "error: train.steps: two lines\n"),
        ("raise Held(Path('runs/x/lock'), 12, 'here')", 2, "error: --workdir: runs/x is held by process 12 on here\n"),
        ("raise KeyboardInterrupt", 130, ""),
        ("raise OSError(28, 'No space left on device', 'f')", 2, "error: [Errno 28] No space left on device: 'f'\n"),
    ],
)
def test_ends_of_a_command_have_their_exit_codes_and_no_traceback(body, code, err):
    result = subprocess.run([sys.executable, "-c", SCRIPT.format(body=body)], capture_output=True, text=True)
    assert (result.returncode, result.stderr, result.stdout) == (code, err, "output\n")


def test_errors_of_the_program_itself_keep_their_traceback():
    command = [sys.executable, "-c", SCRIPT.format(body="raise RuntimeError('a bug')")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1 and "Traceback" in result.stderr


def test_reader_that_goes_away_is_no_error():
    command = [sys.executable, "-c", SCRIPT.format(body="print('x' * 10**6)")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 141
