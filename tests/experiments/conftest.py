"""Fixtures of the studies in studies.py."""

import pytest

from tests.experiments.studies import Workshop


@pytest.fixture
def workshop(tmp_path):
    return Workshop(tmp_path)


@pytest.fixture(scope="session")
def warm(tmp_path_factory):
    """The data of the tiny studies is prepared and their architectures are counted, so that no test waits for jax."""
    shop = Workshop(tmp_path_factory.mktemp("warm"))
    assert shop.sweep("--workers=1").code == 0
    return shop
