"""Mamba, appendix E.1: the numbers of both tasks."""

from __future__ import annotations

from tests.experiments.protocols.trials import trial


def test_mamba():
    heads, attention = trial("mamba-e1", "induction-heads", "MM"), trial("mamba-e1", pattern="AA", model={"n_heads": 8})
    assert (heads.model.d_model, heads.optimizer.learning_rate) == (64, 1e-3)
    assert (attention.model.d_model, attention.optimizer.learning_rate) == (128, 2e-4)
    assert [each.seq_len for each in heads.data.slices] == [2**n for n in range(6, 21)]
    assert (heads.train.steps, heads.data.batch_size, heads.data.examples) == (25 * 8192, 8, 0)
    copying = trial("mamba-e1", "selective-copying", "MM")
    assert (copying.data.seq_len, copying.train.steps, copying.optimizer.learning_rate) == (4112, 400_000, 1e-4)
