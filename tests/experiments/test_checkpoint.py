import resource
import shutil

import jax
import numpy as np
import pytest

from experiments.checkpoint import Checkpoints, difference, digests, refuse_other
from hybrid.validation import ConfigError

# The libraries that read a damaged file leave tasks of theirs behind, which fail when they are collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def tree(seed):
    random = np.random.default_rng(seed)
    weights = {"layers": {str(i): {"kernel": random.normal(size=(64, 64)).astype("float32")} for i in range(2)}}
    return {"params": weights, "count": np.array(seed, np.int32)}


def shapes():
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree(0))


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with the checkpoints of steps 1, 2 and 3, of which two are kept."""
    folder = tmp_path_factory.mktemp("checkpoints")
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, tree(step), {"rows": step})
            checkpoints.wait()
    return folder


def newest(folder, keep=2, **options):
    refused = []
    with Checkpoints(folder, keep, lambda step, reason: refused.append((step, reason))) as checkpoints:
        return checkpoints.newest(shapes(), **options), refused, checkpoints.steps()


def test_the_newest_is_restored_and_older_ones_are_removed(written):
    found, refused, steps = newest(written)
    assert (found.step, found.about, refused, steps) == (3, {"rows": 3}, [], [3, 2])
    assert same(found.tree, tree(3))


def files(folder):
    return sorted(path.relative_to(folder) for path in (folder / "3").rglob("*") if path.is_file())


def flip(path, share=0.5):
    """One bit of one byte."""
    content = bytearray(path.read_bytes())
    if content:
        content[int(share * (len(content) - 1))] ^= 0x10
    path.write_bytes(bytes(content))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def hole(path):
    path.write_bytes(bytes(path.stat().st_size))


DAMAGES = {
    "flip early": lambda path: flip(path, 0.2),
    "flip": flip,
    "flip late": lambda path: flip(path, 0.9),
    "truncate": truncate,
    "hole": hole,
    "delete": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_falls_back_to_the_step_before_or_changes_nothing(written, tmp_path, damage):
    fell_back = 0
    for name in files(written):
        folder = tmp_path / str(name).replace("/", "_")
        shutil.copytree(written, folder)
        DAMAGES[damage](folder / name)
        found, refused, steps = newest(folder)
        assert found is not None, name
        assert same(found.tree, tree(found.step)), name
        if found.step == 2:
            fell_back += 1
            assert [step for step, _ in refused] == [3], name
            assert steps == [2], name
        shutil.rmtree(folder)
    assert fell_back >= 2


def test_with_all_checkpoints_damaged_there_is_none(written, tmp_path):
    folder = tmp_path / "all"
    shutil.copytree(written, folder)
    for path in folder.glob("*/state/**/d/*"):
        flip(path)
    found, refused, steps = newest(folder)
    assert found is None
    assert [step for step, _ in refused] == [3, 2]
    assert steps == []


def test_reading_only_removes_nothing(written, tmp_path):
    folder = tmp_path / "reading"
    shutil.copytree(written, folder)
    flip(folder / "3" / "meta" / "metadata")
    unfinished = folder / "4.orbax-checkpoint-tmp"
    unfinished.mkdir()
    found, refused, steps = newest(folder, keep=None)
    assert (found.step, len(refused), steps) == (2, 1, [3, 2])
    assert unfinished.exists()


def test_what_a_killed_save_left_is_removed_and_never_read(written, tmp_path):
    folder = tmp_path / "killed"
    shutil.copytree(written, folder)
    shutil.copytree(written / "3", folder / "4.orbax-checkpoint-tmp")
    (folder / "4.orbax-checkpoint-tmp" / "commit_success.txt").unlink()
    found, _, _ = newest(folder)
    assert found.step == 3
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]


def test_a_reason_against_a_checkpoint_passes_it_over_and_a_config_error_stops(written, tmp_path):
    folder = tmp_path / "reason"
    shutil.copytree(written, folder)
    found, refused, _ = newest(folder, check=lambda about: "too many rows" if about["rows"] == 3 else "")
    assert found.step == 2
    assert refused == [(3, "too many rows")]

    def other(about):
        raise ConfigError("data.batch_size", "is another")

    with pytest.raises(ConfigError, match=r"data\.batch_size"):
        newest(folder, check=other)


def test_saving_goes_on_after_damaged_steps_were_passed_over(written, tmp_path):
    folder = tmp_path / "on"
    shutil.copytree(written, folder)
    flip(folder / "3" / "meta" / "metadata")
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.newest(shapes()).step == 2
        checkpoints.save(3, tree(30), {"rows": 0})
        checkpoints.wait()
        assert same(checkpoints.newest(shapes()).tree, tree(30))


def save_whole(checkpoints, step, seed):
    checkpoints.save(step, tree(seed), {"rows": 0})
    checkpoints.wait()


def test_a_save_that_fails_raises_leaves_the_checkpoints_before_and_can_be_tried_again(written, tmp_path):
    folder = tmp_path / "full"
    shutil.copytree(written, folder)
    with Checkpoints(folder, keep=2) as checkpoints:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))  # as a full disk: larger files cannot be written
        try:
            with pytest.raises(OSError, match=str(folder)):
                save_whole(checkpoints, 7, 7)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert checkpoints.steps() == [3, 2]
    found, refused, _ = newest(folder)
    assert (found.step, refused) == (3, [])
    with Checkpoints(folder, keep=2) as checkpoints:
        save_whole(checkpoints, 7, 7)
    assert same(newest(folder)[0].tree, tree(7))
    assert sorted(path.name for path in folder.iterdir()) == ["3", "7"]


def test_swapped_leaves_and_other_types_have_other_digests():
    one = tree(0)
    layers = one["params"]["layers"]
    swapped = {**one, "params": {"layers": {"0": layers["1"], "1": layers["0"]}}}
    assert digests(one) != digests(swapped)
    assert digests({"a": np.zeros(4, "float32")}) != digests({"a": np.zeros(4, "int32")})
    assert digests({"a": np.zeros((2, 2))}) != digests({"a": np.zeros(4)})
    assert digests({"a": jax.numpy.ones(3, jax.numpy.bfloat16)}) == digests({"a": np.ones(3, jax.numpy.bfloat16)})


@pytest.mark.parametrize(
    ("before", "now", "field"),
    [
        ({"model": {"pattern": "AM"}}, {"model": {"pattern": "MA"}}, "model.pattern"),
        ({"data": {"seq_len": 8}, "seed": 0}, {"data": {"seq_len": 9}, "seed": 0}, "data.seq_len"),
        ({"seed": 0}, {"seed": 1}, "seed"),
        ({"seed": 0}, {"seed": 0, "extra": 1}, "extra"),
        ({"fingerprint": "aa"}, {"fingerprint": "bb"}, "data"),
    ],
)
def test_another_identity_is_refused_by_the_name_of_the_field(tmp_path, before, now, field):
    refuse_other(before, before, tmp_path)
    with pytest.raises(ConfigError) as error:
        refuse_other(before, now, tmp_path)
    assert error.value.field == field
    assert str(tmp_path) in str(error.value)


def test_tuples_and_lists_do_not_differ():
    assert difference({"a": (1, 2)}, {"a": [1, 2]}) is None
    assert difference({"a": {"b": [1, (2,)]}}, {"a": {"b": [1, [3]]}}) == ("a.b", [1, (2,)], [1, [3]])
