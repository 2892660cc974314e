"""Holds the layout: which module may import which, and what every public name carries."""

from __future__ import annotations

import ast
import importlib
import inspect
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest

import nn_adv

ROOT = pathlib.Path(nn_adv.__file__).parent
GUIDE = ROOT.parent / "docs" / "guide.md"
MODULES = sorted(path for path in ROOT.rglob("*.py"))
OUTSIDERS = {"absl", "benchmarks", "configs", "experiments", "gdown", "ml_collections", "tensorflow", "torch"}
# Optional packages and the modules that may import them, inside functions: importing the library never needs them.
OPTIONAL = {"gdown": {"zoo/download.py"}, "torch": {"zoo/files.py", "zoo/torch_bridge.py"}}
# What each part of the library may import of the others; imports within a part are free.
MAY_IMPORT = {
    "attacks": {"border", "threat"},
    "border": set(),
    "certify": {"attacks", "border", "neighbors", "pixels", "precision", "threat"},
    "conflicts": set(),
    "data": {"border", "paths"},
    "estimator": {"border", "certify", "neighbors", "threat"},
    "evaluation": {"border", "conflicts", "pixels", "threat"},
    "models": set(),
    "neighbors": {"border", "conflicts", "paths", "pixels", "precision", "threat"},
    "pixels": set(),
    "precision": set(),
    "threat": {"border"},
    "paths": set(),
    "training": {"attacks", "border", "paths", "pixels", "threat"},
    "zoo": {"models", "paths"},
}


def _part(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imports(path: pathlib.Path) -> set[str]:
    """Returns the dotted names a module imports, `from a import b` as both a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively: write the full name"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _public_modules():
    return [nn_adv] + [
        importlib.import_module(info.name)
        for info in pkgutil.walk_packages(nn_adv.__path__, "nn_adv.")
        if not info.name.rpartition(".")[2].startswith("_")
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    imported = _imports(path)
    place = path.relative_to(ROOT).as_posix()
    optional = {name for name, places in OPTIONAL.items() if place in places}
    assert not {name.partition(".")[0] for name in imported} & (OUTSIDERS - optional)
    siblings = {name.split(".")[1] for name in imported if name.startswith("nn_adv.")} - {"__version__"}
    part = _part(path)
    if part == "__init__":
        return
    assert siblings - {part} <= MAY_IMPORT[part]


@pytest.mark.parametrize("path", sorted(ROOT.glob("certify/verify/*.py")), ids=lambda path: path.name)
def test_the_recheck_shares_no_code_with_what_it_checks(path):
    """It imports NumPy and the standard library alone."""
    others = {name for name in _imports(path) if not name.startswith("nn_adv.certify.verify")}
    assert {name.partition(".")[0] for name in others} <= sys.stdlib_module_names | {"numpy"}


@pytest.mark.parametrize("path", sorted(ROOT.glob("certify/[!_]*.py")), ids=lambda path: path.name)
def test_the_solver_knows_of_no_other_bounds(path):
    assert not {name for name in _imports(path) if name.startswith("nn_adv.certify.bounds")}


@pytest.mark.slow
def test_the_library_is_imported_without_optional_packages():
    command = f"import sys, nn_adv.zoo, nn_adv.attacks; sys.exit(bool({set(OPTIONAL)!r} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", command], check=True, cwd=ROOT.parent)


def test_what_many_calls_do_without_is_imported_when_it_is_used():
    """SciPy's parts take half a second, Flax another and tensorflow-datasets a third; a first radius needs none."""
    command = """
import sys, nn_adv.attacks.pgd
from nn_adv import certify, data, neighbors
digits = data.load("digits")
reference = neighbors.fit(digits.train_images, digits.train_labels, 10)
certify.radius(reference, digits.test_images[:2], digits.test_labels[:2], norm="linf")
late = ("flax", "scipy.linalg", "scipy.optimize", "scipy.sparse", "scipy.spatial", "scipy.stats", "tensorflow_datasets")
sys.exit(", ".join(name for name in late if name in sys.modules) or 0)
"""
    subprocess.run([sys.executable, "-c", command], check=True, cwd=ROOT.parent)


_EXTRAS = ("array_record", "importlib_resources", "matplotlib", "ml_collections", "orbax", "PIL", "safetensors",
           "sklearn", "tensorflow_datasets", "tqdm")  # fmt: skip


@pytest.mark.slow
def test_what_a_user_must_install_is_enough_for_all_but_data_and_weights():
    """Extras are named where they are missing."""
    command = f"""
import sys, tempfile
sys.modules |= dict.fromkeys({_EXTRAS!r})
import numpy as np
from nn_adv import attacks, certify, data, evaluation, models, neighbors, training
data.tasks(data.load("digits"), "pairs")
for needs_tfds in (lambda: data.load("mnist"), lambda: data.prepare):
    try:
        needs_tfds()
    except ImportError as error:
        assert "nn_adv.data needs" in str(error) and "pip install 'nn_adv[data]'" in str(error), error
    else:
        raise SystemExit("tensorflow-datasets was imported")
for name, extra in (("estimator", "data"), ("zoo", "zoo")):
    try:
        __import__(f"nn_adv.{{name}}")
    except ImportError as error:
        assert f"nn_adv.{{name}} needs" in str(error) and f"pip install 'nn_adv[{{extra}}]'" in str(error), error
    else:
        raise SystemExit(f"nn_adv.{{name}} was imported")
recipe = training.Recipe(objective="standard", num_epochs=1, batch_size=2)
members = [training.Member([0, 1], [0, 1])]
images = np.zeros((2, 4, 4, 1), np.uint8)
model = models.create("mlp", 2, hidden_sizes=())
try:
    training.train(model, images, members, recipe, seeds=[0], checkpoint_dir=tempfile.mkdtemp())
except ImportError as error:
    assert "checkpoint_dir needs orbax" in str(error) and "pip install 'nn_adv[experiments]'" in str(error), error
else:
    raise SystemExit("Orbax was imported")
"""
    subprocess.run([sys.executable, "-c", command], check=True, cwd=ROOT.parent)


def test_the_package_alone_imports_nothing_and_offers_its_parts():
    command = (
        "import sys, nn_adv; imported = {'jax', 'numpy'} & sys.modules.keys()\n"
        "missing = [name for name in nn_adv.__all__ if getattr(nn_adv, name) is None or name not in dir(nn_adv)]\n"
        "sys.exit(f'{imported} {missing}' if imported or missing or hasattr(nn_adv, 'nonsense') else 0)"
    )
    subprocess.run([sys.executable, "-c", command], check=True, cwd=ROOT.parent)
    modules = {path.name.removesuffix(".py") for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert set(nn_adv.__all__) - {"Threat", "as_float"} <= modules


@pytest.mark.parametrize("module", _public_modules(), ids=lambda module: module.__name__)
def test_packages_list_their_names_sorted(module):
    if not hasattr(module, "__path__") or module is nn_adv:
        return
    assert module.__all__ == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_what_is_jittable_is_said_in_the_guide_and_in_first_lines():
    table = dict(re.findall(r"^\| `(neighbors|attacks|training)` \| (`.*`) \|$", GUIDE.read_text(), re.MULTILINE))
    for part in ("neighbors", "attacks", "training", "certify", "evaluation"):
        module = importlib.import_module(f"nn_adv.{part}")
        functions = [name for name, value in vars(module).items() if inspect.isfunction(value)]
        said = {name for name in functions if getattr(module, name).__doc__.splitlines()[0].endswith(" Jittable.")}
        said |= {name for name in functions if getattr(module, name).__doc__.endswith(" Jittable.")}
        assert said == set(re.findall(r"`(\w+)`", table.get(part, ""))), part


@pytest.mark.parametrize("part", ["attacks", "certify", "data", "models", "neighbors", "training", "zoo"])
def test_every_public_function_is_in_the_api_reference(part):
    module = importlib.import_module(f"nn_adv.{part}")
    page = (GUIDE.parent / "api" / f"{part}.md").read_text()
    listed = set(re.findall(r"^::: nn_adv\.[\w.]+\.(\w+)$", page, re.MULTILINE))
    assert listed == {name for name in module.__all__ if callable(getattr(module, name))}


def test_version_is_the_one_of_the_citation():
    citation = ROOT.parent / "CITATION.cff"
    assert f"\nversion: {nn_adv.__version__}\n" in citation.read_text()
