"""Every network of the catalogue against outputs of the published one, with the same weights at full size.

What all of them came to is kept in docs/benchmarks/zoo_parity.json, by benchmarks/zoo_parity.py.
"""

from __future__ import annotations

import jax
import pytest

from nn_adv import zoo
from tests.zoo import fixtures


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", [*fixtures.QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in fixtures.LARGE)])
def test_outputs_are_those_published(shared_dir, name):
    outcome = fixtures.compare(shared_dir, name)
    jax.clear_caches()  # the next may need the memory
    assert outcome.deviation < outcome.limit


def test_every_network_of_the_catalogue_has_a_fixture(shared_dir):
    assert set(fixtures.read(shared_dir)) == {*fixtures.QUICK, *fixtures.LARGE}
    covered = []
    for name in fixtures.read(shared_dir):
        same = fixtures.entries(shared_dir, name)
        assert len({(entry.architecture, repr(entry.arguments), entry.output) for entry in same}) == 1
        covered += [entry.name for entry in same]
    assert sorted(covered) == sorted(zoo.catalogue()) and len(covered) == 76
