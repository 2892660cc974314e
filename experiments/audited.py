"""The attacks that an audit holds against exact radii: ours, and those of Foolbox and ART where these are installed.

Each sees 1NN in one of three ways: with gradients, through the soft 1NN; by the scores of the soft 1NN; or by labels
alone. All that it asks is counted.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from nn_adv import attacks, neighbors
from nn_adv.threat import NORMS, Threat

LOSSES = {"cross-entropy": attacks.cross_entropy, "margin": attacks.margin}
PACKAGES = {"foolbox": "foolbox", "art": "adversarial-robustness-toolbox"}  # by what is imported, as they are installed


@dataclasses.dataclass
class Spent:
    """What attacks have asked for: images whose class or logits were computed, and whose gradients were."""

    queries: int = 0
    gradients: int = 0

    def add(self, queries: int = 0, gradients: int = 0) -> None:
        """Count more."""
        self.queries += queries
        self.gradients += gradients


class Problem(NamedTuple):
    """What an attack is given.

    Attributes:
      reference: the points of 1NN.
      images, labels: ``[B, ...]`` float32 in [0, 1] and ``[B]``, all classified correctly.
      starts: ``[B, ...]`` an image of another class for each; where attacks by labels begin.
      key_data: ``[B, 2]`` a key for each image.
      temperature: of the soft 1NN, or those that an attack tries by itself.
      epsilon: the radius; None for an attack that finds distances.
    """

    reference: neighbors.Reference
    images: np.ndarray
    labels: np.ndarray
    starts: np.ndarray
    key_data: np.ndarray
    temperature: chex.Array
    epsilon: float | None


Search = Callable[[Problem], np.ndarray]  # to points [B, ...]


class Attack(NamedTuple):
    """An attack with its settings.

    Attributes:
      sees: "gradients", "scores" or "labels".
      finds: "distance", the nearest point that it can; or "radius", any point within a radius.
      settings: what a row says of it.
      make: norm, seed and `Spent` to a `Search`.
      norms: those that it has.
      package: what must be installed to run it; empty: nothing.
      tries_temperatures: whether it tries the temperatures of the soft 1NN by itself.
    """

    sees: str
    finds: str
    settings: Mapping[str, Any]
    make: Callable[[str, int, Spent], Search]
    norms: tuple[str, ...] = NORMS
    package: str = ""
    tries_temperatures: bool = False

    def runs(self, temperatures: Sequence[float]) -> list[np.ndarray]:
        """Return what to run it with in turn: each temperature, or all at once; by scores alone, the coldest."""
        array = np.asarray(temperatures, np.float32)
        if self.sees != "gradients":
            return [array.min()]
        return [array] if self.tries_temperatures else list(array)


def is_installed(package: str) -> bool:
    """Tell whether what an attack needs is there."""
    return not package or importlib.util.find_spec(package) is not None


def _logits(spent: Spent, reference, temperature, points):
    """Return the logits of the soft 1NN; counts each call and each gradient, whether compiled or not."""

    @jax.custom_vjp
    def ask(reference, temperature, points):
        jax.debug.callback(functools.partial(spent.add, queries=len(points)))
        return _soft(reference, temperature, points)

    def forward(reference, temperature, points):
        return ask(reference, temperature, points), (reference, temperature, points)

    def backward(asked, slope):
        jax.debug.callback(functools.partial(spent.add, gradients=len(slope)))
        return None, None, _pull_back(*asked, slope)

    ask.defvjp(forward, backward)
    return ask(reference, temperature, points)


def _classes(spent: Spent, reference, points):
    jax.debug.callback(functools.partial(spent.add, queries=len(points)))
    return neighbors.predict(reference, points)


@jax.jit
def _soft(reference, temperature, points):
    return neighbors.soft_logits(reference, points, temperature)


@jax.jit
def _pull_back(reference, temperature, points, slope):
    return jax.vjp(lambda points: _soft(reference, temperature, points), points)[1](slope)[0]


@jax.jit
def _one_hot(reference, points):
    return jax.nn.one_hot(neighbors.predict(reference, points), reference.num_classes)


def ours(attack: Callable[..., attacks.AttackResult], **options: Any) -> Callable[[str, int, Spent], Search]:
    """Make searches by one of our attacks, judged by 1NN at each step."""

    def make(norm: str, _: int, spent: Spent) -> Search:
        @jax.jit
        def points(reference, images, labels, key_data, temperature, epsilon):
            return attack(
                Partial(functools.partial(_logits, spent), reference, temperature),
                images,
                labels,
                key=jax.random.wrap_key_data(key_data),
                threat=Threat(norm, epsilon),
                predict_fn=Partial(functools.partial(_classes, spent), reference),
                **options,
            ).adversarial

        def search(problem: Problem) -> np.ndarray:
            reference, images, labels, _, key_data, temperature, epsilon = problem
            if epsilon is None:  # that of the whole box
                epsilon = {"linf": 1.0, "l2": images[0].size ** 0.5, "l1": float(images[0].size)}[norm]
            return np.asarray(points(reference, images, labels, key_data, temperature, epsilon))

        return search

    return make


def _pgd(logits_fn, images, labels, *, threat, num_steps, step_share, **options):
    step_size = step_share / max(num_steps, 1) * threat.epsilon
    return attacks.pgd(logits_fn, images, labels, threat=threat, num_steps=num_steps, step_size=step_size, **options)


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


def pgd_variant(num_steps: int, num_restarts: int, loss: str, step_share: float) -> Attack:
    """PGD through the soft 1NN, with these settings."""
    settings = {"num_steps": num_steps, "num_restarts": num_restarts, "loss": loss, "step_share": step_share}
    counts = {"num_steps": num_steps, "num_restarts": num_restarts, "step_share": step_share}
    # Between two classes the margin's gradient has the direction of the cross-entropy's, but it does not vanish where
    # the classifier is sure, as the soft 1NN of a low temperature is nearly everywhere.
    return Attack("gradients", "radius", settings, ours(_pgd, **counts, loss_fn=LOSSES[loss]))


def _ours(sees: str, finds: str, attack: Callable, tries_temperatures: bool = False, **options: Any) -> Attack:
    settings = {name: getattr(value, "__name__", value) for name, value in options.items()}
    return Attack(sees, finds, settings, ours(attack, **options), tries_temperatures=tries_temperatures)


def _foolbox(sees: str, finds: str, of_norms: Mapping[str, str], **options: Any) -> Attack:
    """An attack of Foolbox, whose class has another name in each norm."""

    def make(norm: str, seed: int, spent: Spent) -> Search:
        import eagerpy
        import foolbox

        eagerpy.JAXTensor.key = jax.random.PRNGKey(seed)  # what its random numbers come from
        attack = getattr(foolbox.attacks, of_norms[norm])(**options)

        def search(problem: Problem) -> np.ndarray:
            if sees == "labels":
                told = {"starting_points": jnp.asarray(problem.starts)}
                ask = functools.partial(_label_scores, spent, problem.reference)
            else:
                told, ask = {}, functools.partial(_logits, spent, problem.reference, problem.temperature)
            model = foolbox.models.JAXModel(ask, bounds=(0, 1))
            arrays = jnp.asarray(problem.images), jnp.asarray(problem.labels)
            return np.asarray(attack(model, *arrays, epsilons=problem.epsilon, **told)[1])

        return search

    return Attack(sees, finds, options, make, tuple(of_norms), "foolbox")


def _label_scores(spent: Spent, reference, points):
    spent.add(len(points))
    return _one_hot(reference, points)


def _art(sees: str, finds: str, of_norms: tuple[str, ...], name: str, **options: Any) -> Attack:
    """An attack of ART that asks for no gradients."""

    def make(norm: str, seed: int, spent: Spent) -> Search:
        from art.attacks import evasion
        from art.estimators.classification import BlackBoxClassifierNeuralNetwork

        np.random.seed(seed)  # noqa: NPY002 - its random numbers are NumPy's

        def search(problem: Problem) -> np.ndarray:
            reference, images, labels, starts, _, temperature, epsilon = problem
            scores = (_one_hot, reference) if sees == "labels" else (_soft, reference, temperature)
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

    return Attack(sees, finds, options, make, of_norms, "art")


def _ask(spent: Spent, fn: Callable, *args: Any) -> np.ndarray:
    """Return what a function says of points; few numbers of points are compiled for."""
    *before, points = args
    count = len(points)
    spent.add(count)
    filled = np.resize(points, (1 << (count - 1).bit_length(), *points.shape[1:])).astype(np.float32)
    return np.asarray(fn(*before, filled))[:count]


# What a name in a configuration stands for. Sizes are the library's own, where they end in minutes on a CPU.
NAMED: dict[str, Attack] = {
    "pgd": pgd_variant(40, 1, "margin", 2.5),
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
