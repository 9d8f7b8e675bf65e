"""Modal filters: taps from poles and residues, and decoding from a state that does not grow."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import hybrid
from hybrid.accounting import parameters, state_bytes
from hybrid.sublayers.modal_filter import modal_extend, modal_taps
from hybrid.testing import Subject, example

pytestmark = pytest.mark.usefixtures("x64")


def modal(**fields):
    return example("H", hyena={"filter": "modal", **fields})


def test_taps_are_sums_of_powers_of_the_poles():
    g = np.random.default_rng(0)
    poles, residues = (g.normal(size=(1, 8, 2, 2)) * size for size in (0.5, 1.0))
    taps = modal_taps(modal(), {"poles": jnp.asarray(poles), "residues": jnp.asarray(residues)}, 20)
    p, r = (leaf[..., 0] + 1j * leaf[..., 1] for leaf in (poles, residues))
    wanted = [(r * p**t).sum(-1).real for t in range(20)]
    np.testing.assert_allclose(taps, np.stack(wanted, axis=-1), rtol=1e-9, atol=1e-12)


def test_a_real_pole_without_its_partner_is_an_exponential_average():
    """pole a, residue 1: y_t = a y_(t-1) + u_t."""
    pole, residue = (jnp.asarray([[[value, 0.0]]]) for value in (0.9, 1.0))
    u, y, wanted = np.random.default_rng(0).normal(size=40), 0.0, []
    for value in u:
        y = 0.9 * y + value
        wanted.append(y)
    state, parts = jnp.zeros((1, 1, 1, 2)), []
    for part in np.split(u, [1, 2, 17]):
        kernel = 0.9 ** jnp.arange(len(part))[None]
        got, state = modal_extend(pole, residue, kernel, None, jnp.asarray(part)[None, None], state)
        parts.append(got[0, 0])
    np.testing.assert_allclose(np.concatenate(parts), wanted, rtol=1e-9)
    assert state[0, 0, 0].tolist() == pytest.approx([wanted[-1], 0.0])


def test_what_decoding_carries_does_not_grow_and_any_length_is_read():
    config = modal(filter_length=4)
    assert state_bytes(config, 10) == state_bytes(config, 1_000_000)
    assert Subject("H", config).inputs(1, 40).shape[1] == 40
    assert Subject("H", example("H", hyena={"filter_length": 4})).limit == 4


def test_initial_poles_decay():
    poles = Subject("H", modal(modes=4)).initial["poles"]
    size = jnp.sqrt((poles**2).sum(-1))
    assert (size < 1).all() and (size > 0.6).all()


def test_stripedhyena_has_its_published_parameters():
    """7.65B: counted from its model code, layer by layer."""
    d, inner = 4096, 14336
    mlp = 3 * d * inner + 2 * d  # with the two norms of a block
    hyena = 3 * d * d + 3 * d + 3 * d * 3 + 3 * d + d + 2 * (d * 2 * 2) + d * d + d
    attention = d * (d + 2 * d // 4) + d * d
    published = 2 * 32000 * d + 16 * (hyena + mlp) + 16 * (attention + mlp) + d
    assert parameters(hybrid.preset("stripedhyena")).total == published
    assert round(published / 1e9, 2) == 7.65
