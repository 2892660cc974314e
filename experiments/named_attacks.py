"""Attacks by their names: ours, and those of Foolbox and ART where these are installed."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import audited
from nn_adv import attacks, neighbors

PACKAGES = {"foolbox": "foolbox", "art": "adversarial-robustness-toolbox"}  # by what is imported, as they are installed


def is_installed(package: str) -> bool:
    """Tell whether what an attack needs is there."""
    return not package or importlib.util.find_spec(package) is not None


def _fmn(logits_fn, images, labels, *, threat, **options):
    return attacks.fmn(logits_fn, images, labels, norm=threat.norm, **options)


def _tempered(logits_fn, images, labels, **options):
    soft, (reference, temperatures) = logits_fn.func, logits_fn.args
    return attacks.tempered_apgd(
        lambda points, temperature: soft(reference, temperature, points),
        images,
        labels,
        temperatures=temperatures,
        **options,
    )


def _ours(sees: str, finds: str, attack: Callable, tries_temperatures: bool = False, **options: Any) -> audited.Attack:
    settings = {name: getattr(value, "__name__", value) for name, value in options.items()}
    return audited.Attack(sees, finds, settings, audited.ours(attack, **options), tries_temperatures=tries_temperatures)


@jax.jit
def _one_hot(reference, points):
    return jax.nn.one_hot(neighbors.predict(reference, points), reference.num_classes)


def _foolbox(sees: str, finds: str, of_norms: Mapping[str, str], **options: Any) -> audited.Attack:
    """An attack of Foolbox, whose class has another name in each norm."""

    def make(norm: str, seed: int, spent: audited.Spent) -> audited.Search:
        import eagerpy
        import foolbox

        eagerpy.JAXTensor.key = jax.random.PRNGKey(seed)  # what its random numbers come from
        attack = getattr(foolbox.attacks, of_norms[norm])(**options)

        def search(problem: audited.Problem) -> np.ndarray:
            if sees == "labels":
                told = {"starting_points": jnp.asarray(problem.starts)}
                ask = functools.partial(_label_scores, spent, problem.reference)
            else:
                told, ask = {}, functools.partial(audited.soft_logits, spent, problem.reference, problem.temperature)
            model = foolbox.models.JAXModel(ask, bounds=(0, 1))
            arrays = jnp.asarray(problem.images), jnp.asarray(problem.labels)
            return np.asarray(attack(model, *arrays, epsilons=problem.epsilon, **told)[1])

        return search

    return audited.Attack(sees, finds, options, make, tuple(of_norms), "foolbox")


def _label_scores(spent: audited.Spent, reference, points):
    spent.update(queries=len(points))
    return _one_hot(reference, points)


def _art(sees: str, finds: str, of_norms: tuple[str, ...], name: str, **options: Any) -> audited.Attack:
    """An attack of ART that asks for no gradients."""

    def make(norm: str, seed: int, spent: audited.Spent) -> audited.Search:
        from art.attacks import evasion
        from art.estimators.classification import BlackBoxClassifierNeuralNetwork

        np.random.seed(seed)  # noqa: NPY002 - its random numbers are NumPy's

        def search(problem: audited.Problem) -> np.ndarray:
            reference, images, labels, starts, _, temperature, epsilon = problem
            scores = (_one_hot, reference) if sees == "labels" else (audited.soft, reference, temperature)
            num_classes = reference.num_classes
            estimator = BlackBoxClassifierNeuralNetwork(
                functools.partial(_ask, spent, *scores), images.shape[1:], num_classes, False, (0.0, 1.0)
            )
            told = {} if name == "ZooAttack" else {"norm": {"linf": np.inf, "l2": 2}[norm]}
            told |= {} if epsilon is None else {"eps": epsilon}
            attack = getattr(evasion, name)(estimator, verbose=False, **told, **options)
            begin = {"x_adv_init": starts} if sees == "labels" else {}
            return attack.generate(images, np.eye(num_classes, dtype=np.float32)[labels], **begin)

        return search

    return audited.Attack(sees, finds, options, make, of_norms, "art")


def _ask(spent: audited.Spent, fn: Callable, *args: Any) -> np.ndarray:
    """Return what a function says of points; few numbers of points are compiled for."""
    *before, points = args
    count = len(points)
    spent.update(queries=count)
    filled = np.resize(points, (1 << (count - 1).bit_length(), *points.shape[1:])).astype(np.float32)
    return np.asarray(fn(*before, filled))[:count]


# What a name in a configuration stands for. Sizes are the library's own, where they end in minutes on a CPU.
NAMED: dict[str, audited.Attack] = {
    "pgd": audited.pgd_variant(40, 1, "margin", 2.5),
    "apgd": _ours("gradients", "radius", attacks.apgd, num_steps=100, loss_fn=attacks.margin),
    "tempered-apgd": _ours("gradients", "radius", _tempered, tries_temperatures=True, num_steps=100),
    "square": _ours("scores", "radius", attacks.square, num_queries=1000),
    "fab": _ours("gradients", "distance", attacks.fab, num_steps=100),
    "fmn": _ours("gradients", "distance", _fmn, num_steps=100),
    "foolbox-pgd": _foolbox("gradients", "radius", {"linf": "LinfPGD", "l2": "L2PGD"}),
    "foolbox-deepfool": _foolbox("gradients", "distance", {"linf": "LinfDeepFoolAttack", "l2": "L2DeepFoolAttack"}),
    "foolbox-carlini-wagner": _foolbox(
        "gradients",
        "distance",
        {"l2": "L2CarliniWagnerAttack"},
        binary_search_steps=6,
        steps=100,
        stepsize=0.05,
        initial_const=0.01,
    ),
    "foolbox-ddn": _foolbox("gradients", "distance", {"l2": "DDNAttack"}),
    "foolbox-fmn": _foolbox("gradients", "distance", {"linf": "LInfFMNAttack", "l2": "L2FMNAttack"}),
    "foolbox-boundary": _foolbox("labels", "distance", {"l2": "BoundaryAttack"}, steps=2000),
    "art-hopskipjump": _art("labels", "distance", ("linf", "l2"), "HopSkipJump", max_iter=10, max_eval=1000),
    "art-square": _art("scores", "radius", ("linf", "l2"), "SquareAttack", max_iter=500),
    "art-zoo": _art(
        "scores",
        "distance",
        ("l2",),
        "ZooAttack",
        max_iter=100,
        binary_search_steps=3,
        nb_parallel=32,
        use_resize=False,
    ),
}
