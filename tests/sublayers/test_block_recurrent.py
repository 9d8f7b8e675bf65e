"""Block-recurrent attention: what a token and a state see, what the gates do, and when the states change."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid import Context, ModelConfig
from hybrid.accounting import layer_parameters, state_bytes
from hybrid.sublayers import block_recurrent, recurrent_states
from hybrid.testing import Subject, example
from hybrid.testing.subject import compiled
from hybrid.validation import ConfigError

pytestmark = pytest.mark.usefixtures("x64")
SMALL = {"window": 4, "n_states": 3, "relative_buckets": 4, "relative_distance": 5}


def recurrent(**fields):
    return Subject("R", example("R", block_recurrent={**SMALL, **fields}))


def without_states(subject):
    """Parameters under which the tokens take nothing from the states: only the window is left."""
    params = dict(subject.params)
    half = params["out"].shape[0] // 2
    params["out"] = params["out"].at[half:].set(0.0)
    return params


def test_a_token_sees_the_w_tokens_before_it_and_not_itself():
    """By the values: a value that is moved reaches the outputs of the W tokens after it."""
    subject = recurrent()
    params, x = without_states(subject), subject.inputs(1)

    def outputs(values):
        moved = dict(params, value=values)
        return subject.kind.apply(subject.view, moved, x, Context(positions=None))[0]

    # The value of token 5 alone: its input is the only one with this channel.
    x = x.at[:, :, 0].set(0.0).at[0, 5, 0].set(1.0)
    gradient = compiled(jax.jacrev(outputs))(params["value"])[0, :, :, 0]
    assert np.flatnonzero(np.abs(gradient).max((1, 2))).tolist() == [6, 7, 8, 9]


def test_zero_keys_before_the_first_token_take_part_in_the_softmax():
    subject = recurrent()
    params, x = without_states(subject), subject.inputs(1)
    values = (x @ params["value"])[0].reshape(-1, 2, 4)
    y = subject.apply(params, x)[0]
    head_0 = params["out"][:4]
    mixed = jnp.linalg.lstsq(params["out"][:8].T, y[1])[0][:4]
    keys = (x @ params["key"])[0].reshape(-1, 2, 4)
    query = (x @ params["query"])[0].reshape(-1, 2, 4)[1, 0]
    unit = [v / jnp.sqrt((v**2).sum() + 1e-6) for v in (query, keys[0, 0])]
    near, bias = unit[0] @ unit[1], params["relative_bias"][:, 0]  # buckets of 1, 2, 3 and 4 tokens back: 1, 2, 2, 3
    scores = params["scale"][0] * jnp.array([near + bias[1], bias[2], bias[2], bias[3]])
    share = jnp.exp(scores[0]) / jnp.exp(scores).sum()
    assert head_0.shape == (4, 8)
    np.testing.assert_allclose(mixed, share * values[0, 0], rtol=1e-6, atol=1e-9)


def test_tokens_read_the_states_of_before_their_window():
    """Moving the gate of the states changes nothing in the first window, and all after it."""
    subject = recurrent()
    x = subject.inputs(1)
    moved = jax.tree.map(lambda leaf: leaf, subject.params)
    moved["states"]["mix"]["gate_bias"] = moved["states"]["mix"]["gate_bias"] + 1.0
    change = np.abs(subject.apply(moved, x) - subject.apply(subject.params, x)).max((0, 2))
    assert (change[:4] == 0).all() and (change[4:] > 1e-9).all()


def test_what_lies_many_windows_back_is_reached():
    subject = recurrent(window=2)
    assert (subject.influence[12, :12] > 1e-9 * subject.influence.max()).all()


def states_after(subject, tokens, sizes):
    x, start = subject.inputs(2, tokens), 0
    state = subject.kind.state(subject.view, 2, tokens)
    for size in sizes:
        _, state = subject.extend(subject.params, x[:, start : start + size], state, start)
        start += size
    return state


def test_states_change_when_a_window_is_complete_and_not_before():
    subject = recurrent()
    three, four, seven = (states_after(subject, 8, sizes) for sizes in ([3], [3, 1], [3, 1, 3]))
    np.testing.assert_array_equal(three.memory, np.stack([subject.params["states"]["initial"]] * 2))
    assert np.abs(four.memory - three.memory).min() > 1e-6
    np.testing.assert_array_equal(seven.memory, four.memory)


def test_chunks_over_several_windows_give_the_states_of_single_steps():
    subject = recurrent(form="dual", gate="lstm")
    step, chunk = states_after(subject, 13, [1] * 13), states_after(subject, 13, [2, 11])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), step, chunk)


def test_padding_anywhere_is_as_if_it_were_not_there():
    subject = recurrent()
    x = subject.inputs(1)
    padding = jnp.ones((1, 13), bool).at[0, jnp.array([0, 1, 5, 12])].set(False)
    kept = np.flatnonzero(padding[0])
    y = subject.apply(subject.params, x, None, padding)
    np.testing.assert_allclose(y[:, kept], subject.apply(subject.params, x[:, kept]), rtol=1e-9, atol=1e-12)


def gate(kind, **fields):
    """A gate of one state of 8 channels; all of its weights are zero but the biases that are given."""
    view = recurrent(gate=kind, **fields).view
    names = ("gate_bias", "input_bias", "forget_bias")
    ones = jnp.ones((1, 1, 8))

    def run(memory, z, **biases):
        params = {name: jnp.full(8, biases.get(name, 0.0)) for name in names}
        params |= {name: jnp.zeros((8, 8)) for name in ("input", "forget")}
        return recurrent_states._GATES[kind](view, params, memory * ones, ones, z * ones)[0, 0, 0]

    return run


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_the_fixed_gate_is_a_mean_with_a_learned_share():
    assert gate("fixed")(2.0, 6.0, gate_bias=0.0) == pytest.approx(4.0)
    assert gate("fixed")(2.0, 6.0, gate_bias=1.0) == pytest.approx(2 * sigmoid(1.0) + 6 * (1 - sigmoid(1.0)))


def test_the_lstm_gate_leans_to_remembering():
    assert gate("lstm")(2.0, 6.0) == pytest.approx(2 * sigmoid(1.0) + 6 * sigmoid(-1.0))
    assert gate("lstm")(2.0, 6.0, forget_bias=0.5) == pytest.approx(2 * sigmoid(1.5) + 6 * sigmoid(-1.0))
    squashed = gate("lstm", lstm_input="paper")(2.0, 6.0)
    assert squashed == pytest.approx(2 * sigmoid(1.0) + np.tanh(6.0) * sigmoid(-1.0))


def test_only_dual_and_single_have_a_feed_forward_network_and_single_one_gate():
    leaves = {form: recurrent(form=form, gate="lstm").params["states"] for form in ("skip", "single", "dual")}
    assert {form: sorted({"mix", "mlp"} & set(tree)) for form, tree in leaves.items()} == {
        "skip": ["mix"], "single": ["mlp"], "dual": ["mix", "mlp"],
    }  # fmt: skip
    assert leaves["single"]["mlp"]["up"].shape == (16, 32) and leaves["dual"]["mlp"]["up"].shape == (8, 32)


def test_published_layer_has_the_published_parameters():
    """Width 1024, 8 heads of 128, 512 states, the form `skip`, counted by hand. Projections of 1024 x 1024: of the
    tokens two queries, keys, values and a wide output; of the states the same; initial states, ids, norm and gate."""
    config = ModelConfig(
        pattern="R", vocab_size=256, d_model=1024, n_heads=8, head_dim=128,
        block_recurrent={"window": 512, "n_states": 512},
    )  # fmt: skip
    square = 1024 * 1024
    tokens = 4 * square + 2 * square + 32 * 8 + 2 * 8
    states = 4 * square + 2 * square + 2 * 512 * 1024 + 2 * 1024 + 2 * 8
    assert layer_parameters(config) == [tokens + states + 1024]


def test_what_decoding_carries_does_not_grow_with_the_capacity():
    config = recurrent().config
    assert state_bytes(config, 10) == state_bytes(config, 100_000)


def test_memory_of_the_gradient_is_linear_in_the_length():
    """4096 x 4096 scores of one head would be 64 MiB."""
    config = example("R", n_heads=1, block_recurrent={"window": 32, "n_states": 8}, param_dtype="float32")
    view = dataclasses.replace(config, compute_dtype="float32").sublayer("R")[1]
    params = Subject("R", config).initial

    def bytes_of(length):
        def loss(params, x):
            return block_recurrent.apply(view, params, x, Context(positions=None))[0].sum()

        x = jax.ShapeDtypeStruct((1, length, 8), jnp.float32)
        gradient = compiled(jax.grad(loss))
        return gradient.lower(params, x).compile().memory_analysis().temp_size_in_bytes

    short, long = bytes_of(1024), bytes_of(4096)
    assert long < 4.5 * short and long < 4096 * 4096


def test_a_distance_that_the_buckets_cover_already_is_refused():
    with pytest.raises(ConfigError, match="relative_distance: 16 is not allowed"):
        example("R", block_recurrent={"relative_distance": 16})


def test_one_state_of_rows_at_different_places_of_their_windows():
    subject = recurrent()
    x = subject.inputs()
    state = subject.kind.state(subject.view, 2, 13)
    _, state = subject.extend(subject.params, x[:, :3], state, 0)
    _, longer = subject.extend(subject.params, x[:, 3:6], state, 3)
    mixed = jax.tree.map(lambda a, b: jnp.stack([a[0], b[1]]), state, longer)
    new = jnp.stack([x[0, 3:9], x[1, 6:12]])
    run = compiled(
        lambda x, state: subject.kind.extend(subject.view, subject.params, x, state, Context(positions=None))
    )
    y, state, _ = run(new, mixed)
    whole = subject.apply(subject.params, x)
    np.testing.assert_allclose(y, jnp.stack([whole[0, 3:9], whole[1, 6:12]]), rtol=1e-8, atol=1e-12)
    assert state.filled.tolist() == [9, 12]
