"""Outputs of published architectures under weights made by a rule: the weights, and the comparison.

The folder ``reference/robustbench`` of the shared material holds, for each architecture, the list of its state dict's
entries and the outputs of its PyTorch network for the weights that `make_state` makes; its README states the rule.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import pathlib
import re
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np

from nn_adv import models, zoo

# Of these the last name of two keys that are one tensor decides its value: pattern of the others, and that name.
_SECOND_NAMES = {
    "pssilu_wrn28_10": (r".*\.activation\.(\w+)", r"activation.\1"),
    "ensemble3_preact_resnet50": (r"branch([123])\.(.*)", lambda match: f"models.{int(match[1]) - 1}.{match[2]}"),
    "composite_edm": (r"comp_model\.(.*)", r"_comp_model.\1"),
}


# Those small enough for every run of the tests, and the others.
QUICK = (
    "dm_preact_resnet18", "preact_resnet18", "pssilu_wrn28_10", "resnet18", "resnet50_norm",
    "wrn28_4_image_standardised", "xcit_s12",
)  # fmt: skip
LARGE = (
    "boosting_wrn34_20", "composite_edm", "dm_wrn106_16", "dm_wrn28_10", "dm_wrn34_10", "dm_wrn34_20", "dm_wrn70_16",
    "dm_wrn82_8", "dm_wrn94_16", "ensemble3_preact_resnet50", "meansparse_dm_wrn94_16", "meansparse_ra_wrn70_16",
    "mixednuts", "preact_resnet18_norm", "ra_wrn70_16", "resnest152", "robust_wrn34r", "robustresnet_wrn_a4",
    "sodef_dm_wrn70_16", "wrn28_10", "wrn28_10_2x_minus_1", "wrn28_10_sub", "wrn34_10", "wrn34_10_sub",
    "wrn34_10_sub_norm", "wrn34_15_sub", "wrn34_20", "wrn34_20_norm", "wrn34_20_sub", "wrn70_16", "xcit_l12",
    "xcit_m12",
)  # fmt: skip
# Limits of the deviation, with the reasons of the fixtures' README: large activations, a discontinuous operator.
_LIMITS = {"resnest152": 1e-3, "meansparse_dm_wrn94_16": 1e-3, "meansparse_ra_wrn70_16": 1e-3}
# Keys of the published network that it does not read when it predicts, and that no file holds.
_NEVER_READ = {"mixednuts": ("_alpha_diffable", r"std_map\.approx\.power")}
# Outputs other than "logits" to compare with: those of the flow itself, not of the published solver's loose tolerance.
_OUTPUTS = {"sodef_dm_wrn70_16": "logits_f64_tight_ode"}


class Outcome(NamedTuple):
    """How near a network came.

    Attributes:
      parameters: number of trained values of the network here.
      deviation: largest difference to the published network's outputs, relative to the largest of those.
      limit: what it may be.
    """

    parameters: int
    deviation: float
    limit: float


def folder(shared_dir: pathlib.Path) -> pathlib.Path:
    """Give the folder of the fixtures."""
    return shared_dir / "reference" / "robustbench"


@functools.cache
def read(shared_dir: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Read the records of all fixtures by name."""
    records = json.loads((folder(shared_dir) / "fixtures.json").read_text())["fixtures"]
    return {record["name"]: record for record in records}


def images() -> np.ndarray:
    """Make the four images ``[4, 32, 32, 3]``."""
    return np.random.default_rng(0).random((4, 3, 32, 32)).astype(np.float32).transpose(0, 2, 3, 1)


def make_state(record: dict[str, Any]) -> dict[str, np.ndarray]:
    """Make the state dict of a fixture, and hold it against the hash of the one that was run.

    Raises:
      ValueError: it is another one.
    """
    state: dict[str, np.ndarray] = {}
    digest = hashlib.sha256()
    pattern, name = _SECOND_NAMES.get(record["name"], ("(?!)", ""))
    for key, shape, dtype in record["state_dict"]:
        last = re.sub(f"^{pattern}$", name, key)
        if last not in state:
            state[last] = np.asarray(_value(record, last, tuple(shape)), dtype)
        state[key] = state[last]
        digest.update(np.ascontiguousarray(state[key]))
    if digest.hexdigest() != record["state_sha256"]:
        raise ValueError(f"the state dict made for {record['name']} is not the one that was run")
    return state


def _value(record, key, shape):
    generator = np.random.default_rng(zlib.crc32(key.encode()))
    last = key.rpartition(".")[2]
    if last == "num_batches_tracked":
        return 0
    if last == "running_var":
        return generator.uniform(0.5, 1.5, shape)
    if last == "running_mean":
        return 0.1 * generator.standard_normal(shape)
    if last == "threshold":
        return 0.1 * (key in record["threshold_nonzero_keys"])
    if key.endswith("parametrizations.weight.0.base"):
        axis = generator.standard_normal(shape[0])
        return np.eye(shape[0]) - 2 * np.outer(axis, axis) / np.dot(axis, axis)
    if key in record["kept_values"] or f"*.{last}" in record["kept_values"]:
        kept = record["kept_values"].get(key, record["kept_values"].get(f"*.{last}"))
        return np.reshape(kept, shape)
    if len(shape) == 1:
        return _vector(record, key, last, shape, generator)
    return generator.standard_normal(shape) * math.sqrt(record["gain"] / math.prod(shape[1:]))


def _vector(record, key, last, shape, generator):
    if last == "alpha":
        return -generator.uniform(0.5, 1.5, shape)
    if last == "beta":
        return -np.abs(0.1 * generator.standard_normal(shape))
    if record["name"] == "resnest152" and key.endswith("bn3.bias"):
        return generator.uniform(0.0, 0.6, shape)
    if key.endswith("weight"):
        return generator.uniform(0.5, 1.5, shape)
    return 0.1 * generator.standard_normal(shape)


def entries(shared_dir: pathlib.Path, name: str) -> list[zoo.Entry]:
    """Give the networks of the catalogue that fixture ``name`` stands for."""
    catalogue = zoo.catalogue()
    return [catalogue[covered] for covered in read(shared_dir)[name]["covers"]]


def compare(shared_dir: pathlib.Path, name: str) -> Outcome:
    """Run the network of fixture ``name`` with its weights, without second names of theirs."""
    entry = entries(shared_dir, name)[0]
    model = models.create(entry.architecture, entry.num_classes, **entry.arguments)
    unused = (*entry.unused, *_SECOND_NAMES.get(name, ())[:1], *_NEVER_READ.get(name, ()))
    variables = zoo.from_state_dict(model, make_state(read(shared_dir)[name]), unused=unused)
    outputs = np.asarray(jax.jit(model.apply)(variables, images()))
    with np.load(folder(shared_dir) / f"{name}.npz") as arrays:
        expected = arrays[_OUTPUTS.get(name, "logits")]
    deviation = np.abs(outputs - expected).max() / np.abs(expected).max()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return Outcome(parameters, float(deviation), _LIMITS.get(name, 1e-4))
