"""Which networks a leaderboard chooses."""

from configs import leaderboard as config_file
from experiments import networks
from nn_adv import zoo


def test_patterns_take_the_papers_models_whatever_lies_in_the_folder(tmp_path):
    config = config_file.get_config("cifar10")
    config.weights_dir = str(tmp_path)
    config.download = True  # no weights are asked for
    assert len(networks.choose(config)) == 1 + 69
    config.only_in_paper = False
    assert len(networks.choose(config)) == 1 + len(zoo.catalogue())
    config.download = False
    entry = zoo.catalogue()["Wong2020Fast"]
    (tmp_path / "cifar10" / "Linf").mkdir(parents=True)
    (tmp_path / "cifar10" / "Linf" / entry.files[0].name).touch()
    everything = networks.choose(config)
    assert len(everything) == 1 + len(zoo.catalogue())
    source = networks.Source(None, config.weights_dir, download=False)
    absent = {one.name for one in everything if networks.lacks_weights(one, source)}
    assert {one.name for one in everything} - absent == {"1nn", "Wong2020Fast"}
    config.models = ("Standard", "*")
    optional = {one.name for one in networks.choose(config) if one.is_optional}
    assert "Standard" not in optional and len(optional) == len(zoo.catalogue()) - 1  # asked for by its name
