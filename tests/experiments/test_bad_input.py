"""What a person can get wrong, through the real command: exit code 2, one line that helps, at once, nothing written."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import pytest

from tests.experiments.studies import PATTERN, Workshop


@dataclass(frozen=True)
class Case:
    """Arguments after --config and --workdir, or a changed config; the line must hold all of `words`."""

    words: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    config: dict[str, str] = field(default_factory=dict)
    bare: bool = False
    """The arguments are all there are."""


def value(setting: str, *words: str, **config: str) -> Case:
    """An override and what the line must say beside the name of its field."""
    name = setting.partition("=")[0]
    return Case((name, *words), (f"--config.{setting}",), config)


def pattern(text: str, *words: str) -> Case:
    return Case(("model.pattern", *words), (f"--config.model.pattern={text}",), {"model": PATTERN, "sweep": ""})


def placed(setting: str, *words: str) -> Case:
    return value(setting, *words, sweep="")


def lines(text: str, *words: str) -> Case:
    return Case(words, (), {"lines": text, "sweep": ""})


def sweep(body: str, *words: str) -> Case:
    return Case(words, (), {"sweep": f"def sweep():\n    {body}"})


CASES = {
    # names
    "field, near miss": value("model.d_modle=32", "did you mean 'd_model'?", "allowed: pattern"),
    "group, near miss": value("modle.d_model=32", "'modle'", "did you mean 'model'?", "data, optimizer"),
    "field in no group": value("learning_rate=1", "did you mean 'optimizer.learning_rate'?"),
    "field without near miss": value("train.zzz=1", "unknown field", "allowed: steps, log_every"),
    "group as a value": value("model=5", "is a group of fields", "d_model"),
    "field below a value": value("train.steps.x=1", "'train.steps' is a value"),
    "kind's field, near miss": value("model.mamba.d_stat=4", "did you mean 'd_state'?"),
    # types
    "text for an integer": value("model.d_model=abc", "'abc'", "integer at least 1"),
    "fraction for an integer": value("model.d_model=12.5", "'12.5'", "integer"),
    "boolean for an integer": value("train.steps=true", "'true'", "integer"),
    "text for a boolean": value("model.tie_embeddings=yes", "'yes'", "True or False"),
    "text for a tuple": value("tracking.tags=quick", "'quick'", "(quick,)"),
    "text for a tuple of fields": value("study.tune=optimizer.learning_rate", "(optimizer.learning_rate,)"),
    "nothing for a number": value("train.steps=", "''", "integer"),
    # ranges
    "negative width": value("model.d_model=-16", "-16", "at least 1"),
    "zero width": value("model.d_model=0", "0", "at least 1"),
    "nan": value("optimizer.learning_rate=nan", "nan", "finite", sweep=""),
    "infinite": value("optimizer.learning_rate=1e400", "inf", "finite", sweep=""),
    "negative rate": value("optimizer.learning_rate=-1e-3", "-0.001", "above 0", sweep=""),
    "zero batch": value("data.batch_size=0", "0", "at least 1"),
    "dropout of one": value("model.dropout=1", "1.0", "below 1"),
    "momentum above one": value("optimizer.b2=1.5", "1.5", "below 1"),
    "negative clipping": value("optimizer.clip_norm=-1", "-1", "above 0"),
    "no steps": value("train.steps=0", "0", "at least 1"),
    "no checkpoints": value("checkpoint.every=0", "0", "at least 1"),
    "no evaluation": value("evaluate.every=0", "0", "at least 1"),
    "negative seed": value("seed=-1", "-1", "at least 0"),
    "no seeds": value("study.seeds=0", "0", "at least 1"),
    # words
    "schedule, near miss": value("optimizer.schedule=cosin", "'cosin'", "did you mean 'cosine'?", "constant"),
    "norm": value("model.norm=rms", "'rms'", "did you mean 'rmsnorm'?", "layernorm"),
    "scan form": value("model.mamba.scan=fast", "'fast'", "sequential"),
    "tracking mode": value("tracking.mode=on", "'on'", "online", "off"),
    "score": value("study.score=accuracy", "'accuracy'", "bits_per_byte"),
    "packing, near miss": value("data.packing=document", "'document'", "did you mean 'documents'?"),
    # several fields
    "heads that do not divide": value("model.n_heads=3", "3"),
    "warm-up longer than training": value("optimizer.warmup_steps=21", "21", "train.steps = 20"),
    "parts that do not divide": value("optimizer.accumulate=3", "3", "data.batch_size = 4"),
    "mesh that does not divide": Case(("data.batch_size", "4", "3 devices"), ("--config.mesh.data=3",)),
    "rows that the devices do not divide": value("mesh.sequence=3", "3", "must divide"),
    "devices for experts that are not there": value("mesh.expert=2", "2", "no experts (E)"),
    "vocabulary of bytes": value("data.vocab_size=300", "300", "bytes"),
    "bpe without vocabulary": Case(("data.vocab_size", "must be given"), ("--config.data.tokenizer=bpe",)),
    "vocabulary too large": Case(
        ("data.vocab_size", "70000", "65536"), ("--config.data.tokenizer=bpe", "--config.data.vocab_size=70000")
    ),
    "window over length": Case(
        ("data.seq_len", "32", "max_length is 8"),
        ("--config.model.positions=learned", "--config.model.max_length=8"),
    ),
    "learned positions without length": Case(
        ("model.max_length", "must be given"), ("--config.model.positions=learned",)
    ),
    "baseline that is no arm": value("study.baseline=M-M-A-", "'M-M-A-'", "did you mean 'M-M-A-M-'?", "allowed:"),
    "tuned field unknown": value("study.tune=(optimizer.lr,)", "optimizer.lr", "unknown field"),
    # patterns
    "unknown symbol": pattern("M-Q-", "'Q'"),
    "unbalanced open": pattern("(M-A-", "("),
    "unbalanced close": pattern("M-A-)", ")"),
    "count of zero": pattern("M0A-", "0"),
    "no pattern": pattern("", "must be given"),
    "letter not defined": Case(
        ("model.symbols", "'w'"), ("--config.model.pattern=M-w-",), {"model": PATTERN, "sweep": ""}
    ),
    "memory without an encoder": Case(
        ("model.encoder", "must be given", "X (cross_attention)"),
        ("--config.model.pattern=AX-",),
        {"model": PATTERN, "sweep": ""},
    ),
    "not causal": pattern("B-M-", "B"),
    "pattern and mixers": Case(("model.mixers", "pattern"), ("--config.model.pattern=M-A-",), {"sweep": ""}),
    # placements
    "ratio that cannot be realised": placed("model.ratio=1:6", "1:6"),
    "ratio that is none": placed("model.ratio=half", "half"),
    "placement, near miss": placed("model.placement=evne", "evne", "'even'"),
    "ratio and count": Case(("model.", "ratio", "count"), ("--config.model.count=1",), {"sweep": ""}),
    "more than there are mixers": Case(
        ("model.count", "9"), ("--config.model.ratio=None", "--config.model.count=9"), {"sweep": ""}
    ),
    "base unknown": placed("model.base=Q", "Q"),
    "match out of reach": Case(
        ("model.match.parameters", "10"), ("--config.model.match.parameters=10", "--config.model.match.by=d_ff")
    ),
    # data
    "source, near miss": Case(
        ("data.source", "'shakespear'", "'shakespeare'"), ("--config.data.source=shakespear", "--config.data.folder=")
    ),
    "missing folder": value("data.folder=/no/such/folder", "/no/such/folder"),
    "folder of another source": Case(("data.folder", "'folder'"), ("--config.data.source=stdlib",)),
    "sequence longer than the text": value("data.seq_len=1000000", "1000000"),
    "evaluation longer than the text": value("evaluate.sequences=1000000", "1000000"),
    # flags
    "positional override": Case(
        ("config.train.steps=3", "did you mean '--config.train.steps=3'?"), ("config.train.steps=3",)
    ),
    "one dash": Case(("-dry_run", "did you mean '--dry_run'?"), ("-dry_run",)),
    "word": Case(("train", "is not a flag", "--workdir"), ("train",)),
    "flag, near miss": Case(("--work_dir", "did you mean '--workdir'?", "--workers"), ("--work_dir=x",)),
    "flag twice": Case(("--workers", "twice", "'1' and '2'"), ("--workers=1", "--workers=2")),
    "override twice": Case(("--config.seed", "twice"), ("--config.seed=1", "--config.seed=2")),
    "no workers": Case(("--workers", "'0'", "at least 1"), ("--workers=0",)),
    "workers as a word": Case(("--workers", "'two'", "integer"), ("--workers=two",)),
    "switch with a strange value": Case(("--dry_run", "'maybe'", "true or false"), ("--dry_run=maybe",)),
    "stage, near miss": Case(("--stage", "'tunes'", "did you mean 'tune'?", "confirm"), ("--stage=tunes",)),
    "no workdir": Case(("--workdir", "must be given"), ("--config={config}",), bare=True),
    "no config": Case(("--config", "must be given"), ("--workdir={workdir}",), bare=True),
    "flag without its value": Case(
        ("--config", "must be given a value"), ("--workdir={workdir}", "--config"), bare=True
    ),
    "config that is not there": Case(
        ("--config", "conffig.py", "did you mean", "config.py"),
        ("--config={folder}/conffig.py", "--workdir={workdir}"),
        bare=True,
    ),
    "config that is a folder": Case(
        ("--config", "is not a file"), ("--config={folder}", "--workdir={workdir}"), bare=True
    ),
    "override without a config": Case(
        ("--config.seed", "--config=FILE"), ("--workdir={workdir}", "--config.seed=1"), bare=True
    ),
    "override of what is swept": Case(("--config.model.placement", "sweep()"), ("--config.model.placement=last",)),
    # config files
    "syntax error": Case(("config.py:1", "--config"), config={"lines": "pass", "sweep": "def sweep(:"}),
    "error in get_config": lines("c.model.d_ff = 1 / 0", "config.py:16", "ZeroDivisionError"),
    "error at import": Case(("config.py:19", "NameError", "ratios"), config={"sweep": "RATIOS = ratios"}),
    "no get_config": Case(("--config", "get_config()"), config={"sweep": "del get_config"}),
    "get_config gives a number": lines("return 3", "get_config()", "int", "ConfigDict"),
    "unknown key in the file": lines("c.optimizer.lr = 1.0", "optimizer.lr", "unknown field", "learning_rate"),
    "unknown group in the file": lines("c.optimiser = ConfigDict()", "optimiser", "did you mean 'optimizer'?"),
    "text for a tuple in the file": lines('c.tracking.tags = "quick"', "tracking.tags", "'quick'", "a tuple"),
    "boolean for an integer in the file": lines("c.train.steps = True", "train.steps", "True", "integer"),
    "nan in the file": lines('c.optimizer.weight_decay = float("nan")', "optimizer.weight_decay", "nan"),
    "function as a value": lines("c.model.d_ff = max", "model.d_ff", "max", "a number"),
    "placeholder not filled": lines(
        "c.model.d_ff = required_placeholder(int)", "model.d_ff", "--config.model.d_ff=VALUE"
    ),
    "group missing": lines("del c.train", "train", "must be given"),
    "value where a group is meant": lines("del c.train; c.train = 5", "train", "must be given, as a group"),
    # sweeps
    "empty sweep": sweep("return []", "sweep", "empty"),
    "sweep that is no list": sweep("return 3", "sweep", "3", "list of {field: value}"),
    "sweep of texts": sweep('return ["a"]', "sweep", "list of {field: value}"),
    "duplicate trial": sweep('return [{"train.steps": 5}, {"train.steps": 5}]', "points 0 and 1", "steps=5"),
    "sweep of an unknown field": sweep('return [{"train.step": 5}]', "train.step", "did you mean 'steps'?", "point 0"),
    "sweep of seeds": sweep('return [{"seed": 1}]', "seed", "study.seeds"),
    "sweep of the study": sweep('return [{"study.seeds": 1}]', "study.seeds", "get_config()"),
    "bad point": sweep(
        'return [{"train.steps": 5}, {"train.steps": -5}]', "train.steps", "-5", "at least 1", "point 1 of sweep()"
    ),
    "arm of two things": sweep(
        'return [{"model.d_model": 16, "arm": "x"}, {"model.d_model": 32, "arm": "x"}]', "arm", "'x'", "model.d_model"
    ),
    "error of the grid": sweep('return axis("train.steps", 5)', "train.steps", "axis", "config.py:20"),
    "lengths that differ": sweep(
        'return zipped(axis("train.steps", [5, 6]), axis("data.seq_len", [8]))', "sweep", "2 and 1"
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_at_once_and_nothing_is_written(name, workshop, warm, no_jax):
    case = CASES[name]
    workshop.write(**case.config)
    places = {"config": workshop.config, "workdir": workshop.workdir, "folder": workshop.folder}
    arguments = [argument.format(**places) if case.bare else argument for argument in case.arguments]
    result = workshop.command(*(arguments if case.bare else workshop.arguments(*arguments)), PYTHONPATH=no_jax)
    assert result.code == 2, result.out + result.err
    assert result.err.startswith("error: ") and result.err.count("\n") == 1, result.err
    missing = [word for word in case.words if word not in result.err]
    assert not missing, f"{missing} not in: {result.err}"
    assert result.out == ""
    assert sorted(os.listdir(workshop.folder)) == ["config.py"]
    assert result.cpu < 1.0, f"{result.cpu:.2f} s of processor time"


def test_there_are_at_least_sixty_bad_inputs():
    assert len(CASES) >= 60


@pytest.fixture
def no_jax(tmp_path_factory):
    """A PYTHONPATH on which importing jax, or anything else that takes seconds, is an error."""
    folder = tmp_path_factory.mktemp("no_jax")
    for name in ("jax", "grain", "orbax", "flax", "polars", "matplotlib", "wandb", "tensorflow_datasets"):
        (folder / f"{name}.py").write_text(f"raise RuntimeError('{name} was imported')")
    return str(folder)


# --- folders ----------------------------------------------------------------------------------------------------------


def refused(shop: Workshop, workdir: object, *words: str, config: bool = True) -> None:
    arguments = [f"--config={shop.config}"] if config else ["--status"]
    result = shop.command(*arguments, f"--workdir={workdir}")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1), result.err
    assert all(word in result.err for word in ("error: --workdir: ", *words)), result.err


def test_folders_that_cannot_hold_a_study_are_refused_and_left_as_they_are(workshop, warm):
    file = workshop.folder / "file"
    file.write_text("mine")
    refused(workshop, file, "is not a folder")
    refused(workshop, file / "below", "is not a folder")
    refused(workshop, "/proc/hybrid", "cannot be written" if os.getuid() else "/proc/hybrid")
    refused(workshop, workshop.folder, "holds 'config.py' and no study")
    refused(workshop, workshop.folder / "none", "holds no study", config=False)
    assert sorted(os.listdir(workshop.folder)) == ["config.py", "file"] and file.read_text() == "mine"
    damaged = workshop.folder / "damaged"
    damaged.mkdir()
    (damaged / "manifest.json").write_text('{"study": "ti')
    refused(workshop, damaged, "manifest.json cannot be read")
    refused(workshop, damaged, "manifest.json cannot be read", config=False)
    assert os.listdir(damaged) == ["manifest.json"]
