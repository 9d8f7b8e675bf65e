"""What a protocol gives, what it leaves alone, and what is refused."""

from __future__ import annotations

import pytest

from experiments.config import trial_from
from experiments.identity import identity, trial_plain
from experiments.protocols import PROTOCOLS
from hybrid.validation import ConfigError
from tests.experiments.protocols.trials import trial


def test_what_a_config_sets_stays_and_everything_is_written_out():
    one = trial("zoology-iclr24", train={"steps": 100}, optimizer={"learning_rate": 3e-3, "clip_norm": 1.0})
    assert (one.train.steps, one.optimizer.learning_rate, one.optimizer.clip_norm) == (100, 3e-3, 1.0)
    written = trial_plain(one)
    assert written["protocol"] == "zoology-iclr24" and written["optimizer"]["b2"] == 0.999
    assert trial_from(written) == one
    assert identity(trial_from({**written, "protocol": ""}), "x") == identity(one, "x")  # the word changes nothing


def test_words_that_are_no_protocol_and_tasks_that_are_not_its_own_are_refused():
    with pytest.raises(ConfigError, match=r"protocol: 'zoology' is not a known protocol; did you mean 'zoology-state'"):
        trial("zoology")
    with pytest.raises(ConfigError, match=r"data.source: 'parity' is not allowed; mad is about mad-in-context-recall"):
        trial("mad", "parity")
    for protocol in PROTOCOLS.values():
        assert protocol.about and protocol.source and protocol.rates
