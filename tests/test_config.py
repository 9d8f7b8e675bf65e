"""ModelConfig: what it takes, what it refuses and how it says so, symbols of the user."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle

import pytest

from hybrid import ConfigError, ModelConfig, register
from hybrid.config import as_plain
from hybrid.pattern import SYMBOLS
from hybrid.sublayers import KINDS, kind_of

SMALL = {"pattern": "MA-H", "vocab_size": 11, "d_model": 8, "n_heads": 2}

# field of the error <- what is given, and words of the message
REFUSED = [
    ("patern", {"patern": "M"}, "did you mean 'pattern'"),
    ("mamba3", {"mamba3": {}}, "did you mean 'mamba'"),
    ("pattern", {"pattern": ""}, "empty"),
    ("pattern", {"pattern": "M("}, "never closed"),
    ("pattern", {"pattern": "MF"}, "did you mean '-'"),
    ("pattern", {"pattern": 3}, "string"),
    ("pattern", {"pattern": ("M", "A")}, "string"),
    ("encoder", {"pattern": "AX"}, "reads the output of an encoder"),
    ("encoder", {"pattern": "A", "encoder": "B"}, "no X of 'A' reads its output"),
    ("encoder", {"pattern": "AX", "encoder": "BQ"}, "unknown symbol 'Q'"),
    ("relative_distance", {"positions": "t5", "relative_distance": 16}, "above half of relative_buckets"),
    ("n_heads", {"pattern": "M", "n_heads": None, "positions": "alibi"}, "a number a head"),
    ("vocab_size", {"vocab_size": 0}, "at least 1"),
    ("vocab_size", {"vocab_size": "many"}, "an integer"),
    ("vocab_size", {"vocab_size": True}, "an integer"),
    ("vocab_size", {"vocab_size": None}, "an integer"),
    ("d_model", {"d_model": -8}, "at least 1"),
    ("d_model", {"d_model": 8.5}, "an integer"),
    ("d_model", {"d_model": [8]}, "an integer"),
    ("n_heads", {"n_heads": None}, "must be given"),
    ("n_heads", {"n_heads": 3}, "divide d_model = 8"),
    ("n_kv_heads", {"n_heads": 4, "n_kv_heads": 3}, "divide n_heads = 4"),
    ("head_dim", {"head_dim": 3}, "even"),
    ("head_dim", {"n_heads": 8}, "even"),
    ("dropout", {"dropout": 1.0}, "below 1"),
    ("dropout", {"dropout": -0.1}, "at least 0"),
    ("dropout", {"dropout": math.nan}, "finite"),
    ("embedding_scale", {"embedding_scale": math.inf}, "finite"),
    ("norm", {"norm": "rms_norm"}, "did you mean 'rmsnorm'"),
    ("norm_position", {"norm_position": "pre"}, "before, after, both"),
    ("positions", {"positions": "rotary"}, "learned, sinusoidal, rope"),
    ("max_length", {"positions": "learned"}, "must be given"),
    ("d_model", {"positions": "sinusoidal", "d_model": 9, "pattern": "M"}, "even"),
    ("tie_embeddings", {"tie_embeddings": 1}, "True or False"),
    ("tie_embeddings", {"tie_embeddings": "yes"}, "True or False"),
    ("logit_softcap", {"logit_softcap": 0}, "above 0"),
    ("remat", {"remat": "layer"}, "none, sublayer, unit"),
    ("remat", {"remat": True}, "none, sublayer, unit"),
    ("scan_layers", {"scan_layers": 1}, "auto, True, False"),
    ("compute_dtype", {"compute_dtype": "bf16"}, "bfloat16"),
    ("param_dtype", {"param_dtype": "float16"}, "float32, bfloat16, float64"),
    ("mamba", {"mamba": 16}, "a group of fields"),
    ("mamba.d_sate", {"mamba": {"d_sate": 4}}, "did you mean 'd_state'"),
    ("mamba.d_state", {"mamba": {"d_state": 0}}, "at least 1"),
    ("mamba.scan", {"mamba": {"scan": "paralel"}}, "associative"),
    ("mamba.dt_min", {"mamba": {"dt_min": 0.2}}, "at most dt_max"),
    ("hyena.order", {"hyena": {"order": 5}}, "2, 3 or 4"),
    ("hyena.order", {"hyena": {"order": 1}}, "at least 2"),
    ("hyena.emb_dim", {"hyena": {"emb_dim": 4}}, "odd"),
    ("hyena.decay_target", {"hyena": {"decay_target": 1.0}}, "below 1"),
    ("hyena.form", {"hyena": {"form": "papr"}}, "did you mean 'paper'"),
    ("attention.softcap", {"attention": {"softcap": -1}}, "above 0"),
    ("attention.form", {"attention": {"form": "flash"}}, "chunked"),
    ("attention.rope_theta", {"attention": {"rope_theta": "10k"}}, "a finite number"),
    ("mlp.activation", {"mlp": {"activation": "gleu"}}, "did you mean 'gelu'"),
    ("symbols", {"pattern": "w"}, "'w' is not defined"),
    ("symbols", {"symbols": {"W": {"kind": "A"}}}, "one lower-case letter"),
    ("symbols", {"symbols": ["w"]}, ""),
    ("symbols", {"symbols": "w"}, "map a letter"),
    ("symbols.w", {"symbols": {"w": {"n_heads": 2}}}, "field kind"),
    ("symbols.w.d_sate", {"pattern": "w", "symbols": {"w": {"kind": "M", "d_sate": 4}}}, "did you mean 'd_state'"),
    ("symbols.w.d_state", {"pattern": "w", "symbols": {"w": {"kind": "M", "d_state": -4}}}, "at least 1"),
    ("symbols.w.n_kv_heads", {"pattern": "w", "symbols": {"w": {"kind": "A", "n_kv_heads": 0}}}, "at least 1"),
    ("pattern", {"pattern": "w", "symbols": {"w": {"kind": "Z"}}}, "unknown symbol 'Z'"),
]


@pytest.mark.parametrize(("field", "given", "words"), REFUSED, ids=[f"{f} {list(g.values())}" for f, g, _ in REFUSED])
def test_bad_values_name_the_field_and_what_is_allowed(field, given, words):
    with pytest.raises(ConfigError) as caught:
        ModelConfig(**{**SMALL, **given})
    assert caught.value.field == field
    assert words in str(caught.value)
    assert str(caught.value).startswith(field)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["pattern", "vocab_size", "d_model"])
def test_what_has_no_default_must_be_given(field):
    with pytest.raises(ConfigError, match=f"{field}: must be given"):
        ModelConfig(**{name: value for name, value in SMALL.items() if name != field})


def test_equal_configs_are_one_key_of_a_table():
    one = ModelConfig(**SMALL, mamba={"d_state": 4}, dropout=0)
    other = ModelConfig(**SMALL, mamba=dict(KINDS["M"].config(d_state=4).__dict__), dropout=0.0)
    assert one == other
    assert len({one, other, ModelConfig(**SMALL, mamba={"d_state": 5})}) == 2


def test_a_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig(**SMALL).d_model = 9
    with pytest.raises(AttributeError, match="no field 'd_modle'"):
        _ = ModelConfig(**SMALL).d_modle


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"mamba": {"d_state": 4, "inner_norm": True}, "hyena": {"order": 3}, "dropout": 0.1},
        {"symbols": {"w": {"kind": "A", "n_kv_heads": 1, "softcap": 2.0}}, "pattern": "(wM)2A"},
        {"scan_layers": True, "logit_softcap": 30, "positions": "learned", "max_length": 64},
    ],
)
def test_plain_values_and_back(fields):
    config = ModelConfig(**{**SMALL, **fields})
    through_json = json.loads(json.dumps(as_plain(config)))
    assert ModelConfig(**through_json) == config
    assert as_plain(ModelConfig(**through_json)) == as_plain(config)
    assert dataclasses.replace(config) == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_whole_floats_are_integers_and_integers_are_floats():
    config = ModelConfig(**{**SMALL, "d_model": 8.0, "embedding_scale": 2})
    assert type(config.d_model) is int
    assert type(config.embedding_scale) is float


def test_defaults_that_follow_from_others():
    config = ModelConfig(**SMALL)
    assert config.width_ff == 32
    assert config.n_layers == 4
    assert config.sequence == ("M", "A", "-", "H")
    assert config.output_std == config.init_std
    deep = ModelConfig(**SMALL, residual_init="depth")
    assert deep.output_std == config.init_std / 2


def test_groups_of_kinds_that_the_pattern_lacks_are_checked_too():
    with pytest.raises(ConfigError, match=r"hyena\.order"):
        ModelConfig(pattern="M", vocab_size=5, d_model=4, hyena={"order": 9})


def test_heads_are_asked_for_only_where_there_are_any():
    assert ModelConfig(pattern="M-H", vocab_size=5, d_model=7).n_heads is None


# --- symbols of the user ----------------------------------------------------------------------------------------------


def test_a_symbol_stands_for_a_kind_with_overrides():
    config = ModelConfig(
        pattern="wAs", vocab_size=5, d_model=8, n_heads=4,
        symbols={"w": {"kind": "A", "n_kv_heads": 1, "qk_norm": True}, "s": {"kind": "M", "d_state": 3}},
    )  # fmt: skip
    (kind_w, w), (kind_a, a), (kind_s, s) = config.kinds()
    assert (kind_w.symbol, kind_a.symbol, kind_s.symbol) == ("A", "A", "M")
    assert (w.n_kv_heads, w.attention.qk_norm) == (1, True)
    assert (a.n_kv_heads, a.attention.qk_norm) == (None, False)
    assert (s.mamba.d_state, config.mamba.d_state) == (3, 16)


def test_overrides_are_part_of_the_identity():
    def of(n):
        return ModelConfig(pattern="w", vocab_size=5, d_model=8, symbols={"w": {"kind": "M", "d_state": n}})

    assert of(3) == of(3) != of(4)
    assert hash(of(3)) == hash(of(3))


def test_overrides_change_the_parameters_of_their_layers_alone():
    from hybrid.params import declarations_per_layer

    config = ModelConfig(
        pattern="Mw-v", vocab_size=5, d_model=8,
        symbols={"w": {"kind": "M", "d_state": 3}, "v": {"kind": "-", "d_ff": 5}},
    )  # fmt: skip
    layers = declarations_per_layer(config)["layers"]
    assert [layers[i]["sublayer"]["A_log"].shape for i in "01"] == [(16, 16), (16, 3)]
    assert [layers[i]["sublayer"]["up"].shape for i in "23"] == [(8, 32), (8, 5)]


# --- the table of kinds -----------------------------------------------------------------------------------------------


def test_every_symbol_of_the_language_is_a_kind():
    assert {symbol: kind.group for symbol, kind in KINDS.items()} == SYMBOLS
    with pytest.raises(ConfigError, match="unknown symbol 'Q'"):
        kind_of("Q")


@pytest.mark.parametrize("symbol", ["a", "1", "(", "", "ZZ", " ", "|", 3])
def test_signs_of_the_language_are_no_symbols_of_kinds(symbol):
    with pytest.raises(ConfigError, match="must be one character"):
        register(dataclasses.replace(KINDS["-"], symbol=symbol))


@pytest.mark.parametrize(("symbol", "owner"), [("M", "mamba"), ("E", "moe")])
def test_a_symbol_has_one_owner(symbol, owner):
    with pytest.raises(ConfigError, match=f"is the symbol of {owner}"):
        register(dataclasses.replace(KINDS["-"], symbol=symbol, group="mine"))
    assert symbol not in KINDS or KINDS[symbol].group == owner
