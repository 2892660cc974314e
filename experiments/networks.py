"""Where the networks of a leaderboard come from: a catalogue, or a user's own "module:function"; and 1NN."""

from __future__ import annotations

import difflib
import fnmatch
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.tree_util import Partial

from experiments.methods import NEIGHBOR
from nn_adv import data, zoo

_TORCH = "torch:"


class Network(NamedTuple):
    """One line of the table."""

    name: str  # "1nn", that of a catalogue's entry, or "module:function"
    entry: zoo.Entry | None = None  # of the catalogue; None for the others
    is_optional: bool = False  # a pattern found it; it is left out where its weights are not there

    @property
    def architecture(self) -> str:
        """What networks that compile to the same program share."""
        if self.entry is None:
            return self.name
        arguments = ", ".join(f"{name}={value}" for name, value in sorted(self.entry.arguments.items()))
        return f"{self.entry.architecture}({arguments})"


class Source(NamedTuple):
    """Where networks are looked for."""

    catalogue: str | None  # path; None: that of the published ones
    weights_dir: str  # in RobustBench's layout
    download: bool  # whether weights that are not there are fetched


def choose(config: ml_collections.ConfigDict) -> list[Network]:
    """List those that ``config.models`` asks for, each once: 1NN, then networks by architecture, then the user's own.

    What lies in the folder of weights changes nothing, as long as a pattern finds some there: it differs between
    machines, their shards must not.

    Raises:
      ValueError: a name that nothing has, a pattern that no network with weights matches, or a function that cannot be
        imported.
    """
    catalogue = zoo.catalogue(config.catalogue or None)
    where = config.catalogue or "the catalogue"
    entries = {name: entry for name, entry in catalogue.items() if entry.dataset == config.dataset}
    found: dict[str, Network] = {}
    for wanted in config.models:
        if not isinstance(wanted, str):
            raise ValueError(f"models must be texts, got {wanted!r}")
        if wanted == NEIGHBOR:
            found[wanted] = Network(wanted)
        elif ":" in wanted:
            _function(wanted)
            found[wanted] = Network(wanted)
        elif not entries:
            others = ", ".join(dict.fromkeys(entry.dataset for entry in catalogue.values())) or "nothing"
            raise ValueError(
                f"models: {wanted!r} asks for networks of {where}, which are for {others}, none for {config.dataset}: "
                f"name only {NEIGHBOR} and MODULE:FUNCTION, or another catalogue (none can have any for npz:PATH)"
            )
        elif any(sign in wanted for sign in "*?["):
            matching = {entry.name: Network(entry.name, entry, True) for entry in _matching(config, entries, wanted)}
            found = matching | found  # asked for by its name, a network must be there
        elif wanted in entries:
            found[wanted] = Network(wanted, entries[wanted])
        else:
            near = difflib.get_close_matches(wanted, entries, n=3) or list(entries)[:3] or ["none"]
            raise ValueError(
                f"models: {wanted!r} is not among the {len(entries)} networks for {config.dataset} in {where}; near "
                f"it: {', '.join(near)}"
            )
    if not found:
        raise ValueError(f"models must name one or more, got {config.models}")
    return sorted(found.values(), key=lambda one: (one.name != NEIGHBOR, one.entry is None, one.architecture, one.name))


def _matching(config, entries, pattern) -> list[zoo.Entry]:
    named = [
        entry
        for entry in entries.values()
        if fnmatch.fnmatchcase(entry.name, pattern) and (entry.in_paper or not config.only_in_paper)
    ]
    if not any(config.download or zoo.has_weights(entry, config.weights_dir) for entry in named):
        where = f"{Path(config.weights_dir) / config.dataset}/THREAT/NAME.pt"
        raise ValueError(
            f"models: none of {len(named)} networks that match {pattern!r} has its weights in {where}: put them there "
            "(docs/leaderboard.md says where from), name another weights_dir, or set download"
        )
    return named


def lacks_weights(network: Network, source: Source) -> bool:
    """Tell whether a network of a catalogue has weights that are neither there nor to be downloaded."""
    entry = network.entry
    return entry is not None and not source.download and not zoo.has_weights(entry, source.weights_dir)


def load(network: Network, source: Source, dataset: data.Dataset) -> Partial:
    """Read or make a network, and try it on the shape of one image.

    Raises:
      ValueError: it does not return one number for each class, or its weights do not fit.
      OSError: its weights are not there or cannot be read.
    """
    if network.entry is None:
        logits_fn = _own(network.name, dataset.num_classes)
    else:
        logits_fn = zoo.load(
            network.name, source.weights_dir, catalogue=source.catalogue, download=source.download
        ).logits_fn
    found = jax.eval_shape(logits_fn, jax.ShapeDtypeStruct((2, *dataset.image_shape), np.float32))
    if not hasattr(found, "shape"):
        raise ValueError(f"{network.name} must return an array of logits, got {type(found).__name__}")
    shape = found.shape
    if shape != (2, dataset.num_classes):
        raise ValueError(
            f"{network.name} must return [B, {dataset.num_classes}] for the classes of {dataset.title}, "
            f"got {list(shape)} for two images"
        )
    if not jnp.issubdtype(found.dtype, jnp.floating):
        raise ValueError(f"{network.name} must return floating-point logits, which have a gradient, got {found.dtype}")
    return logits_fn


def about(network: Network, logits_fn: Partial, source: Source) -> dict[str, Any]:
    """Return what a row says of a network."""
    entry = network.entry
    facts: dict[str, Any] = {"num_values": sum(int(np.size(leaf)) for leaf in jax.tree.leaves(logits_fn))}
    if entry is None:
        return facts | {"architecture": "own, in torch" if network.name.startswith(_TORCH) else "own"}
    names = ("threat", "epsilon", "output", "clean_accuracy", "autoattack_accuracy", "extra_data", "paper", "venue")
    facts |= {"architecture": network.architecture, "fingerprints": zoo.fingerprints(entry, source.weights_dir)}
    return facts | {name: getattr(entry, name) for name in (*names, "notes")}


def changed_since(network: Network, facts: Mapping[str, Any], source: Source) -> list[str]:
    """List what of a network differs from what its row says (`about`): files, or its entry in the catalogue.

    Files that are not there are not compared, and of a user's own function nothing is known.
    """
    if network.entry is None or "fingerprints" not in facts:
        return []
    found = zoo.fingerprints(network.entry, source.weights_dir)
    return [name for name, number in found.items() if facts["fingerprints"].get(name) != number]


def _own(name: str, num_classes: int) -> Partial:
    """Call a user's function and make what it returns a function of images with its arrays bound to it."""
    try:
        made = _function(name)()
    except SystemExit as error:
        raise ValueError(f"{name} ended the program with {error}") from error
    if name.startswith(_TORCH):
        return zoo.from_torch(made, num_classes)
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
        model, variables = made
        return Partial(model.apply, variables)
    if isinstance(made, nn.Module) or hasattr(made, "state_dict") or not callable(made):
        raise ValueError(
            f"{name} must return a function of images or (Flax module, variables), got {type(made).__name__}; "
            f"a torch module needs {_TORCH}{name}"
        )
    return made if isinstance(made, Partial) else Partial(made)


def _function(name: str) -> Callable[[], Any]:
    module, _, function = name.removeprefix(_TORCH).partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # whatever a user's module does when it is imported
        raise ValueError(
            f"models: cannot import {name!r} ({error}): it must be MODULE:FUNCTION or {_TORCH}MODULE:FUNCTION, the "
            "module installed or in the folder of the command"
        ) from error
