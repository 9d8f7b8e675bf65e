"""Every kind of the table is held to the contract of a sublayer by what it declares (hybrid/testing).

A new kind is picked up with its default config. Other configs of a kind are rows of VARIANTS.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hybrid import testing
from hybrid.sublayers import KINDS
from hybrid.testing.stack import check_sharding
from hybrid.testing.subject import LENGTH
from hybrid.testing.sublayer import PIECES, check_chunks

GROUPED = {"n_heads": 4, "n_kv_heads": 2}
RECURRENT = {"window": 5, "n_states": 3, "relative_buckets": 4, "relative_distance": 5}
OPTIONS = {"qk_norm": True, "qkv_bias": True, "out_bias": True, "softcap": 3.0}
# name: symbol, fields, and what these fields may change beside what the kind's defaults are held to. Masked rows are
# the stronger test of `apply`.
VARIANTS = {
    "A grouped, all options": ("A", {**GROUPED, "attention": OPTIONS}, ("masks", "chunks")),
    "A chunked, one key head, no positions": (
        "A", {"n_kv_heads": 1, "positions": "none", "head_dim": 3, "attention": {"form": "chunked"}}, ("masks",)
    ),
    "A turned in part, scaled, gated": (
        "A", {
            "head_dim": 6,
            "attention": {
                "rope_fraction": 0.7, "rope_scaling": "llama3", "rope_factor": 4.0, "rope_original_length": 16,
                "gate": True, "scale": 0.3,
            },
        }, ("masks", "chunks", "left_padding"),
    ),
    "A alibi": ("A", {"n_heads": 3, "head_dim": 4, "positions": "alibi"}, ("masks", "chunks", "left_padding")),
    "A t5": ("A", {"positions": "t5", "relative_buckets": 6, "relative_distance": 9}, ("masks", "chunks", "packing")),
    "B t5, grouped": (
        "B", {**GROUPED, "positions": "t5", "relative_buckets": 8, "relative_distance": 9}, ("masks", "packing")
    ),
    "B all options": ("B", {**GROUPED, "bidirectional_attention": OPTIONS}, ("masks",)),
    "X all options": ("X", {**GROUPED, "cross_attention": OPTIONS}, ("masks", "chunks")),
    "[A|M] sum": ("[A|M]", {}, tuple(name for name in testing.CHECKS if name not in testing.DEVICES)),
    "[A|M|-] mean": ("[A|M|-]", {"merge": "mean"}, ("masks", "chunks")),
    "S window of 4, all options": (
        "S", {**GROUPED, "sliding_window": {**OPTIONS, "window": 4}},
        ("masks", "reach", "packing", "chunks", "state", "left_padding"),
    ),
    "S blocks, alibi": (
        "S", {"positions": "alibi", "sliding_window": {"window": 3, "form": "blocks"}},
        ("reference", "masks", "lengths", "chunks", "compilation"),
    ),
    **{
        f"R {form}, {gate}": (
            "R", {"n_kv_heads": 1, "block_recurrent": {**RECURRENT, "form": form, "gate": gate}}, checks
        )
        for form, gate, checks in (
            ("skip", "fixed", ("masks", "reach", "lengths", "chunks", "left_padding", "compilation")),
            ("skip", "lstm", ("masks",)),
            ("single", "fixed", ("masks",)),
            ("single", "lstm", ("masks", "chunks")),
            ("dual", "fixed", ("masks",)),
            ("dual", "lstm", ("masks", "state", "initial", "precision")),
        )
    },
    "M all options": (
        "M", {"mamba": {"inner_norm": True, "proj_bias": True, "d_conv": 3, "dt_rank": 2}}, ("masks", "chunks")
    ),
    "M no convolution, dt and C constant": (
        "M", {"mamba": {"conv": False, "selective": "B", "proj_bias": True, "inner_norm": True}}, ("masks", "chunks")
    ),
    "M B constant": ("M", {"mamba": {"selective": "dt,C", "scan": "associative"}}, ("masks", "left_padding")),
    "M nothing selective": ("M", {"mamba": {"selective": "none", "scan": "sequential"}}, ("masks", "initial")),
    "C projected, active": (
        "C", {"short_conv": {"form": "projected", "activation": "silu", "width": 4}}, ("masks", "chunks", "reach")
    ),
    "C gated, active, one tap": (
        "C", {"short_conv": {"width": 1, "bias": False, "activation": "silu"}}, ("masks", "chunks", "reach")
    ),
    "C plain": ("C", {"short_conv": {"form": "plain", "width": 2}}, ("masks", "left_padding", "initial")),
    "L wide, erf, associative": (
        "L", {"rglru": {"width": 12, "blocks": 3, "activation": "gelu", "d_conv": 2, "scan": "associative"}},
        ("masks", "chunks"),
    ),
    "G grouped, signed": (
        "G",
        {"gated_delta": {"n_value_heads": 4, "value_dim": 3, "conv_bias": True, "d_conv": 2, "eigenvalues": "signed"}},
        ("masks", "chunks"),
    ),
    "G small chunks, one key head": (
        "G", {"gated_delta": {"n_key_heads": 1, "key_dim": 4, "chunk": 5, "d_conv": 1}}, ("masks", "lengths")
    ),
    "L chunked, one tap": ("L", {"rglru": {"blocks": 1, "d_conv": 1, "c": 2.0, "scan": "chunked"}}, ("masks",)),
    "M associative, no short convolution": (
        "M", {"mamba": {"scan": "associative", "d_conv": 1, "conv_bias": False, "expand": 3, "d_state": 1}}, ("masks",)
    ),
    "D chunks, groups, all biases, limits": (
        "D",
        {"mamba2": {
            "n_groups": 2, "d_inner": 12, "head_dim": 3, "d_state": 5, "d_conv": 3, "chunk": 4, "proj_bias": True,
            "out_bias": True, "dt_limit_min": 0.01, "dt_limit_max": 0.8, "norm": "before_gate", "norm_eps": 1e-3,
        }},
        ("masks", "chunks", "packing", "lengths"),
    ),
    "D sequential, no norm, no short convolution": (
        "D", {"mamba2": {"form": "sequential", "norm": "none", "d_conv": 1, "conv_bias": False, "d_state": 1}},
        ("masks", "chunks"),
    ),
    "D norm of the whole": (
        "D", {"mamba2": {"n_groups": 2, "norm_groups": 1, "chunk": 5, "d_state": 3, "expand": 1}}, ("masks",)
    ),
    "H order 4": (
        "H", {"hyena": {"order": 4, "filter_length": 64, "decay_shift": 0.05, "short_conv": 1}}, ("masks", "chunks")
    ),
    "H paper": ("H", {"hyena": {"form": "paper", "filter_length": 33, "emb_dim": 3, "filter_layers": 1}}, ("masks",)),
    "H paper, order 3": (
        "H", {"hyena": {"form": "paper", "order": 3, "filter_length": 50, "filter_width": 5}}, ("chunks", "lengths")
    ),
    "H order 3": ("H", {"hyena": {"order": 3, "filter_length": 37, "filter_width": 6}}, ("lengths",)),
    "H modal": (
        "H", {"hyena": {"filter": "modal", "modes": 3}},
        ("masks", "lengths", "chunks", "state", "left_padding", "initial"),
    ),
    "H modal, paper, order 3": ("H", {"hyena": {"filter": "modal", "form": "paper", "order": 3}}, ("chunks",)),
    "- relu": ("-", {"d_ff": 5, "mlp": {"activation": "relu", "bias": True}}, ("masks",)),
    **{
        f"- {name}": ("-", {"d_ff": 5, "mlp": {"activation": name, "bias": True}}, ("masks",))
        for name in ("relu2", "gelu", "gelu_tanh", "silu", "swiglu", "geglu", "geglu_tanh")
    },
    "E capacity, full": (
        "E", {"d_ff": 5, "moe": {"dispatch": "capacity", "n_experts": 4, "capacity_factor": 0.7}},
        ("masks", "chunks", "state", "packing"),
    ),
    "E jamba, a gated shared expert": (
        "E", {"d_ff": 5, "moe": {"gate": "jamba", "activation": "relu2", "n_shared": 1, "shared_gate": "sigmoid",
                                 "n_experts": 3}}, ("masks",)
    ),
    "E sigmoid with a bias, three of five, ragged": (
        "E", {"moe": {"gate": "sigmoid", "gate_scale": 2.5, "bias_rate": 0.1, "n_experts": 5, "top_k": 3, "d_ff": 4,
                      "n_shared": 2, "shared_d_ff": 3, "form": "ragged"}}, ("masks",)
    ),
    "E dense": ("E", {"d_ff": 5, "moe": {"dispatch": "dense", "top_k": 1, "activation": "gelu"}}, ("masks",)),
}  # fmt: skip


@functools.cache
def subject(name: str) -> testing.Subject:
    """One for each config, so that its compiled functions are shared by the tests."""
    symbol, fields, _ = VARIANTS.get(name, (name, {}, ()))
    return testing.Subject(symbol, testing.example(symbol, **fields))


@pytest.mark.parametrize("symbol", sorted(KINDS))
@pytest.mark.parametrize("check", [name for name in testing.CHECKS if name not in testing.DEVICES])
def test_contract(symbol, check):
    testing.CHECKS[check](subject(symbol))


@pytest.mark.parametrize(("name", "check"), [(name, check) for name, row in VARIANTS.items() for check in row[2]])
def test_contract_of_other_configs(name, check):
    testing.CHECKS[check](subject(name))


@pytest.mark.parametrize("symbol", sorted(KINDS))
def test_any_cut_into_chunks_gives_the_whole(symbol):
    """The sizes are drawn from those that are compiled already."""

    @settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=LENGTH))
    def cut(sizes):
        while sum(sizes) > LENGTH:
            sizes.pop()
        check_chunks(subject(symbol), [sizes])

    cut()


@pytest.mark.parametrize("symbols", [sorted(KINDS)[0::2], sorted(KINDS)[1::2]], ids="".join)
def test_eight_devices_give_the_numbers_of_one(symbols):
    """A process with eight simulated devices for half of the kinds."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "hybrid.testing", "--only", *testing.DEVICES, "--", *symbols]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split("\n")[:-1] == [f"ok {symbol}" for symbol in symbols]


def test_sharding_needs_the_devices_that_it_speaks_of():
    with pytest.raises(ValueError, match="8 devices are not there"):
        check_sharding(subject("-"))


def test_every_kind_names_its_reference():
    assert [symbol for symbol, kind in KINDS.items() if kind.reference is None] == []
