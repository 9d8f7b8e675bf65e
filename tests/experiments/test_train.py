import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from experiments.evaluate import command as evaluate
from experiments.runs import RunFolder
from experiments.train import command
from hybrid.validation import ConfigError
from tests.experiments.studies import ROOT, Workshop, wait_for
from tests.experiments.training import quick

quick = pytest.fixture(autouse=True, scope="module")(quick)

MLP = 'dict(pattern="-", d_model=8, d_ff=8)'
HYBRID = 'dict(pattern="AMH-", d_model=16, n_heads=2, d_ff=16, hyena=dict(filter_length=32))'


def shop_of(folder, **files):
    folder.mkdir(exist_ok=True)
    shop = Workshop(folder, {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"})
    shop.write(**{"model": MLP, "sweep": "", **files})
    return shop


@pytest.fixture
def shop(tmp_path, monkeypatch):
    shop = shop_of(tmp_path)
    for name in ("HYBRID_DATA", "HYBRID_CACHE"):
        monkeypatch.setenv(name, shop.environment[name])
    return shop


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the smallest model, trained by the command; (its folder, what was printed)."""
    shop = shop_of(tmp_path_factory.mktemp("trained"))
    done = subprocess.run(
        [sys.executable, "-m", "experiments.train", *shop.arguments()],
        env=shop.environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return shop, done


def test_the_command_trains_the_base_config_and_says_how_it_ended(trained):
    shop, done = trained
    result = RunFolder(shop.workdir).result
    assert result["status"] == "done"
    assert re.search(r"done at step 20, validation loss \d\.\d{4} \(\d\.\d{4} bits per byte\), test loss", done.stdout)
    assert done.stderr == ""
    started = [event["event"] for event in RunFolder(shop.workdir).events()]
    assert (started[0], started[-1]) == ("start", "done")


def test_typed_again_it_says_that_all_is_done(trained, capsys):
    shop, _ = trained
    assert command(shop.arguments()) == 0
    assert "was done already: done at step 20" in capsys.readouterr().out


def test_another_value_in_the_same_folder_is_refused_by_its_field(trained):
    shop, _ = trained
    with pytest.raises(ConfigError) as error:
        command(shop.arguments("--config.optimizer.learning_rate=0.5"))
    assert error.value.field == "optimizer.learning_rate"
    assert "0.001" in str(error.value)


def test_evaluate_prints_the_scores_of_the_newest_checkpoint(trained, capsys, shop):
    folder = trained[0].workdir
    assert evaluate([str(folder), "--split=validation"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["loss"] == pytest.approx(RunFolder(folder).result["validation"]["loss"], rel=1e-5)
    assert (said["step"], said["split"], said["pattern"]) == (20, "validation", "-")


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["nowhere"], "FOLDER"),
        ([], "FOLDER"),
        (["{run}", "--split=train"], "--split"),
        (["{run}", "--sequences=0"], "--sequences"),
        (["{run}", "--splits=test"], "--splits"),
    ],
)
def test_evaluate_refuses_by_name(trained, arguments, field):
    with pytest.raises(ConfigError) as error:
        evaluate([word.format(run=trained[0].workdir) for word in arguments])
    assert error.value.field == field


def test_a_frozen_run_is_trained_again_in_its_folder_without_its_config_file(trained, shop, tmp_path, capsys):
    study = tmp_path / "study"
    folder = study / "trials" / "0123456789ab"
    RunFolder(folder).create(RunFolder(trained[0].workdir).record).fail("train", "RuntimeError: power cut")
    assert RunFolder(folder).status() == "failed"
    assert command([f"--workdir={study}", "--trial=0123456789ab"]) == 0
    assert RunFolder(folder).status() == "done"
    rows = [RunFolder(path).rows() for path in (folder, trained[0].workdir)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    assert command([f"--trial={folder / 'config.json'}"]) == 0
    assert "was done already" in capsys.readouterr().out


def refusals(tmp_path):
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "notes.txt").write_text("mine")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"trial": {"model": ')
    (tmp_path / "file").write_text("")
    return {
        "--workdir": [
            ["--config={config}", f"--workdir={strange}"],
            ["--config={config}", f"--workdir={tmp_path}/file"],
        ],
        "--trial": [
            [f"--trial={tmp_path}/nothing/config.json"],
            [f"--trial={strange}/notes.txt"],
            [f"--trial={broken}/config.json"],
            [f"--workdir={strange}", "--trial=0123"],
        ],
        "--config": [["--config={config}", f"--trial={broken}"], ["--config=nowhere.py", f"--workdir={tmp_path}/new"]],
        "model.d_model": [["--config={config}", f"--workdir={tmp_path}/new", "--config.model.d_model=-1"]],
        "data.folder": [["--config={config}", f"--workdir={tmp_path}/new", "--config.data.folder=/nowhere"]],
        "--workdirs": [["--config={config}", f"--workdirs={tmp_path}/new"]],
    }


def test_what_cannot_be_trained_is_refused_by_name_and_nothing_is_written(shop, tmp_path):
    cases = refusals(tmp_path)
    before = sorted(path for path in tmp_path.rglob("*"))
    for field, commands in cases.items():
        for words in commands:
            with pytest.raises(ConfigError) as error:
                command([word.format(config=shop.config) for word in words])
            assert error.value.field == field, words
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_refusals_and_help_do_not_import_jax(shop):
    code = f"""
import sys
from experiments.train import command
from hybrid.validation import ConfigError
try:
    command(["--config={shop.config}", "--workdir={shop.workdir}", "--config.model.d_model=0"])
except ConfigError as error:
    assert error.field == "model.d_model"
    assert not {{"jax", "orbax", "grain", "flax"}} & set(sys.modules)
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], env=shop.environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "refused\n", done.stderr


# --- real signals -----------------------------------------------------------------------------------------------------


def start(shop, *more):
    words = [sys.executable, "-m", "experiments.train", *shop.arguments(*more)]
    return subprocess.Popen(
        words, env=shop.environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def names(run):
    return [event["event"] for event in run.events()]


@pytest.mark.slow
def test_sigterm_and_ctrl_c_save_at_the_current_step(shop):
    run = RunFolder(shop.workdir)
    long = ("--config.train.steps=1000000", "--config.checkpoint.every=1000000", "--config.evaluate.every=1000000")
    for number, (code, event) in {signal.SIGTERM: (143, 1), signal.SIGINT: (130, 2)}.items():
        rows = len(run.rows())
        with start(shop, *long) as process:
            wait_for(lambda rows=rows: len(run.rows()) > rows + 3, seconds=120)
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        assert process.returncode == code, err
        assert "stopped and saved" in err
        assert names(run).count("stopped") == event
        stopped = [row for row in run.events() if row["event"] in ("stopped", "checkpoint")]
        assert stopped[-1]["step"] == stopped[-2]["step"] >= run.rows()[-1]["step"]
        assert out == ""
    assert names(run).count("resume") == 1


def wait_until_it_goes_on(run, process):
    """To a checkpoint that was not there, or to the end."""
    before = run.reached()
    wait_for(lambda: run.reached() > before or process.poll() is not None, 120)


@pytest.mark.slow
def test_real_kills_change_no_bit(tmp_path):
    """kill -9 at random times of a run with attention, Mamba, Hyena and dropout, until it is done."""
    lines = "c.train.steps = 60; c.train.log_every = 1; c.checkpoint.every = 4; c.model.dropout = 0.1"
    straight, killed = (shop_of(tmp_path / name, model=HYBRID, lines=lines) for name in ("straight", "killed"))
    with start(straight) as process:
        assert process.wait(timeout=300) == 0
    run, moment, kills = RunFolder(killed.workdir), random.Random(os.environ.get("HYBRID_KILL_SEED", "0")), 0
    while run.result is None:
        with start(killed) as process:
            if kills < 4:
                wait_until_it_goes_on(run, process)
                time.sleep(moment.uniform(0, 0.2))
                kills += process.poll() is None
                process.kill()
            assert process.wait(timeout=300) in (0, -signal.SIGKILL)
    assert kills >= 3
    assert (killed.workdir / "metrics.jsonl").read_bytes() == (straight.workdir / "metrics.jsonl").read_bytes()
    digests = [
        json.loads((shop.workdir / "checkpoints/60/meta/metadata").read_text())["digests"]
        for shop in (straight, killed)
    ]
    assert digests[0] == digests[1]
    assert len(digests[0]) > 60
