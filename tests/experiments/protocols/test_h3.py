"""H3: the numbers of the published configs."""

from __future__ import annotations

from tests.experiments.protocols.trials import trial


def test_h3():
    recall = trial("h3", "associative-recall")
    assert (recall.data.seq_len, recall.data.examples, recall.optimizer.learning_rate) == (42, 5000, 5e-4)
    assert recall.train.steps == 400 * 157 and recall.optimizer.warmup_steps == 6280
    assert (recall.optimizer.schedule, trial("h3", "h3-induction-heads").optimizer.schedule) == ("wsd", "cosine")
