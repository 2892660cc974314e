"""What a training does, as plain numbers that compare, hash and print."""

from __future__ import annotations

import dataclasses

import numpy as np
import optax

from nn_adv.border import as_count, as_number
from nn_adv.threat import Threat, check_threat
from nn_adv.training.inner_maximization import NORMS

OBJECTIVES = ("adversarial", "standard", "trades")
SCHEDULES = ("constant", "cosine", "step")
AUGMENTATIONS = ("crop_flip", "none")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained; equal recipes share one compilation.

    Attributes:
      objective: "trades", "adversarial" (PGD examples) or "standard" (clean images).
      threats: what to become robust to, of one finite size each, with bounds that hold [0, 1]; several with TRADES sum
        their divergences. None, an empty tuple, for "standard".
      beta: TRADES's weight of the divergence.
      num_steps: steps of the inner maximisation, per batch and threat.
      step_sizes: one per threat in pixel units; None, whole or in places, for ``2 epsilon / num_steps``.
      num_epochs: passes over a member's images.
      batch_size: images per step.
      batch_norm_groups: number of equal groups of a batch; batch normalisation takes its statistics within each, and
        running ones are means over groups. One for each device is what replicas do that do not share statistics
        (ghost batch normalisation, Hoffer et al. 2017, arXiv 1705.08741); here the result depends on no device.
      schedule: of the learning rate, "cosine" (to 0 at the end), "step" (a tenth from each of ``drop_epochs``) or
        "constant".
      learning_rate: at the start.
      drop_epochs: epochs (from 0) at which "step" drops.
      momentum: of SGD.
      nesterov: use Nesterov's momentum.
      weight_decay: times the weights, added to the gradient of all of them (biases and scales too).
      ema_decay: evaluate and return an exponential moving average of weights and running statistics; 0 for none.
      augment: "crop_flip" (pad 4, random crop, random horizontal flip) or "none".
      select_every: every so many epochs, and after the last, measure accuracy on the held-out training images and keep
        the best variables (the latest among equals); 0 keeps the last without measuring.
      select_steps: steps of the PGD that measures.

    Raises:
      ValueError: a value outside these.
    """

    objective: str = "trades"
    threats: tuple[Threat, ...] = ()
    beta: float = 6.0
    num_steps: int = 10
    step_sizes: tuple[float | None, ...] | None = None
    num_epochs: int = 30
    batch_size: int = 128
    batch_norm_groups: int = 1
    schedule: str = "cosine"
    learning_rate: float = 0.1
    drop_epochs: tuple[int, ...] = ()
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 2e-4
    ema_decay: float = 0.0
    augment: str = "none"
    select_every: int = 0
    select_steps: int = 10

    def __post_init__(self) -> None:
        for name, allowed in (("objective", OBJECTIVES), ("schedule", SCHEDULES), ("augment", AUGMENTATIONS)):
            self._set(name, _as_choice(name, getattr(self, name), allowed))
        for name in ("num_epochs", "batch_size", "batch_norm_groups"):
            self._set(name, as_count(getattr(self, name), name))
        if self.batch_size % self.batch_norm_groups:
            raise ValueError(
                f"batch_norm_groups must divide batch_size ({self.batch_size}), got {self.batch_norm_groups}"
            )
        for name in ("num_steps", "select_every", "select_steps"):
            self._set(name, as_count(getattr(self, name), name, low=0))
        for name in ("beta", "learning_rate", "weight_decay"):
            self._set(name, as_number(getattr(self, name), name))
        for name in ("momentum", "ema_decay"):
            self._set(name, as_number(getattr(self, name), name, below=1))
        self._set("nesterov", bool(self.nesterov))
        self._set("threats", tuple(map(_plain_threat, _as_tuple("threats", self.threats))))
        drops = _as_tuple("drop_epochs", self.drop_epochs)
        self._set("drop_epochs", tuple(as_count(epoch, "drop_epochs", low=0) for epoch in drops))
        if self.step_sizes is not None:
            sizes = _as_tuple("step_sizes", self.step_sizes)
            self._set("step_sizes", tuple(None if size is None else as_number(size, "step_sizes") for size in sizes))
        self._check_threats()
        self._check_drops()

    def _set(self, name, value):  # a plain value, so that equal recipes are equal, as text too
        object.__setattr__(self, name, value)

    def _check_threats(self):
        if self.objective == "standard":
            if self.threats:
                raise ValueError(f"threats must be empty for the objective 'standard', got {len(self.threats)}")
            return
        if not self.threats:
            raise ValueError(f"threats must hold at least one Threat for the objective {self.objective!r}, got none")
        norms = [threat.norm for threat in self.threats]
        if self.objective == "trades" and not set(norms) <= set(NORMS):
            raise ValueError(f"threats of TRADES must be in {' or '.join(NORMS)}, got {', '.join(norms)}")
        if self.step_sizes is not None and len(self.step_sizes) != len(self.threats):
            raise ValueError(f"step_sizes must be one per threat ({len(self.threats)}), got {len(self.step_sizes)}")

    def _check_drops(self):
        if self.schedule == "step" and not self.drop_epochs:
            raise ValueError("drop_epochs must name at least one epoch for the schedule 'step', got none")
        if self.schedule != "step" and self.drop_epochs:
            raise ValueError(f"drop_epochs must be empty for the schedule {self.schedule!r}, got {self.drop_epochs}")

    def learning_rates(self, steps_per_epoch: int) -> optax.Schedule:
        """Give the learning rate as a function of the step."""
        if self.schedule == "cosine":
            return optax.cosine_decay_schedule(self.learning_rate, self.num_epochs * steps_per_epoch)
        drops = {epoch * steps_per_epoch: 0.1 for epoch in self.drop_epochs}
        return optax.piecewise_constant_schedule(self.learning_rate, drops)

    def optimizer(self, steps_per_epoch: int) -> optax.GradientTransformation:
        """Build SGD with momentum, the weight decay inside the momentum as in PyTorch."""
        sgd = optax.sgd(self.learning_rates(steps_per_epoch), self.momentum or None, self.nesterov)
        return optax.chain(optax.add_decayed_weights(self.weight_decay), sgd)


def _as_choice(name, value, allowed):
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    return str(value)


def _as_tuple(name, values):
    if not isinstance(values, (tuple, list)):
        raise ValueError(f"{name} must be a tuple, got {values!r}")
    return tuple(values)


def _plain_threat(threat):
    check_threat(threat, finite=True)
    if np.ndim(threat.epsilon):
        raise ValueError(f"threats must have one epsilon each, got {np.shape(threat.epsilon)} of them")
    if threat.bounds is not None and not (threat.bounds[0] <= 0 and threat.bounds[1] >= 1):
        raise ValueError(f"bounds of threats must hold [0, 1], where images are, got {threat.bounds}")
    return dataclasses.replace(threat, epsilon=float(threat.epsilon))
