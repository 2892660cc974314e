"""What is read from a configuration, and what rows say of it."""

import pytest

from configs import ablations
from experiments import parsing
from nn_adv import Threat, training


@pytest.mark.parametrize(("groups", "said"), [(1, {}), (4, {"batch_norm_groups": 4})])
def test_rows_name_the_groups_of_batch_normalisation_where_there_are_several(groups, said):
    recipe = training.Recipe(threats=(Threat("l2", 0.5),), batch_norm_groups=groups)
    found = parsing.recipe_settings(recipe)
    assert {name: value for name, value in found.items() if name == "batch_norm_groups"} == said
    assert found["beta"] == 6.0 and "threats" not in found


def test_ablated_epsilons_hold_those_of_the_base():
    base = ablations.get_config()
    for share in ablations.VALUES["epsilon"]:
        config = ablations.get_config(f"epsilon={share:g}")
        for norm, main in base.epsilons.items():
            assert config.epsilons[norm] == share * main
            assert main in [config.epsilons[norm] * factor for factor in (1.0, *config.curve)]
