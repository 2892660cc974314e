"""Published forms of the networks that are trained here too: gradients against finite differences."""

from __future__ import annotations

import jax
import pytest

from nn_adv import models
from tests.models.differences import check_gradient, double

_WIDE = {"depth": 10, "widen_factor": 1}
_FORMS = {
    "boosting": models.create("boosting_wide_resnet", 3, **_WIDE),
    "dm_preact": models.create("dm_preact_resnet18", 3, width=4),
    "dm_wide": models.create("dm_wide_resnet", 3, **_WIDE),
    "ensemble": models.create("preact_resnet50_ensemble", 3, num_members=2, stage_sizes=(1, 1), width=2),
    "pssilu": models.create("pssilu_wide_resnet", 3, **_WIDE),
    "standardised": models.create("wide_resnet", 3, standardise_images=True, **_WIDE),
}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", _FORMS)
def test_gradient_equals_finite_differences(name):
    with jax.enable_x64(True):
        variables, images = double(_FORMS[name])
        check_gradient(lambda images: _FORMS[name].apply(variables, images), images)
