"""A sequence cut along its length: the same numbers, less memory."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid import chunks
from hybrid.config import ModelConfig
from hybrid.losses import token_losses
from hybrid.model import forward
from hybrid.params import abstract, init
from hybrid.testing.subject import compiled

FIELDS = {"vocab_size": 13, "d_model": 16, "n_heads": 2, "scan_layers": False}


def mean_loss(config, tokens, **options):
    def run(params):
        hidden, _ = forward(config, params, tokens, **options)
        return token_losses(config, params, hidden, tokens)[0].mean()

    return run


@pytest.mark.parametrize(
    ("pattern", "rows", "window"), [("M-", 4, 3), ("DG-", 4, 3), ("LE", 4, 3), ("HSA-", 4, 3), ("S-", 2, 5)]
)
def test_a_model_in_pieces_has_the_loss_and_gradient_of_the_whole(pattern, rows, window, x64, monkeypatch):
    """11 positions in pieces, the last one shorter; kinds whose state grows go at once. A window may be longer than a
    piece."""
    config = ModelConfig(
        pattern=pattern, **FIELDS, param_dtype="float64", compute_dtype="float64", sliding_window={"window": window}
    )
    params = compiled(partial(init, config))(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 11), 0, 13)
    wanted = compiled(jax.value_and_grad(mean_loss(config, tokens)))(params)
    monkeypatch.setattr(chunks, "ROWS", rows)
    cut = []
    for name in ("extended", "overlapped"):
        function = getattr(chunks, name)
        monkeypatch.setattr(f"hybrid.stack.{name}", lambda *given, f=function, n=name: cut.append(n) or f(*given))
    in_pieces = mean_loss(dataclasses.replace(config, remat="chunk"), tokens)
    again = compiled(jax.value_and_grad(in_pieces))(params)
    assert cut.count("extended") == sum(symbol in "MDGL-" for symbol in pattern)
    assert cut.count("overlapped") == pattern.count("S")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10), again, wanted)


def test_packed_documents_and_padding_go_at_once(monkeypatch):
    monkeypatch.setattr(chunks, "ROWS", 2)
    monkeypatch.setattr("hybrid.stack.extended", lambda *arguments: pytest.fail("was cut"))
    config = ModelConfig(pattern="M-", **FIELDS, remat="chunk")
    tokens = jax.ShapeDtypeStruct((1, 8), "int32")
    for name in ("segment_ids", "padding"):
        array = jnp.zeros((1, 8), jnp.int32 if name == "segment_ids" else bool)
        jax.eval_shape(lambda p, t, n=name, a=array: forward(config, p, t, **{n: a}), abstract(config), tokens)


def test_memory_of_an_mlp_is_that_of_a_piece():
    """Four times as long takes four times the memory of the residual stream, and none more for the hidden layer."""

    def temporaries(length, remat):
        config = ModelConfig(pattern="-", vocab_size=8, d_model=8, d_ff=512, remat=remat)
        tokens = jnp.zeros((1, length), jnp.int32)
        compiled = jax.jit(jax.grad(mean_loss(config, tokens))).lower(abstract(config)).compile()
        return compiled.memory_analysis().temp_size_in_bytes / 2**20

    hidden = 512 * 4 * 2**17 / 2**20  # MiB of the hidden layer of all 131,072 positions
    assert temporaries(2**17, "chunk") < hidden < temporaries(2**17, "sublayer")
