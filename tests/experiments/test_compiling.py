import re

import pytest

from experiments.tally import shares, tally
from tests.experiments.studies import Workshop

MODEL = 'dict(pattern="-", d_model=8, d_ff=8)'
RATES = """
def sweep():
    return axis("optimizer.learning_rate", [1e-3, 2e-3, 3e-3, 4e-3])
"""
POPULATION = "c.train.population = 2"


@pytest.fixture
def shop(tmp_path):
    """A study of one architecture at four rates and one more seed, with a cache of its own, trained in earnest."""
    variables = {
        "HYBRID_TRAINER": "experiments.loop:train",
        "HYBRID_CACHE": str(tmp_path / "cache"),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    (tmp_path / "shop").mkdir()
    shop = Workshop(tmp_path / "shop", variables)
    shop.environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # that of these tests
    return shop


def write(shop, lines="pass"):
    shop.write(model=MODEL, sweep=RATES, lines=lines)


def test_two_workers_compile_each_program_of_a_study_once(shop):
    """Both begin with runs of one group at the same time."""
    write(shop)
    done = shop.sweep("--workers=2")
    assert done.code == 0, done.err
    assert "3 compilations of 3 programs, 3 from the cache" in done.out
    made = shop.events("compiled")
    assert sorted(event["program"] for event in made if not event["cached"]) == ["eval", "init", "train"]
    assert len({event["pid"] for event in shop.events("start")}) == 2
    assert re.search(r"steps waited \d+\.\d% of their time for data, and \d+\.\d% at most for the loop", done.out)
    status = shop.command("--status", f"--workdir={shop.workdir}")
    assert "3 compilations of 3 programs" in status.out


def test_a_study_in_populations_says_its_width_and_compiles_one_step_for_it(shop):
    write(shop, POPULATION)
    done = shop.sweep("--workers=1")
    assert done.code == 0, done.err
    assert "4 compilations of 4 programs, 0 from the cache" in done.out
    assert {event["program"] for event in shop.events("compiled")} == {"init", "train x2", "eval", "train"}
    assert shop.json("manifest.json")["population"] == 2
    assert sorted(record["population"] for record in records(shop)) == [1, 2, 2, 2, 2]  # the last seed is alone
    assert len(shop.results()) == 5


def records(shop):
    return [shop.json(f"trials/{run.name}/config.json") for run in shop.runs()]


def test_a_tally_counts_programs_once_and_reads_old_events():
    events = [
        {"event": "compiled", "seconds": 4.0},  # of an older version
        {"event": "compiled", "key": "a", "cached": False},
        {"event": "compiled", "key": "a", "cached": True},
        {"event": "compiled", "key": "b", "cached": False},
        {"event": "speed", "data_wait_share": 0.02, "overhead_share": 0.01},
        {"event": "speed", "tokens_per_second": 3.0},
    ]
    assert str(tally(events)) == "2 compilations of 2 programs, 1 from the cache"
    assert not tally(events[:1])
    assert shares(events) == "steps waited 2.0% of their time for data, and 1.0% at most for the loop"
    assert shares([]) == ""
