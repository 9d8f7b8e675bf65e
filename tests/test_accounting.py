"""What a model costs: published counts of parameters and cache bytes, operations by hand."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from hybrid import ModelConfig, accounting, init
from hybrid import flops as counting
from hybrid.accounting import (
    cache_bytes,
    count,
    flops,
    layer_flops,
    layer_parameters,
    layer_state_bytes,
    parameters,
    state_bytes,
)
from hybrid.model import init_state
from hybrid.sublayers import KINDS

GIB = 1 << 30
JAMBA = {"pattern": "(M-M-M-M-A-M-M-M-)4", "d_model": 4096, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 65536}


def model(pattern: str, d_model: int, n_heads: int, n_kv_heads: int) -> ModelConfig:
    return ModelConfig(pattern=pattern, vocab_size=32000, d_model=d_model, n_heads=n_heads, n_kv_heads=n_kv_heads)


# Lieber et al. 2024, table 1, and Jamba team 2024, table 1. Channel sublayers, dense here, have no cache.
CACHES = {
    "Jamba": (ModelConfig(**JAMBA), 4),
    "Mixtral 8x7B": (model("(A-)32", 4096, 32, 8), 32),
    "Mistral 7B": (model("(A-)32", 4096, 32, 8), 32),
    "Llama 3.1 8B": (model("(A-)32", 4096, 32, 8), 32),
    "Llama 2 7B": (model("(A-)32", 4096, 32, 32), 128),
    "Jamba 1.5 Large": (model("(M-M-M-M-A-M-M-M-)9", 8192, 64, 8), 9),
    "Llama 3.1 70B": (model("(A-)80", 8192, 64, 8), 80),
    "Mistral Large 2": (model("(A-)88", 12288, 96, 8), 88),
}


@pytest.mark.parametrize("name", CACHES)
def test_published_cache_sizes_at_256k_tokens(name):
    config, gib = CACHES[name]
    assert cache_bytes(config, 262_144) == gib * GIB


def test_published_state_of_jambas_mamba_layers():
    """28 layers of 8192 channels with 16 states and 4 columns, as decoders that keep the newest column have it."""
    config = ModelConfig(**JAMBA)
    shapes = jax.eval_shape(lambda: KINDS["M"].state(config, 1, 1 << 18))
    d_inner, n = shapes.hidden.shape[1:]
    columns = shapes.conv.shape[1] + 1  # ours keeps the inputs before the newest
    layers = sum(kind.symbol == "M" for kind, _ in config.kinds())
    assert layers * d_inner * (n + columns) * 2 == 8.75 * (1 << 20)


PUBLISHED_PARAMETERS = {
    "Mamba 130M": ({"pattern": "M24", "vocab_size": 50280, "d_model": 768}, 129_135_360),
    "GPT-2": (
        {
            "pattern": "(A-)12", "vocab_size": 50257, "d_model": 768, "n_heads": 12, "positions": "learned",
            "max_length": 1024, "norm": "layernorm", "attention": {"qkv_bias": True, "out_bias": True},
            "mlp": {"activation": "gelu", "bias": True},
        },
        124_439_808,
    ),
    "Llama 2 7B": (
        {
            "pattern": "(A-)32", "vocab_size": 32000, "d_model": 4096, "n_heads": 32, "d_ff": 11008,
            "tie_embeddings": False,
        },
        6_738_415_616,
    ),
    "Mistral 7B": (
        {
            "pattern": "(A-)32", "vocab_size": 32000, "d_model": 4096, "n_heads": 32, "n_kv_heads": 8, "d_ff": 14336,
            "tie_embeddings": False,
        },
        7_241_732_096,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_published_parameter_counts(name):
    fields, total = PUBLISHED_PARAMETERS[name]
    assert parameters(ModelConfig(**fields)).total == total


MIXED = {"pattern": "MA-H-", "vocab_size": 31, "d_model": 8, "n_heads": 2, "hyena": {"filter_length": 32}}


@pytest.mark.parametrize("fields", [{}, {"tie_embeddings": False, "norm": "layernorm", "norm_position": "both"}])
def test_parameters_are_the_sum_of_the_leaves(fields):
    config = ModelConfig(**MIXED, **fields, positions="learned", max_length=16)
    params = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    sizes = {path: leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    tables = sum(size for path, size in sizes.items() if path[0].key in ("embedding", "head"))
    counted = parameters(config)
    assert counted.total == counted.active == sum(sizes.values())
    assert counted.without_embeddings == sum(sizes.values()) - tables
    final_norm = sum(size for path, size in sizes.items() if path[0].key == "final_norm")
    assert sum(layer_parameters(config)) == counted.without_embeddings - final_norm


def test_parameters_are_counted_without_jax():
    code = (
        "import sys; from hybrid import ModelConfig; from hybrid.accounting import parameters;"
        "print(parameters(ModelConfig(pattern='MAH-', vocab_size=9, d_model=8, n_heads=2)).total, 'jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    total, loaded = done.stdout.split()
    assert int(total) > 0
    assert loaded == "False"


def test_state_bytes_are_those_of_the_arrays():
    config = ModelConfig(**MIXED, compute_dtype="bfloat16")
    state = init_state(config, 3, 16)
    arrays = [sum(leaf.nbytes for leaf in jax.tree.leaves(layer)) for layer in state.layers]
    assert layer_state_bytes(config, 16, 3) == arrays
    assert state_bytes(config, 16, 3) == sum(arrays)


def test_mambas_state_does_not_grow_and_attentions_does():
    config = ModelConfig(**MIXED)
    mamba, attention, _, hyena, _ = (
        large - small for small, large in zip(layer_state_bytes(config, 16), layer_state_bytes(config, 32), strict=True)
    )
    assert mamba == 0
    assert attention == 16 * (2 * 8 * 4 + 4 + 1)  # keys and values, a position and a flag for each slot
    assert hyena == 16 * 8 * 4  # one long convolution keeps its inputs


# --- operations -------------------------------------------------------------------------------------------------------

SMALL = {"vocab_size": 257, "d_model": 64, "n_heads": 4}


def products(config: ModelConfig, batch: int, length: int) -> int:
    """Operations of the matrix products of `A` and `-` and the head, forward, by hand."""
    d, tokens = config.d_model, batch * length
    total = 2 * tokens * d * config.vocab_size
    for kind, view in config.kinds():
        if kind.symbol == "A":
            head = view.head_dim or d // view.n_heads
            kv_heads = view.n_kv_heads or view.n_heads
            total += 2 * tokens * d * head * (2 * view.n_heads + 2 * kv_heads)
            total += 2 * 2 * batch * length**2 * view.n_heads * head
        else:
            matrices = 3 if view.mlp.activation == "swiglu" else 2
            total += 2 * tokens * d * view.width_ff * matrices
    return total


@pytest.fixture
def products_only(monkeypatch):
    """Counts nothing but matrix products."""
    monkeypatch.setattr(counting, "ELEMENTWISE", frozenset())
    monkeypatch.setattr(counting, "REDUCTIONS", frozenset())
    monkeypatch.setattr(counting, "CUMULATIVE", frozenset())
    accounting._flops.cache_clear()
    yield
    accounting._flops.cache_clear()


def without_norms(monkeypatch):
    for file in ("model", "stack"):
        monkeypatch.setattr(f"hybrid.{file}.norm", lambda params, x, eps: x)


# Weights of norms are applied as products of vectors (einsum), which are no matrix products.
@pytest.mark.parametrize("fields", [{}, {"n_kv_heads": 2, "head_dim": 24}, {"mlp": {"activation": "relu"}}])
@pytest.mark.parametrize("pattern", ["A", "-", "(A-)3A"])
def test_matrix_products_are_counted_exactly(products_only, pattern, fields, monkeypatch):
    config = ModelConfig(pattern=pattern, **SMALL, **fields)
    without_norms(monkeypatch)
    by_hand = products(config, 2, 24)
    assert flops(config, 24, 2) == accounting.Flops(forward=by_hand, train=3 * by_hand)


def test_products_that_remat_repeats_are_counted_again(products_only, monkeypatch):
    without_norms(monkeypatch)
    config = ModelConfig(pattern="(A-)2", **SMALL, remat="unit")
    once = products(config, 1, 16)
    head = 2 * 16 * 64 * 257
    repeated = flops(config, 16).train - 3 * once
    # The last product of each sublayer is not needed again: XLA and jax drop it.
    assert 0.6 * (once - head) < repeated <= once - head


@pytest.mark.parametrize("fields", [{}, {"norm": "layernorm", "mlp": {"activation": "gelu", "bias": True}}])
def test_all_operations_are_within_one_percent_of_xlas_count(fields):
    from hybrid.losses import token_losses
    from hybrid.model import forward
    from hybrid.params import abstract

    config = ModelConfig(pattern="A-A-", **SMALL, **fields, scan_layers=False)

    def loss(params, tokens):
        hidden, _ = forward(config, params, tokens)
        return token_losses(config, params, hidden, tokens)[0].mean()

    ours, shapes = flops(config, 32, 2), (abstract(config), jax.ShapeDtypeStruct((2, 32), jnp.int32))
    for mine, function in ((ours.forward, loss), (ours.train, jax.value_and_grad(loss))):
        xla = jax.jit(function).lower(*shapes).cost_analysis()["flops"]
        assert abs(mine / xla - 1) < 0.01


def test_order_depth_and_form_do_not_change_the_count():
    fields = {**SMALL, "hyena": {"filter_length": 32}}
    one = flops(ModelConfig(pattern="MMA-H-", **fields), 32)
    assert flops(ModelConfig(pattern="-AMH-M", **fields), 32) == one
    assert flops(ModelConfig(pattern="MMA-H-", **fields, scan_layers=False), 32) == one
    assert flops(ModelConfig(pattern="MMA-H-", **fields, mamba={"scan": "associative"}), 32) == one
    assert flops(ModelConfig(pattern="MMA-H-", **fields, attention={"form": "chunked"}), 32) == one


def test_the_count_is_linear_in_depth():
    def layers(n):
        return flops(ModelConfig(pattern=f"(MA-){n}", **SMALL), 16)

    one, two, five = layers(1), layers(2), layers(5)
    assert five.forward - one.forward == 4 * (two.forward - one.forward)
    assert abs((five.train - one.train) / (4 * (two.train - one.train)) - 1) < 1e-3


def test_counts_of_a_batch():
    config = ModelConfig(**MIXED)
    one, three = count(config, 16), count(config, 16, batch=3)
    assert three.parameters == one.parameters
    assert three.state_bytes == 3 * one.state_bytes
    # What does not depend on the batch, Hyena's filters, is made once.
    assert one.flops.forward < three.flops.forward < 3 * one.flops.forward
    plain = ModelConfig(pattern="MA-", **SMALL)
    assert flops(plain, 16, 3).forward - 3 * flops(plain, 16).forward < 1000


def test_a_kind_registered_again_is_counted_again(monkeypatch):
    import hybrid

    monkeypatch.setattr("hybrid.sublayers.KINDS", dict(KINDS))
    config = ModelConfig(pattern="-", vocab_size=5, d_model=4)
    before = parameters(config).total
    old = KINDS["-"]
    try:
        hybrid.register(
            dataclasses.replace(old, spec=lambda config: {**old.spec(config), "more": old.spec(config)["up"]})
        )
        assert parameters(config).total == before + 4 * 16
    finally:
        hybrid.register(old)
    assert parameters(config).total == before


def test_an_encoder_and_branches_are_counted():
    fields = {"vocab_size": 13, "d_model": 8, "n_heads": 2, "positions": "none"}
    whole = ModelConfig(pattern="AX-", encoder="B-", **fields)
    decoder, encoder = ModelConfig(pattern="A-", **fields), ModelConfig(pattern="B-", **fields)
    attention = 4 * 8 * 8 + 8
    total = parameters(decoder).total + parameters(encoder).without_embeddings + attention
    assert parameters(whole).total == total
    # B sees all pairs and A all pairs (masked ones are computed too); X is one more attention.
    shares = layer_flops(whole, 16)
    assert 0 <= shares[1] - shares[0] <= 16 * 8  # and the gradient of the memory is added up
    head = 3 * 2 * 16 * 8 * 13
    assert flops(whole, 16).train > sum(shares) + head
    assert state_bytes(whole, 16) == state_bytes(decoder, 16) + 2 * 16 * 8 * 4 + 16
    side_by_side = ModelConfig(pattern="[A|M]", **fields)
    assert parameters(side_by_side).total == parameters(ModelConfig(pattern="AM", **fields)).total - 8
    assert state_bytes(side_by_side, 16) == state_bytes(ModelConfig(pattern="AM", **fields), 16)


def test_a_decoder_of_fewer_targets_costs_less():
    """Its mixers' share falls with the targets, that of the encoder and of keys and values of its output does not."""
    model = ModelConfig(pattern="(AX-)2", encoder="(B-)2", vocab_size=20, d_model=32, n_heads=4)
    whole, few, one = (flops(model, 128, targets=targets).train for targets in (128, 32, 1))
    encoder = flops(ModelConfig(pattern="(B-)2", vocab_size=20, d_model=32, n_heads=4), 128).train
    assert flops(model, 128).train == whole > few > one > 0.7 * encoder
    assert flops(model, 128, batch=2, targets=32).train > 1.9 * few
    layers = layer_flops(model, 128, targets=32)
    assert sum(layers) < few
    assert layers[0] < layer_flops(model, 128)[0] / 3


def test_a_window_keeps_no_more_keys_than_it_sees():
    fields = {"vocab_size": 13, "d_model": 8, "n_heads": 2, "sliding_window": {"window": 5}}
    config = ModelConfig(pattern="S-A", **fields)
    assert cache_bytes(config, 3) == 2 * 2 * 2 * 8 * 3
    assert cache_bytes(config, 100) == 2 * 2 * 8 * (100 + 5)
