"""Declarations, initial values by path, and the two forms of a stack's parameters."""

from __future__ import annotations

import functools
import hashlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid import ModelConfig, init
from hybrid.layout import arrange, layers_of, layout, per_layer
from hybrid.params import (
    Param,
    abstract,
    declarations,
    declarations_per_layer,
    fan_in_uniform,
    leaf_dtype,
    leaves,
    normal,
    path_digest,
    zeros,
)

SMALL = {"vocab_size": 23, "d_model": 8, "n_heads": 2, "hyena": {"filter_length": 32}}


def flat(params):
    return {"/".join(path): np.asarray(leaf) for path, leaf in leaves(per_layer(params))}


def make(pattern, seed=0, **fields):
    return init(ModelConfig(**{**SMALL, "pattern": pattern, **fields}), jax.random.key(seed))


@pytest.fixture(scope="module")
def base():
    return flat(make("MA-M"))


def test_appending_a_sublayer_changes_no_other_leaf(base):
    longer = flat(make("MA-MH"))
    assert base.keys() < longer.keys()
    assert all((longer[path] == value).all() for path, value in base.items())


def test_replacing_a_sublayer_changes_its_own_leaves_alone(base):
    other = flat(make("MH-M"))
    kept = [path for path in base if not path.startswith("layers/1/")]
    assert all((other[path] == base[path]).all() for path in kept)
    assert {path for path in base if path not in kept}.isdisjoint(
        path for path in other if path in base and (other[path] == base[path]).all() and "norm" not in path
    )


def test_another_seed_and_another_layer_have_other_values(base):
    other = flat(make("MA-M", seed=1))
    assert (base["layers/0/sublayer/in_x"] != base["layers/3/sublayer/in_x"]).all()
    assert (base["layers/0/sublayer/in_x"] != other["layers/0/sublayer/in_x"]).all()


GOLDEN = "d5bb08ad57d3249b"


def digest_of_a_leaf() -> str:
    """Bits of the random numbers and no arithmetic on them, which may differ in the last bit between machines."""
    key = jax.random.key(0)
    from hybrid.params import leaf_key

    bits = jax.random.bits(leaf_key(key, ("layers", "3", "sublayer", "in_x")), (4,))
    return hashlib.sha256(np.asarray(bits).tobytes()).hexdigest()[:16]


def test_random_numbers_of_a_leaf_are_golden():
    assert digest_of_a_leaf() == GOLDEN
    assert path_digest(("layers", "3", "sublayer", "in_x")) == 1206419151


def test_another_process_makes_the_same_values(base):
    """Nothing hangs on Python's salted hash or on the order of a set."""
    code = """
import hashlib, jax, numpy as np
from hybrid import ModelConfig, init
from hybrid.layout import per_layer
from hybrid.params import leaves
config = ModelConfig(pattern="MA-M", vocab_size=23, d_model=8, n_heads=2, hyena={"filter_length": 32})
params = per_layer(init(config, jax.random.key(0)))
for path, leaf in leaves(params): print("/".join(path), hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = [f"{path} {hashlib.sha256(value.tobytes()).hexdigest()}" for path, value in base.items()]
    assert sorted(done.stdout.splitlines()) == sorted(here)


REPEATED = {**SMALL, "pattern": "-(MA)2"}


@pytest.fixture(scope="module")
def scanned():
    return init(ModelConfig(**REPEATED, scan_layers=True), jax.random.key(0))


def test_scanned_and_unrolled_stacks_start_the_same(scanned):
    one, other = flat(scanned), flat(init(ModelConfig(**REPEATED, scan_layers=False), jax.random.key(0)))
    assert one.keys() == other.keys()
    for path in one:
        np.testing.assert_allclose(one[path], other[path], rtol=1e-6, atol=1e-9, err_msg=path)


def test_arrange_and_per_layer_are_inverse(scanned):
    config = ModelConfig(**REPEATED, scan_layers=True)
    single = per_layer(scanned)
    assert list(single["layers"]) == ["0", "1", "2", "3", "4"]
    back = arrange(config, single)
    assert jax.tree.structure(back) == jax.tree.structure(scanned)
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(scanned), strict=True))
    again = arrange(config, scanned)
    assert all(a is b for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(scanned), strict=True))


def test_parameters_of_one_cut_serve_another(scanned):
    there = arrange(ModelConfig(**REPEATED, scan_layers=False), scanned)
    assert set(there["layers"]) == {"0", "1", "2", "3", "4"}
    layer_3 = {"/".join(path): leaf for path, leaf in leaves(there["layers"]["3"])}
    wanted = scanned["layers"]["1:5:2"]["sublayer"]["in_x"][1]
    assert (layer_3["sublayer/in_x"] == wanted).all()


def test_parameters_of_another_depth_are_refused():
    params = abstract(ModelConfig(**SMALL, pattern="MA", scan_layers=False))
    with pytest.raises(ValueError, match=r"hold 2 layers.*has 3"):
        arrange(ModelConfig(**SMALL, pattern="MA-"), params)


def test_keys_say_which_layers_they_hold():
    assert layers_of("3") == range(3, 4)
    assert layers_of("1:9:2") == range(1, 9, 2)
    config = ModelConfig(**SMALL, pattern="-(MA)3", scan_layers=True)
    assert layout(config) == ["0", "1:7:2", "2:7:2"]
    held = sorted(layer for key in layout(config) for layer in layers_of(key))
    assert held == list(range(7))


@pytest.mark.parametrize("fields", [{}, {"scan_layers": True}, {"param_dtype": "bfloat16"}, {"norm": "layernorm"}])
def test_values_have_the_declared_shapes_and_types(fields):
    config = ModelConfig(**SMALL, pattern="(MA-H)2", tie_embeddings=False, **fields)
    made = dict(leaves(jax.eval_shape(functools.partial(init, config), jax.random.key(0))))
    declared = dict(leaves(declarations(config)))
    shapes = dict(leaves(abstract(config)))
    assert made.keys() == declared.keys() == shapes.keys()
    for path, leaf in made.items():
        assert leaf.shape == declared[path].shape == shapes[path].shape, path
        assert leaf.dtype == leaf_dtype(config, declared[path]) == shapes[path].dtype, path


def test_recurrent_parameters_stay_precise_when_others_are_narrow():
    params = abstract(ModelConfig(**SMALL, pattern="M", param_dtype="bfloat16"))["layers"]["0"]["sublayer"]
    assert {params[name].dtype for name in ("A_log", "D", "dt_bias")} == {jnp.dtype("float32")}
    assert params["in_x"].dtype == jnp.bfloat16


def test_decay_spares_biases_norms_and_recurrences():
    tree = declarations_per_layer(
        ModelConfig(**SMALL, pattern="MAH-", norm="layernorm", attention={"qkv_bias": True}, mlp={"bias": True})
    )
    spared = {path[-1] for path, param in leaves(tree) if not param.decay}
    assert {"A_log", "D", "dt_bias", "conv_bias", "scale", "bias", "query_bias", "up_bias", "features"} <= spared
    decayed = {path[-1] for path, param in leaves(tree) if param.decay}
    assert {"in_x", "x_proj", "dt_proj", "query", "out", "up", "down", "tokens"} <= decayed
    assert decayed.isdisjoint(spared - {"in"})
    assert all(param.decay is False for path, param in leaves(tree) if len(param.shape) == 1)


def test_hyenas_features_learn_slowly():
    tree = declarations_per_layer(ModelConfig(**SMALL, pattern="H"))
    rates = {path[-1]: param.rate for path, param in leaves(tree) if param.rate != 1.0}
    assert rates == {"features": 1e-5}


def test_depth_scaling_divides_output_projections():
    """By the square root of the number of sublayers, 2 here, and changes nothing else."""
    plain, depth = (flat(make("MAH-", residual_init=how)) for how in ("plain", "depth"))
    scaled = {"layers/0/sublayer/out", "layers/1/sublayer/out", "layers/2/sublayer/out", "layers/3/sublayer/down"}
    for path in plain:
        np.testing.assert_allclose(depth[path] * (2.0 if path in scaled else 1.0), plain[path], rtol=1e-6, err_msg=path)


def test_distributions():
    key = jax.random.key(0)
    drawn = normal(0.02)(key, (400, 50), jnp.float32)
    assert abs(float(drawn.std()) / 0.02 - 1) < 0.02
    assert abs(float(drawn.mean())) < 5e-4
    flat_ones = fan_in_uniform(16)(key, (400, 50), jnp.float32)
    assert 0.2499 < float(jnp.abs(flat_ones).max()) <= 0.25
    assert abs(float(flat_ones.std()) * 12**0.5 / 0.5 - 1) < 0.02


def test_a_declaration_with_an_axis_too_few_is_refused():
    with pytest.raises(ValueError, match="2 dimensions"):
        Param((2, 3), ("embed",), zeros)


def test_sharding_of_stacked_layers_leaves_the_new_axis_whole():
    config = ModelConfig(**SMALL, pattern="M3", scan_layers=True)
    param = declarations(config)["layers"]["0:3:1"]["sublayer"]["in_x"]
    assert param.shape == (3, 8, 16)
    assert param.axes == (None, "embed", "inner")
