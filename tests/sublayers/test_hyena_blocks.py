"""Hyena by blocks of channels equals Hyena at once, and its memory is that of a block."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid.ops import fftconv
from hybrid.ops.forms import noted
from hybrid.params import abstract
from hybrid.sublayers import KINDS, Context, hyena_blocks
from hybrid.testing import Subject, example


def loss(config, padding=None):
    def run(params, x):
        context = Context(positions=jnp.zeros(x.shape[:2], jnp.int32), padding=padding)
        y, _ = KINDS["H"].apply(config, params, x, context)
        return jnp.sin(y).sum(), y

    return run


@pytest.mark.parametrize(
    ("group", "padded"),
    [({"order": 3}, True), ({"form": "paper"}, False), ({"filter": "modal"}, False)],
    ids=["code, order 3, padding", "paper", "modal"],
)
def test_blocks_equal_all_channels_at_once(group, padded, x64, monkeypatch):
    """Two rows, a length below filter_length; value and every gradient."""
    config = example("H", d_model=32, hyena={"filter_length": 20, **group})
    params = jax.tree.map(lambda leaf: leaf.astype("float64"), Subject.init(config)["layers"]["0"]["sublayer"])
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 17, 32)))
    padding = jnp.arange(17)[None] >= jnp.array([[0], [5]]) if padded else None
    results = []
    for form, least in (("whole", 2**25), ("blocks of 16 channels", 0)):
        monkeypatch.setattr(fftconv, "_WHOLE_BYTES", {"other": least})
        monkeypatch.setattr(fftconv, "_BLOCK_BYTES", {"other": least})
        monkeypatch.setattr(hyena_blocks, "TILE", 8)  # tiles of 4 positions in 2 rows, the last one shorter
        with noted() as forms:
            results.append(jax.value_and_grad(loss(config, padding), argnums=(0, 1), has_aux=True)(params, x))
        assert forms["hyena"] == form
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), *results)


def test_memory_at_65536_positions():
    """width 128, float32, forward and backward: what stood in memory when all channels went at once was 752 MiB."""
    config = example("H", d_model=128, hyena={"filter_length": 65_536})
    params = abstract(config)["layers"]["0"]["sublayer"]
    x = jax.ShapeDtypeStruct((1, 65_536, 128), "float32")
    gradient = jax.jit(jax.grad(lambda params, x: loss(config)(params, x)[0], argnums=(0, 1)))
    assert gradient.lower(params, x).compile().memory_analysis().temp_size_in_bytes <= 300 * 2**20
