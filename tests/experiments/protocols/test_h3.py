"""H3: the numbers of the published configs."""

from __future__ import annotations

from tests.experiments.protocols.trials import trial


def test_h3_associative_recall_goes_up_for_a_tenth_and_then_straight_to_zero():
    one = trial("h3", "associative-recall", "A-A-")
    assert (one.data.seq_len, one.data.examples, one.data.batch_size) == (42, 5000, 32)
    assert (one.train.steps, one.optimizer.warmup_steps) == (400 * 157, 40 * 157)
    given = one.optimizer
    assert (given.schedule, given.decay_fraction, given.final_fraction) == ("wsd", 0.9, 0.0)
    assert (given.learning_rate, given.weight_decay, given.decay_on) == (5e-4, 0.1, "all")
    assert (given.b1, given.b2, given.clip_norm) == (0.9, 0.999, None)


def test_h3_induction_heads_end_at_a_tenth_of_the_rate():
    one = trial("h3", "h3-induction-heads", "A-A-")
    assert (one.data.seq_len, one.train.steps) == (31, 400 * 157)
    assert (one.optimizer.schedule, one.optimizer.final_fraction) == ("cosine", 0.1)


def test_h3_models_are_small_gpt_2s_and_only_attention_alone_has_positions():
    model = trial("h3", "associative-recall", "A-A-").model
    assert (model.d_model, model.d_ff, model.n_heads, model.dropout) == (32, 128, 1, 0.1)
    assert (model.norm, model.mlp.activation, model.mlp.bias, model.tie_embeddings) == (
        "layernorm", "gelu_tanh", True, True,
    )  # fmt: skip
    assert (model.attention.qkv_bias, model.attention.out_bias) == (True, True)
    assert (model.positions, model.max_length) == ("learned", 42)
    assert trial("h3", "associative-recall", "H-A-").model.positions == "none"
