import json
import os
import subprocess
import sys

import pytest

from experiments import environment
from tests.experiments.studies import ROOT

OURS = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "HYBRID_CACHE", "NPROC", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES")
SHOW = "import os, json, sys; print(json.dumps(dict(os.environ)), file=sys.stdout)"


def python(code, **variables):
    """What a fresh process prints, with none of our variables set but these."""
    clean = {name: value for name, value in os.environ.items() if name not in OURS and not name.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**clean, "JAX_PLATFORMS": "cpu", **variables}, cwd=ROOT,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def prepared(before="", call="prepare()", **variables):
    code = f"from experiments import environment\n{before}\nenvironment.{call}\n{SHOW}"
    return json.loads(python(code, **variables))


def jaxlib(version):
    return f"from importlib import metadata; metadata.version = lambda name: {version!r}"


def test_the_flags_are_those_that_this_jaxlib_knows_and_jax_starts_with_them():
    flags = prepared()["XLA_FLAGS"].split()
    assert "--xla_cpu_experimental_ynn_fusion_type=-reduce" in flags
    said = python("from experiments.environment import prepare; prepare(); import jax; print(jax.numpy.ones(3).sum())")
    assert said == "3.0\n"


@pytest.mark.parametrize("version", ["0.9.2", "0.12.0", "1.0", "strange"])
def test_an_unknown_jaxlib_gets_no_flag_that_could_abort_it(version):
    assert prepared(jaxlib(version))["XLA_FLAGS"] == ""


def test_what_a_person_set_stays():
    mine = "--xla_cpu_experimental_ynn_fusion_type=-dot --xla_mine=1"
    after = prepared(XLA_FLAGS=mine, JAX_COMPILATION_CACHE_DIR="/mine")
    assert after["XLA_FLAGS"].startswith(mine)
    assert after["XLA_FLAGS"].count("ynn_fusion_type") == 1
    assert after["JAX_COMPILATION_CACHE_DIR"] == "/mine"


def test_devices_and_threads_are_set_where_they_are_asked_for():
    after = prepared(call="prepare(devices=3, threads=2)")
    assert "--xla_force_host_platform_device_count=3" in after["XLA_FLAGS"]
    assert after["NPROC"] == "2"
    assert "NPROC" not in prepared()


def test_the_cache_is_in_the_folder_of_the_user_or_where_it_is_told(monkeypatch, tmp_path):
    monkeypatch.delenv("HYBRID_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert environment.cache_folder() == tmp_path / "hybrid"
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "mine"))
    assert environment.cache_folder() == tmp_path / "mine"
    assert prepared(HYBRID_CACHE=str(tmp_path))["JAX_COMPILATION_CACHE_DIR"].startswith(str(tmp_path / "xla"))


def test_threads_are_those_of_the_variable_or_of_the_machine(monkeypatch):
    monkeypatch.setenv("NPROC", "3")
    assert environment.threads() == 3
    monkeypatch.setenv("NPROC", "many")
    assert environment.threads() == len(os.sched_getaffinity(0))


TOO_LATE = """
import sys, types, warnings
sys.modules["jax"] = types.ModuleType("jax")
from experiments.environment import prepare
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    prepare()
print(*[warning.message for warning in caught], "XLA_FLAGS" in __import__("os").environ)
"""


def test_coming_after_jax_warns_and_changes_nothing():
    said = python(TOO_LATE)
    assert "came after jax" in said
    assert said.endswith(" False\n")


PAGES = """
import resource
{prepare}
block = b"x" * (40 << 20)
del block
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    block = b"x" * (40 << 20)
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not os.confstr("CS_GNU_LIBC_VERSION"), reason="the C library is not glibc")
def test_freed_memory_is_kept_and_not_mapped_again_at_each_step():
    prepare = "from experiments.environment import prepare; prepare()"
    kept, mapped = int(python(PAGES.format(prepare=prepare))), int(python(PAGES.format(prepare="")))
    assert kept < mapped / 10
    tuned = int(python(PAGES.format(prepare=prepare), MALLOC_ARENA_MAX="4"))
    assert tuned > mapped / 2
    large = prepare + "; from experiments.environment import give_back; give_back()"
    assert int(python(PAGES.format(prepare=large))) > mapped / 2


def test_several_workers_on_an_accelerator_take_memory_as_they_need_it(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    name = "XLA_PYTHON_CLIENT_PREALLOCATE"
    assert environment.of_workers(2, 3, {"HOME": "/me"}) == {"HOME": "/me", "NPROC": "3", name: "false"}
    assert environment.of_workers(1, 3, {}) == {"NPROC": "3"}
    assert environment.of_workers(2, 1, {name: "true"}) == {"NPROC": "1", name: "true"}
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert environment.of_workers(2, 1, {}) == {"NPROC": "1"}
