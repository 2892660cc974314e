"""Every architecture against the outputs of the published network with the same weights."""

from __future__ import annotations

from tests.zoo import fixtures


def test_parity_resnet(shared_dir):
    assert fixtures.compare(shared_dir, "resnet18", "resnet18", {}).deviation < 1e-4
