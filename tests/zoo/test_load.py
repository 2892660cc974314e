import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest

from nn_adv import models, zoo
from nn_adv.zoo import convert, files
from nn_adv.zoo.load import _logarithm
from tests.zoo import fixtures

SHAPE = (8, 8, 3)
RECORD = {
    "name": "Tiny",
    "dataset": "cifar10",
    "threat": "Linf",
    "architecture": "resnet18",
    "arguments": {"width": 4, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.3]},
    "image_shape": list(SHAPE),
    "prefixes": ["module."],
    "files": [{"name": "Tiny.pt"}],
}
IMAGES = np.random.default_rng(0).random((3, *SHAPE), np.float32)


@pytest.fixture(scope="module")
def network():
    """A small network and its variables, every leaf of them random."""
    model = models.create("resnet18", 10, **RECORD["arguments"])
    rng = np.random.default_rng(1)

    def draw(leaf):
        if leaf.ndim == 1:  # scales, offsets and statistics
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return (rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))).astype(np.float32)

    return model, jax.tree.map(draw, jax.eval_shape(model.init, jax.random.key(1), IMAGES[:1]))


@pytest.fixture
def state(network):
    return convert.to_state_dict(network[1])


class Zoo:
    """A folder of weights with a catalogue."""

    def __init__(self, folder):
        self.folder = folder
        self.place = folder / "cifar10" / "Linf"
        self.catalogue = folder / "own.json"
        self.describe()

    def describe(self, **fields):
        self.catalogue.write_text(json.dumps([{**RECORD, **fields}]))

    def write(self, state, name="Tiny.pt"):
        files.write_state_dict(self.place / name, state)

    def load(self, **options):
        return zoo.load("Tiny", self.folder, catalogue=self.catalogue, **options)

    def has_weights(self):
        return zoo.has_weights(zoo.find("Tiny", self.catalogue), self.folder)


@pytest.fixture
def own(tmp_path):
    pytest.importorskip("torch")
    return Zoo(tmp_path)


_run = jax.jit(lambda fn, images: fn(images))  # networks that differ in their weights alone share a program


def _logits(logits_fn):
    return np.asarray(_run(logits_fn, IMAGES))


def _expected(network):
    model, variables = network
    return _logits(jax.tree_util.Partial(model.apply, variables))


def test_what_was_exported_is_loaded_back_and_kept(own, network, state):
    assert not own.has_weights()
    own.write({f"module.{key}": value for key, value in state.items()})
    assert own.has_weights()
    model = own.load()
    assert model.entry == zoo.catalogue(own.catalogue)["Tiny"]
    np.testing.assert_array_equal(_logits(model.logits_fn), _expected(network))
    kept = files.read_state_dict(own.place / "Tiny.safetensors")
    assert set(kept) == set(state)
    np.testing.assert_array_equal(_logits(own.load().logits_fn), _expected(network))


@pytest.mark.slow
def test_what_is_kept_is_read_without_torch_and_without_its_source(own, network, state, monkeypatch):
    own.write(state)
    own.load()
    monkeypatch.setitem(sys.modules, "torch", None)
    np.testing.assert_array_equal(_logits(own.load().logits_fn), _expected(network))
    (own.place / "Tiny.pt").unlink()
    assert own.has_weights()
    np.testing.assert_array_equal(_logits(own.load().logits_fn), _expected(network))


def test_what_is_kept_is_made_anew_when_its_source_changes(own, state):
    own.write(state)
    before = _logits(own.load().logits_fn)
    own.write({**state, "linear.bias": state["linear.bias"] + 1})
    os.utime(own.place / "Tiny.pt", (1, 1))  # an older file, of the same size
    for _ in range(2):
        np.testing.assert_allclose(_logits(own.load().logits_fn), before + 1, rtol=1e-5, atol=1e-6)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("damage", [b"", b"<html>", b"not weights"])
def test_what_is_kept_is_made_anew_when_it_is_damaged(own, network, state, damage):
    own.write(state)
    own.load()
    path = own.place / "Tiny.safetensors"
    whole = path.read_bytes()
    path.write_bytes(damage or whole[:-8])
    np.testing.assert_array_equal(_logits(own.load().logits_fn), _expected(network))
    assert files.read_state_dict(path).keys() == state.keys()


def test_safetensors_from_elsewhere_are_used_alone_and_never_overwritten(own, network, state):
    other = {**state, "linear.bias": state["linear.bias"] + 1}
    own.write(other, "Tiny.safetensors")
    before = (own.place / "Tiny.safetensors").read_bytes()
    np.testing.assert_allclose(_logits(own.load().logits_fn), _expected(network) + 1, rtol=1e-5, atol=1e-6)
    own.write(state)
    np.testing.assert_array_equal(_logits(own.load().logits_fn), _expected(network))
    assert (own.place / "Tiny.safetensors").read_bytes() == before


@pytest.mark.parametrize("source", ["", "gdrive:abc"])
def test_what_is_kept_without_its_source_tells_why_it_cannot_be_used(own, state, monkeypatch, source):
    own.describe(files=[{"name": "Tiny.pt", "source": source}])
    own.write({key: value for key, value in state.items() if key != "bn1.bias"}, "Tiny.safetensors")
    with pytest.raises(ValueError, match=r"Tiny: .*Tiny\.safetensors: .*1 missing \(bn1\.bias\)"):
        own.load()
    (own.place / "Tiny.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"Tiny\.safetensors is damaged, cut off or no safetensors file"):
        own.load()


def test_a_folder_that_cannot_be_written_to_is_no_reason_not_to_load(own, network, state, monkeypatch):
    own.write(state)

    def refuse(*args, **kwargs):
        raise PermissionError("read-only")

    monkeypatch.setattr(files, "write_state_dict", refuse)
    np.testing.assert_array_equal(_logits(own.load().logits_fn), _expected(network))


def test_safetensors_can_be_the_source(tmp_path, network, state):
    own = Zoo(tmp_path)
    own.describe(files=[{"name": "Tiny.safetensors"}])
    own.write(state, "Tiny.safetensors")
    before = (own.place / "Tiny.safetensors").read_bytes()
    np.testing.assert_array_equal(_logits(own.load().logits_fn), _expected(network))
    assert (own.place / "Tiny.safetensors").read_bytes() == before and len(os.listdir(own.place)) == 1


def test_several_files_and_entries_make_one_network(own, network, state):
    torch = pytest.importorskip("torch")
    parts = [
        {"name": "Tiny.pt_m0.pt", "into": "layer1."},
        {"name": "Tiny.pt_m1.pt", "outer_key": "head", "into": "linear."},
        {"name": "Tiny.pt_m1.pt", "outer_key": "rest"},
    ]
    own.describe(files=parts, renames=[["^stem1", "conv1"]], unused=["extra.*"])
    tensors = {key: torch.from_numpy(value.copy()) for key, value in state.items()}
    tensors["stem1.weight"] = tensors.pop("conv1.weight")
    groups = {"layer1.": {}, "linear.": {}, "": {"extra.a": torch.ones(1)}}
    for key, value in tensors.items():
        group = next(group for group in groups if key.startswith(group))
        groups[group][key.removeprefix(group)] = value
    own.place.mkdir(parents=True)
    torch.save(groups["layer1."], own.place / "Tiny.pt_m0.pt")
    assert not own.has_weights()
    torch.save({"head": groups["linear."], "rest": groups[""]}, own.place / "Tiny.pt_m1.pt")
    for _ in range(2):
        np.testing.assert_array_equal(_logits(own.load().logits_fn), _expected(network))


def test_two_keys_read_as_one_are_refused(own, state):
    own.describe(renames=[["^ema\\.", ""]])
    own.write(state | {"ema.conv1.weight": state["conv1.weight"]})
    with pytest.raises(ValueError, match="conv1.weight is read as conv1.weight, as another key was before it"):
        own.load()


def test_an_array_of_several_layers_is_cut_into_theirs(own, network, state):
    own.describe(renames=[[r"^(layer\d)\.both\.", [r"\1.0.", r"\1.1."]]])
    pairs = {key: key.replace(".0.", ".1.", 1) for key in state if key.startswith("layer1.0.bn")}
    for first, second in pairs.items():
        both = np.concatenate([state.pop(first), state.pop(second)])
        state[first.replace(".0.", ".both.", 1)] = both
    own.write(state)
    np.testing.assert_array_equal(_logits(own.load().logits_fn), _expected(network))
    state["layer1.both.bn1.bias"] = state["layer1.both.bn1.bias"][:-1]
    own.write(state)
    with pytest.raises(ValueError, match=r"Tiny.pt: layer1.both.bn1.bias of shape \[7\] cannot be cut into 2"):
        own.load()


def test_names_that_no_replacement_gives_are_told(own, state):
    own.describe(renames=[["^conv", r"\2"]])
    own.write(state)
    with pytest.raises(ValueError, match=r"Tiny.pt: renames: '\^conv' cannot be replaced by .* \(invalid group"):
        own.load()


def test_fingerprints_are_of_what_is_loaded(own, state):
    def found():
        return zoo.fingerprints(zoo.find("Tiny", own.catalogue), own.folder)

    assert set(found()) == {"catalogue"}
    own.write(state, "Tiny.safetensors")  # from elsewhere
    elsewhere = found()
    assert set(elsewhere) == {"catalogue", "Tiny.safetensors"}
    own.write({**state, "linear.bias": state["linear.bias"] + 1}, "Tiny.safetensors")
    assert set(found()) == {"catalogue", "Tiny.safetensors"} and found() != elsewhere
    (own.place / "Tiny.safetensors").unlink()
    own.write(state)
    source = found()
    assert set(source) == {"catalogue", "Tiny.pt"}
    own.load()
    (own.place / "Tiny.pt").unlink()
    assert found() == source  # what is kept was made from it
    own.write({**state, "linear.bias": state["linear.bias"] + 1})
    assert set(found()) == {"catalogue", "Tiny.pt"} and found() != source
    before = found()
    own.describe(files=[{"name": "Tiny.pt", "outer_key": "ema"}])
    assert {name for name, number in found().items() if number != before[name]} == {"catalogue"}


def test_of_probabilities_the_logarithm_is_given(own, network, state):
    own.write(state)
    own.describe(output="probabilities")
    expected = np.log(np.maximum(_expected(network), 1e-30))  # these are none, and some are below 0
    np.testing.assert_allclose(_logits(own.load().logits_fn), expected, rtol=1e-6)
    # It gives back what the softmax took, up to a constant.
    logits = lambda images: images.reshape(len(images), -1)[:, :10]  # noqa: E731
    found = _logarithm(jax.tree_util.Partial(lambda images: jax.nn.softmax(logits(images))), IMAGES)
    np.testing.assert_allclose(found, jax.nn.log_softmax(logits(IMAGES)), rtol=1e-4, atol=1e-5)


def test_networks_of_one_architecture_share_what_is_compiled(own, state):
    own.write(state)
    traces = []

    @jax.jit
    def run(logits_fn, images):
        traces.append(1)
        return logits_fn(images)

    run(own.load().logits_fn, IMAGES)
    own.write({**state, "linear.bias": state["linear.bias"] + 1})
    run(own.load().logits_fn, IMAGES)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("bn1.weight"), r"1 missing \(bn1\.weight\)"),
        (lambda state: state.update(extra=np.ones(1)), r"1 left over \(extra\)"),
        (lambda state: state.update({"bn1.bias": np.ones(7, np.float32)}), r"bn1\.bias: \[7\] instead of \[4\]"),
    ],
)
def test_weights_that_do_not_fit_are_named(own, state, change, message):
    change(state)
    own.write(state)
    with pytest.raises(ValueError, match=rf"Tiny: .*Tiny\.pt: .*{message}") as caught:
        own.load()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    assert not (own.place / "Tiny.safetensors").exists()


def test_a_network_that_cannot_be_made_is_named(own):
    own.describe(arguments={"width": 0})
    with pytest.raises(ValueError, match="Tiny: width of resnet18 must be a positive whole number, got 0"):
        own.load()


def test_another_number_of_classes_is_named(own, state):
    own.write(state)
    own.describe(num_classes=7)
    with pytest.raises(ValueError, match=r"Tiny: .*Tiny\.pt: .*10 classes, .*7"):
        own.load()


def test_a_file_of_another_architecture_is_named(own):
    own.write({"fc1.weight": np.ones((3, 2), np.float32)})
    with pytest.raises(ValueError, match=r"Tiny: .*Tiny\.pt: .*missing \(.*left over \(fc1\.weight\)"):
        own.load()


def test_a_missing_file_is_told_with_where_to_get_it_and_where_to_put_it(own):
    own.describe(files=[{"name": "Tiny.pt", "source": "gdrive:abc"}])
    message = r"Tiny: no file .*cifar10.Linf.Tiny\.pt; get it from https://drive\.google\.com/file/d/abc/view and save"
    with pytest.raises(FileNotFoundError, match=message):
        own.load()


def test_all_missing_files_are_told(own, state):
    own.describe(files=[{"name": f"Tiny.pt_m{number}.pt", "source": f"gdrive:{number}"} for number in range(3)])
    own.write(state, "Tiny.pt_m1.pt")
    with pytest.raises(
        FileNotFoundError, match=r"Tiny: no file .*m0\.pt; get it from .*; no file .*m2\.pt; get"
    ) as caught:
        own.load()
    assert "m1.pt" not in str(caught.value)


def test_missing_files_are_downloaded_if_that_is_asked_for(own, state, monkeypatch):
    asked = []

    def fetch(file, folder):
        asked.append(file.name)
        own.write(state)

    monkeypatch.setattr("nn_adv.zoo.download.fetch", fetch)
    own.load(download=True)
    own.load(download=True)
    assert asked == ["Tiny.pt"]


def test_an_unknown_name_is_answered_before_any_file_is_looked_for(tmp_path):
    with pytest.raises(ValueError, match="it has Wong2020Fast"):
        zoo.load("Wong2020", tmp_path)


def _as_published(name, state):
    """Put a state dict into files as they are told to be published."""
    if name == "Andriushchenko2020Understanding":
        # Among them those of a part of the network that its code kept under a second name.
        again = {"model_preact_hl1.1.weight": "conv1.weight", "model_preact_hl1.2.bias": "layer1.0.bn1.bias"}
        return {f"{name}.pt": {"last": state | {key: state[other] for key, other in again.items()}, "best": {}}}
    if name == "Wong2020Fast":  # its file lacks the constants
        return {f"{name}.pt": {key: value for key, value in state.items() if key not in ("mu", "sigma")}}
    if name == "Chen2020Adversarial":
        members = {f"models.{index}.": {} for index in range(3)}
        for key, value in state.items():
            if key[:9] in members:
                members[key[:9]][f"module.{key[9:]}"] = value
        return {f"{name}.pt_m{index}.pt": {"state_dict": member} for index, member in enumerate(members.values())}
    if name.startswith("Debenedetti"):
        inner = {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}
        inner = {key.replace("pos_embed.", "pos_embeder."): value for key, value in inner.items()}
        for query in [key for key in inner if ".attn.q." in key]:  # its projections may be one matrix
            parts = [inner.pop(query.replace(".q.", f".{name}.")) for name in "qkv"]
            inner[query.replace(".q.", ".qkv.")] = np.concatenate(parts)
        return {f"{name}.pt": {"model": inner, "epoch": 1}}
    return {f"{name}.pt": {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 1}}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("name", "fixture"),
    [
        ("Addepalli2021Towards_RN18", "resnet18"),
        ("Andriushchenko2020Understanding", "preact_resnet18"),
        pytest.param("Wong2020Fast", "preact_resnet18_norm", marks=pytest.mark.slow),
        pytest.param("Chen2020Efficient", "wrn34_10_sub_norm", marks=pytest.mark.slow),
        pytest.param("Chen2020Adversarial", "ensemble3_preact_resnet50", marks=pytest.mark.slow),
        pytest.param("Debenedetti2022Light_XCiT-S12", "xcit_s12", marks=pytest.mark.slow),
    ],
)
def test_published_networks_are_loaded_by_name_from_files_of_the_published_form(tmp_path, shared_dir, name, fixture):
    torch = pytest.importorskip("torch")
    if not fixtures.folder(shared_dir).is_dir():
        pytest.skip(f"needs {fixtures.folder(shared_dir)}")
    state = fixtures.make_state(fixtures.read(shared_dir)[fixture])
    folder = tmp_path / "cifar10" / "Linf"
    folder.mkdir(parents=True)
    for file, content in _as_published(name, state).items():
        torch.save(jax.tree.map(lambda leaf: torch.tensor(leaf) if np.ndim(leaf) else leaf, content), folder / file)
    assert zoo.has_weights(zoo.find(name), tmp_path)
    with np.load(fixtures.folder(shared_dir) / f"{fixture}.npz") as published:
        expected = published["logits"]
    if zoo.find(name).output == "probabilities":
        expected = np.log(expected)
    for _ in range(2):  # from the files, then from what is kept
        outputs = np.asarray(
            jax.jit(lambda fn, images: fn(images))(zoo.load(name, tmp_path).logits_fn, fixtures.images())
        )
        np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_a_wheel_holds_the_catalogue(tmp_path):
    package = pathlib.Path(zoo.__file__).parents[1]
    copy = tmp_path / "checkout"  # building leaves files behind
    shutil.copytree(package, copy / "nn_adv", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(package.parent / name, copy)
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(copy)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert "nn_adv/zoo/catalogue.json" in zipfile.ZipFile(wheel).namelist()


def test_a_file_of_another_kind_under_the_name_of_what_is_kept_stays(own, network, state):
    own.write(state)
    path = own.place / "Tiny.safetensors"
    path.write_bytes((own.place / "Tiny.pt").read_bytes())
    np.testing.assert_array_equal(_logits(own.load().logits_fn), _expected(network))
    assert path.read_bytes() == (own.place / "Tiny.pt").read_bytes()
    (own.place / "Tiny.pt").unlink()
    with pytest.raises(ValueError, match=r"Tiny\.safetensors is a zip, as PyTorch's files are: give it a name"):
        own.load()
    assert set(zoo.fingerprints(zoo.find("Tiny", own.catalogue), own.folder)) == {"catalogue"}


def test_the_home_is_expanded(own, network, state, monkeypatch):
    own.write(state)
    monkeypatch.setenv("HOME", str(own.folder))
    model = zoo.load("Tiny", "~", catalogue="~/own.json")
    np.testing.assert_array_equal(_logits(model.logits_fn), _expected(network))
    assert zoo.has_weights(model.entry, "~") and "Tiny.pt" in zoo.fingerprints(model.entry, "~")
    with pytest.raises(ValueError, match=r"no network 'Tony' in ~/own\.json; it has Tiny, 1 in all"):
        zoo.find("Tony", "~/own.json")
