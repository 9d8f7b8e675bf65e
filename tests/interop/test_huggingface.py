"""Folders of published models: dtypes, shards, what is refused, and writes that are cut off."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import hybrid
from hybrid.interop.families import FAMILIES
from hybrid.params import abstract, leaves
from hybrid.validation import ConfigError

ROOT = Path(__file__).resolve().parents[2]
LLAMA = ROOT / "tests" / "references" / "llama"


@pytest.fixture
def folder(tmp_path):
    """A model that a test may spoil."""
    return Path(shutil.copytree(LLAMA, tmp_path / "model"))


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def rewrite(folder, edit):
    """The tensors of a folder after `edit(dict)`."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def same_trees(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("scan", [True, False])
def test_parameters_come_in_the_form_that_the_config_trains_in(scan):
    config, params = hybrid.from_huggingface(LLAMA, scan_layers=scan)
    spec = abstract(config)
    assert jax.tree.structure(params) == jax.tree.structure(spec)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), spec
    )


def test_scanned_and_unrolled_are_one_model():
    from hybrid.layout import per_layer

    scanned, unrolled = (hybrid.from_huggingface(LLAMA, scan_layers=scan)[1] for scan in (True, False))
    same_trees(per_layer(scanned), per_layer(unrolled))


def test_precision_may_be_changed_but_no_field_that_is_not_there():
    _, params = hybrid.from_huggingface(LLAMA, param_dtype="bfloat16")
    assert {leaf.dtype for _, leaf in leaves(params)} == {jnp.dtype("bfloat16")}
    with pytest.raises(ConfigError, match="param_dtyp"):
        hybrid.from_huggingface(LLAMA, param_dtyp="bfloat16")


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_other_floats_are_read(folder, dtype):
    stored = {name: array.astype(dtype) for name, array in load_file(LLAMA / "model.safetensors").items()}
    save_file(stored, folder / "model.safetensors")
    _, params = hybrid.from_huggingface(folder)
    name = "model.embed_tokens.weight"
    np.testing.assert_array_equal(params["embedding"]["tokens"], stored[name].astype(np.float32))
    assert params["embedding"]["tokens"].dtype == np.float32


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "gemma3_text", "bert"])
def test_shards_hold_the_same_model(tmp_path, name):
    config, params = hybrid.from_huggingface(ROOT / "tests" / "references" / name)
    hybrid.to_huggingface(config, params, tmp_path / "out", max_shard_bytes=20_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert files == sorted(file.name for file in (tmp_path / "out").glob("*.safetensors"))
    assert all((tmp_path / "out" / file).stat().st_size < 24_000 for file in files)
    assert index["metadata"]["total_size"] == 4 * sum(leaf.size for _, leaf in leaves(params))
    back, again = hybrid.from_huggingface(tmp_path / "out")
    assert back == config
    same_trees(again, params)


def test_the_family_is_found(tmp_path):
    for name in ("llama", "gpt2", "t5", "gemma3_text", "bert", "mistral"):
        config, params = hybrid.from_huggingface(ROOT / "tests" / "references" / name)
        hybrid.to_huggingface(config, params, tmp_path / name)
        assert json.loads((tmp_path / name / "config.json").read_text())["model_type"] == name


def test_every_wrong_tensor_is_named(folder):
    def spoil(tensors):
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.0.self_attn.q_proj.weight"] = np.zeros((24, 25), np.float32)
        tensors["model.layers.2.self_attn.q_proj.weight"] = np.zeros((24, 24), np.float32)

    rewrite(folder, spoil)
    with pytest.raises(ConfigError) as error:
        hybrid.from_huggingface(folder)
    assert str(error.value) == (
        "tensors: missing: model.layers.1.mlp.up_proj.weight; left over: model.layers.2.self_attn.q_proj.weight; "
        "wrong shape: model.layers.0.self_attn.q_proj.weight has shape (24, 25) where the config says (24, 24)"
    )


def test_left_over_tensors_of_a_deeper_model_are_an_error(folder):
    change(folder, num_hidden_layers=1)
    with pytest.raises(ConfigError, match=r"left over: model.layers.1.*and 9 more"):
        hybrid.from_huggingface(folder)


def test_buffers_that_are_no_parameters_are_let_be(folder):
    rewrite(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3)}))
    hybrid.from_huggingface(folder)


def test_integers_are_not_weights(folder):
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": np.ones((61, 24), np.int8)}))
    with pytest.raises(ConfigError, match=r"lm_head.weight is stored as I8"):
        hybrid.from_huggingface(folder)


def test_a_truncated_file_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="cannot be read as safetensors"):
        hybrid.from_huggingface(folder)


def test_pickles_are_refused_in_one_line(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pytorch_model.bin and no safetensors; pickled weights are never read"):
        hybrid.from_huggingface(folder)


def test_nothing_there(tmp_path):
    with pytest.raises(ConfigError, match=r"config.json is missing"):
        hybrid.from_huggingface(tmp_path)
    shutil.copy(LLAMA / "config.json", tmp_path)
    with pytest.raises(ConfigError, match=r"neither model.safetensors nor model.safetensors.index.json"):
        hybrid.from_huggingface(tmp_path)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "lama"}, "model_type: 'lama' is not read; did you mean 'llama'"),
        ({"model_type": None}, "model_type: None is not read"),
        ({"hidden_act": "relu"}, "hidden_act: 'relu' is not read"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"num_attention_heads": 5}, "n_kv_heads: 2 is not allowed; must divide n_heads = 5"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: 1000000000 is not read"),
        ({"num_hidden_layers": True}, "num_hidden_layers: True is not allowed"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "type 'yarn' is not read"),
        ({"rope_parameters": {"rope_type": "linear"}}, r"rope_parameters.factor: must be given"),
        ({"rope_parameters": "linear"}, "rope_parameters: 'linear' is not allowed"),
        ({"rope_parameters": {"rope_theta": float("nan")}}, "rope_theta"),
    ],
)
def test_a_config_that_cannot_be_read_is_refused_by_field(folder, fields, words):
    change(folder, **fields)
    with pytest.raises(ConfigError, match=words):
        hybrid.from_huggingface(folder)


def test_an_index_stays_in_its_folder(tmp_path, folder):
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "../elsewhere.safetensors"}}))
    with pytest.raises(ConfigError, match="must lie in the folder itself"):
        hybrid.from_huggingface(folder)
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "gone.safetensors"}}))
    with pytest.raises(ConfigError, match=r"gone.safetensors is missing"):
        hybrid.from_huggingface(folder)
    index.write_text(json.dumps({"weight_map": ["gone.safetensors"]}))
    with pytest.raises(ConfigError, match="weight_map"):
        hybrid.from_huggingface(folder)


def test_a_model_is_not_written_over(folder):
    config, params = hybrid.from_huggingface(folder)
    with pytest.raises(ConfigError, match="holds a model already"):
        hybrid.to_huggingface(config, params, folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pattern": "(AC)2"}, "pattern"),
        ({"norm": "layernorm"}, "norm: 'layernorm' cannot be said in a llama model"),
        ({"logit_softcap": 3.0}, "logit_softcap: 3.0 cannot be said in a llama model"),
        ({"embedding_scale": 2.0}, "embedding_scale: 2.0 cannot be said"),
        ({"attention": {"qk_norm": True}}, "pattern: .* query_norm|key_norm"),
        ({"attention": {"softcap": 5.0}}, "attention.softcap: 5.0 cannot be said"),
        ({"mlp": {"activation": "relu"}}, "mlp.activation: 'relu' cannot be said in a llama model"),
    ],
)
def test_what_a_family_cannot_say_is_refused(tmp_path, changes, words):
    fields = {"pattern": "(A-)2", "vocab_size": 11, "d_model": 16, "n_heads": 2, "tie_embeddings": False, **changes}
    config = hybrid.ModelConfig(**fields)
    params = hybrid.init(config, jax.random.key(0))
    with pytest.raises(ConfigError, match=words):
        hybrid.to_huggingface(config, params, tmp_path / "out", family="llama")
    assert not (tmp_path / "out").exists()


def test_a_model_of_no_family_is_told_why(tmp_path):
    config = hybrid.ModelConfig(pattern="CA-", vocab_size=11, d_model=16, n_heads=2)
    with pytest.raises(ConfigError, match=r"family: none of .*llama.* can say this model"):
        hybrid.to_huggingface(config, hybrid.init(config, jax.random.key(0)), tmp_path / "out")


def test_parameters_of_another_config_are_refused(tmp_path):
    config, params = hybrid.from_huggingface(LLAMA)
    params["final_norm"] = {"scale": jnp.ones(25)}
    with pytest.raises(ConfigError, match=r"final_norm/scale: shape \(25,\) is not allowed"):
        hybrid.to_huggingface(config, params, tmp_path / "out")


def test_a_write_that_is_killed_leaves_nothing_that_looks_whole(tmp_path):
    """Killed at every file in turn: the folder is refused until a second write goes through."""
    script = """
        import os, signal, sys
        import hybrid
        from hybrid.interop import huggingface
        left, replace = int(sys.argv[2]), os.replace
        def replace_or_die(source, target):
            global left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            replace(source, target)
        huggingface.os.replace = replace_or_die
        config, params = hybrid.from_huggingface(sys.argv[3])
        hybrid.to_huggingface(config, params, sys.argv[1], max_shard_bytes=20_000)
    """
    out = tmp_path / "out"
    for files in (0, 2):
        command = [sys.executable, "-c", textwrap.dedent(script), str(out), str(files), str(LLAMA)]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}, timeout=120)
        assert done.returncode == -signal.SIGKILL
        assert len(list(out.glob("model-*.safetensors"))) == files
        with pytest.raises(ConfigError, match=r"config.json is missing"):
            hybrid.from_huggingface(out)
    config, params = hybrid.from_huggingface(LLAMA)
    hybrid.to_huggingface(config, params, out)
    assert sorted(file.name for file in out.iterdir()) == ["config.json", "model.safetensors"]
    same_trees(hybrid.from_huggingface(out)[1], params)


def test_every_family_has_a_reference():
    """A family without one would not be held to anything where torch is not installed."""
    folders = [file.parent for file in (ROOT / "tests" / "references").glob("*/config.json")]
    held = {json.loads((folder / "config.json").read_text())["model_type"] for folder in folders}
    for family in set(FAMILIES.values()):
        assert held & set(family.model_types), family.model_types
