import importlib.resources
import json
import math
import re
import zipfile

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from nn_adv import models, zoo
from nn_adv.zoo import convert

MINIMAL = {"name": "a", "dataset": "mnist", "threat": "L2", "architecture": "mlp", "files": [{"name": "a.pt"}]}


@pytest.fixture(scope="module")
def published(shared_dir):
    """What is known of the published networks, by name."""
    path = shared_dir / "reference" / "robustbench" / "models.json"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    return {record["name"]: record for record in json.loads(path.read_text())["models"]}


def test_all_published_networks_are_there_with_their_facts(published):
    entries = zoo.catalogue()
    assert list(entries) == list(published) and len(entries) == 76
    assert sum(entry.in_paper for entry in entries.values()) == 69
    for name, entry in entries.items():
        record = published[name]
        facts = (entry.in_paper, entry.extra_data, entry.clean_accuracy, entry.autoattack_accuracy)
        keys = ("in_paper_69", "extra_training_data", "clean_accuracy", "autoattack_accuracy")
        assert facts == tuple(record[key] for key in keys), name
        assert entry.best_known_accuracy == record["best_known_accuracy"]
        assert entry.epsilon == pytest.approx(record["eps_value"], abs=0, rel=1e-15)
        assert entry.paper == record["paper_url"] and entry.licence.startswith(record["licence"])
        assert entry.output.split("_")[0] in record["output"] and entry.num_classes == 10
        assert any("unreliable" in note for note in entry.notes) == bool(record["flagged_unreliable"])


def test_files_and_the_way_they_are_read_are_the_published_ones(published):
    for name, entry in zoo.catalogue().items():
        record = published[name]
        loading = record["state_dict_loading"]
        files = {file.name: file.source for file in entry.files}
        if loading["procedure"] == "timm":  # kept elsewhere by its loader
            assert list(files) == [f"{name}.pt"] and list(files.values()) == record["download"]["urls"]
            continue
        assert [f"models/cifar10/Linf/{file}" for file in files] == record["checkpoint_files"]
        assert list(files.values()) == [f"gdrive:{identity}" for identity in record["download"]["gdrive_ids"]]
        assert list(entry.prefixes) == loading["strip_if_contained"]
        if loading["procedure"] == "single":
            assert entry.files[0].outer_key == loading.get("outer_key") and not entry.files[0].into


def _architectures():
    """Give each architecture with its options once, and the networks that have it; all but two are slow."""
    groups = {}
    for entry in zoo.catalogue().values():
        groups.setdefault((entry.architecture, json.dumps(entry.arguments), entry.unused), []).append(entry)
    return [
        pytest.param(entries, id=f"{architecture}{arguments}", marks=[pytest.mark.slow] * (number > 1))
        for number, ((architecture, arguments, _), entries) in enumerate(groups.items())
    ]


@pytest.mark.parametrize("entries", _architectures())
def test_every_network_builds_with_the_published_keys_and_number_of_parameters(entries, shared_dir):
    path = shared_dir / "reference" / "robustbench" / "fixtures.json"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    first = entries[0]
    model = models.create(first.architecture, first.num_classes, **first.arguments)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *first.image_shape)))
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    ours = {convert._key(leaf): leaf[0] for leaf in flatten_dict(variables)}
    needed = {key for key, collection in ours.items() if collection != "constants"}
    # Names that tensors have besides those in the files, and two numbers that the published network does not run.
    others = r"(.*\.)?num_batches_tracked|branch\d\..*|comp_model\..*|_alpha_diffable|std_map\.approx\.power"
    knowingly = re.compile("|".join((others, *first.unused)))
    fixtures = json.loads(path.read_text())["fixtures"]
    for entry in entries:
        (fixture,) = [fixture for fixture in fixtures if entry.name in fixture["covers"]]
        published = {key for key, _, _ in fixture["state_dict"]}
        assert needed <= published, entry.name
        assert {key for key in published - ours.keys() if not knowingly.fullmatch(key)} == set(), entry.name
        assert all(any(key.startswith(file.into) for file in entry.files) for key in needed), entry.name
        # A group of blocks that the network has no use for stands in some state dicts.
        unused = [shape for key, shape, _ in fixture["state_dict"] if re.match(r"sub_block1\..*(weight|bias)$", key)]
        # The two mixtures count their numbers, constants here, as parameters.
        kept = {key.lstrip("_"): len(values) for key, values in fixture["kept_values"].items()}
        numbers = sum(kept.values()) if entry.output == "log_probabilities" else 0
        assert count + sum(map(math.prod, unused)) + numbers == fixture["n_parameters"], entry.name


def test_the_catalogue_is_read_out_of_an_installed_package_too(tmp_path, monkeypatch):
    """A zip is the strictest installation: no file of it has a path."""
    archive = tmp_path / "package.zip"
    source = importlib.resources.files("nn_adv.zoo") / "catalogue.json"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("somewhere/__init__.py", "")
        file.writestr("somewhere/catalogue.json", source.read_bytes())
    monkeypatch.syspath_prepend(str(archive))
    text = importlib.resources.files("somewhere").joinpath("catalogue.json").read_text("utf-8")
    assert len(json.loads(text)) == len(zoo.catalogue())


def test_a_catalogue_of_ones_own(tmp_path):
    path = tmp_path / "own.json"
    more = {"epsilon": "1/4", "image_shape": [28, 28, 1], "renames": [["^x", "y"]], "arguments": {"hidden_sizes": [4]}}
    path.write_text(json.dumps([MINIMAL, {**MINIMAL, "name": "b", **more}]))
    first, second = zoo.catalogue(path).values()
    assert (first.output, first.epsilon, first.prefixes, first.files) == ("logits", None, (), (zoo.File("a.pt"),))
    assert (second.epsilon, second.image_shape, second.renames) == (0.25, (28, 28, 1), (("^x", "y"),))
    assert zoo.find("b", path) == second and len({first, second}) == 2


def test_a_catalogue_that_is_no_text_is_named(tmp_path):
    (tmp_path / "own.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="own.json is no JSON .*decode byte"):
        zoo.catalogue(tmp_path / "own.json")


def _with(**fields):
    return json.dumps([MINIMAL | fields])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "own.json is no JSON"),
        ("{}", "own.json must be a list of records"),
        ("[3]", "own.json must be a list of records"),
        (json.dumps([{"name": "a"}]), "record 'a': missing dataset, threat, architecture, files"),
        (json.dumps([{**MINIMAL, "acuracy": 1}]), "record 'a': unknown acuracy; the fields of Entry are name"),
        (json.dumps([{**MINIMAL, "files": [{"path": "a.pt"}]}]), "record 'a': unknown path; the fields of File"),
        (json.dumps([{**MINIMAL, "files": [{"name": "../a.pt"}]}]), "name of a file must have no folder"),
        (json.dumps([{**MINIMAL, "files": []}]), "files must be a list of one or more"),
        (json.dumps([{**MINIMAL, "name": "../a"}]), "name must be of letters, digits"),
        (json.dumps([{**MINIMAL, "output": "labels"}]), "output must be one of logits, probabilities"),
        (
            json.dumps([{**MINIMAL, "epsilon": "eight"}]),
            "record 'a': epsilon must be a number or a fraction .*, got 'eight'",
        ),
        (json.dumps([{**MINIMAL, "unused": ["("]}]), "record 'a': missing \\), unterminated"),
        (json.dumps([{**MINIMAL, "arguments": [1]}]), "arguments must be options by name"),
        (_with(epsilon="1/0"), "record 'a': epsilon must be a number or a fraction .*, got '1/0'"),
        (_with(epsilon="1e400"), "record 'a': epsilon must be a number or a fraction .*, got '1e400'"),
        (_with(epsilon=True), "record 'a': epsilon must be a number or null, got True"),
        (_with(prefixes="module."), r"own.json, record 'a': prefixes must be a list of texts, got 'module\.'"),
        (_with(unused=[1]), r"record 'a': unused must be a list of texts, got \[1\]"),
        (_with(notes="a note"), "record 'a': notes must be a list of texts, got 'a note'"),
        (
            _with(renames=["ab"]),
            r"record 'a': renames must be a list of pairs of a text and one or more texts, got \['ab'\]",
        ),
        (_with(renames=[["a", "b", "c"]]), "record 'a': renames must be a list of pairs of a text and one"),
        (_with(renames=[[["a"], "b"]]), "record 'a': renames must be a list of pairs of a text and one"),
        (_with(renames=[["a", []]]), "record 'a': renames must be a list of pairs of a text and one"),
        (_with(epsilon=-1), "record 'a': epsilon must be at least 0, got -1"),
        (_with(num_classes=1), "record 'a': num_classes must be at least 2, got 1"),
        (_with(image_shape=[0, 28, 1]), r"record 'a': image_shape must be positive, got \[0, 28, 1\]"),
        (_with(clean_accuracy=935), "record 'a': clean_accuracy must be a percentage, got 935"),
        (
            _with(files=[{"name": "a.pt", "source": "s3:a"}]),
            "record 'a': the source of a file must be gdrive:ID or an http address, got 's3:a'",
        ),
        (_with(image_shape=28), "record 'a': image_shape must be a list of three whole numbers, got 28"),
        (_with(image_shape=[28, 28]), "record 'a': image_shape must be a list of three whole numbers"),
        (_with(num_classes="10"), "record 'a': num_classes must be a whole number, got '10'"),
        (_with(num_classes=10.0), "record 'a': num_classes must be a whole number, got 10.0"),
        (_with(clean_accuracy="93.5"), "record 'a': clean_accuracy must be a number or null, got '93.5'"),
        (_with(clean_accuracy=math.nan), "record 'a': clean_accuracy must be a number or null, got nan"),
        (_with(in_paper="yes"), "record 'a': in_paper must be true or false, got 'yes'"),
        (_with(paper=3), "record 'a': paper must be a text, got 3"),
        (_with(dataset=None), "record 'a': dataset must be a text, got None"),
        (_with(files=["a.pt"]), r"record 'a': files must be a list of one or more records, got \['a.pt'\]"),
        (_with(files=[{"name": 3}]), "record 'a': files: name must be a text, got 3"),
        (_with(files=[{"name": "a.pt", "outer_key": 3}]), "record 'a': files: outer_key must be a text or null, got 3"),
        (json.dumps([MINIMAL, MINIMAL]), "has two records of the name 'a'"),
    ],
)
def test_unfit_catalogues_are_refused(tmp_path, text, message):
    path = tmp_path / "own.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        zoo.catalogue(path)


def test_numbers_may_be_whole_and_unknown(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(_with(clean_accuracy=93, autoattack_accuracy=None, epsilon=1))
    (entry,) = zoo.catalogue(path).values()
    assert (entry.clean_accuracy, entry.autoattack_accuracy, entry.epsilon) == (93, None, 1)


def test_an_unknown_name_is_answered_with_near_ones():
    with pytest.raises(ValueError, match="no network 'Wong2020fast' in the catalogue; it has Wong2020Fast"):
        zoo.find("Wong2020fast")
