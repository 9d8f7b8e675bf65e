"""Meshes that a trial cannot be trained on are refused by the field, before anything is loaded."""

import pytest

from hybrid.validation import ConfigError
from tests.experiments.training import trial


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mesh": {"sequence": 3}}, "must divide the 16 positions"),
        (
            {"model__pattern": "R", "model__block_recurrent": {"window": 5}, "mesh": {"sequence": 2}},
            "a multiple of 5, which block_recurrent keeps together",
        ),
        (
            {"model__pattern": "[H|A]", "mesh": {"sequence": 8, "tensor": 4}},
            "must be a multiple of 32",
        ),
    ],
)
def test_rows_that_cannot_be_cut_are_refused(fields, said):
    with pytest.raises(ConfigError) as error:
        trial(**fields)
    assert error.value.field == "mesh.sequence"
    assert said in str(error.value)


@pytest.mark.parametrize("pattern", ["AMH-", "R", "[H|A]"])
def test_rows_that_can_be_cut_are_taken(pattern):
    fields = {"model__block_recurrent": {"window": 4}, "mesh": {"sequence": 2, "tensor": 2, "data": 2}}
    assert trial(model__pattern=pattern, **fields).mesh.sequence == 2
