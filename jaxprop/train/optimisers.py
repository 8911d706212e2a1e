"""Optimisers and schedules, by their names in optax.

There is no list of names here: whatever optax exports that takes a learning rate and
needs nothing but gradients is an optimiser, whatever its `schedules` module can make of a
rate and a number of steps is a schedule.
"""

import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from types import FunctionType
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprop.installing import PyTree
from jaxprop.train.config import Optimisation, parse_options
from jaxprop.train.errors import TrainingError

ENDINGS = ("", "_schedule", "_decay_schedule", "_decay")


def make_schedule(config: Optimisation, steps: int) -> optax.Schedule:
    """The learning rate as a function of the step, over a run of `steps` steps."""
    given = parse_options("--schedule-options", config.schedule_options)
    names = [config.schedule + ending for ending in ENDINGS]
    found = [name for name in names if _is_schedule(getattr(optax.schedules, name, None))]
    if not found:
        raise TrainingError(
            f"--schedule must be one of {', '.join(schedule_names())}, got {config.schedule!r}."
        )
    factory = getattr(optax.schedules, found[0])
    arguments = _schedule_arguments(factory, config.learning_rate, steps) | given
    return _call("--schedule", factory, arguments)


def make_optimiser(
    config: Optimisation,
    schedule: optax.Schedule,
    decayed: Callable[[PyTree], PyTree] | None = None,
) -> optax.GradientTransformation:
    """The optimiser, with the schedule as its learning rate.

    decayed: of params, which of them have weight decay, where the optimiser has such; all if None.
    """
    if not _is_optimiser(config.optimiser):
        raise TrainingError(
            f"--optimiser must be one of {', '.join(optimiser_names())}, got {config.optimiser!r}."
        )
    given = parse_options("--optimiser-options", config.optimiser_options)
    factory = getattr(optax, config.optimiser)
    known: dict[str, Any] = {"learning_rate": schedule}
    if decayed is not None and "mask" in inspect.signature(factory).parameters:
        known["mask"] = decayed
    optimiser = _call("--optimiser", factory, known | given)
    if problem := _problem(optimiser):
        raise TrainingError(
            f"--optimiser {config.optimiser} cannot be used here, optax says: {problem}. Choose "
            f"one of {', '.join(optimiser_names())}."
        )
    return optimiser


def update(
    optimiser: optax.GradientTransformation, gradients: PyTree, state: PyTree, params: PyTree
) -> tuple[PyTree, PyTree]:
    """(new parameters, new state) after one step.

    optax counts steps in integers and raises floats to them, so JAX's usual dtype promotion
    is turned on for it.
    """
    with jax.numpy_dtype_promotion("standard"):
        updates, state = optimiser.update(gradients, state, params)
        return optax.apply_updates(params, updates), state


def rate_at(schedule: optax.Schedule, step: int) -> float:
    """The learning rate of a step, counted from 0."""
    with jax.numpy_dtype_promotion("standard"):
        return float(jax.jit(schedule)(step))


def optimiser_names() -> list[str]:
    """What optax exports that can be an --optimiser."""
    return [name for name in dir(optax) if _is_optimiser(name) and _works(getattr(optax, name))]


def schedule_names() -> list[str]:
    """What optax.schedules holds that can be a --schedule without further arguments."""
    factories = {name: getattr(optax.schedules, name) for name in dir(optax.schedules)}
    return [
        name
        for name, factory in factories.items()
        if _is_schedule(factory)
        and set(_required(factory)) <= set(_schedule_arguments(factory, 1.0, 1))
    ]


def _schedule_arguments(factory: Callable, rate: float, steps: int) -> dict[str, Any]:
    """The arguments that a schedule needs and a run can tell: from the rate to nought."""
    required = _required(factory)
    known = {
        "value": rate,
        "init_value": 0.0 if "peak_value" in required else rate,
        "peak_value": rate,
        "end_value": 0.0,
        "decay_rate": 0.01,  # a hundredth of the rate at the end
        "warmup_steps": steps // 10,
        "decay_steps": steps,
        "transition_steps": steps,
    }
    return {name: known[name] for name in required if name in known}


def _is_schedule(factory: object) -> bool:
    """Whether it is a function that makes a schedule of numbers."""
    if not inspect.isfunction(factory):
        return False
    return any(name in ("value", "init_value", "peak_value") for name in _required(factory))


def _is_optimiser(name: str) -> bool:
    """Whether optax exports a function of that name that takes a learning rate."""
    factory = getattr(optax, name, None)
    if name.startswith(("_", "scale_by")) or not isinstance(factory, FunctionType | partial):
        return False
    return "learning_rate" in inspect.signature(factory).parameters


def _works(factory: Callable) -> bool:
    """Whether it makes, of a schedule alone and without a warning, an optimiser for us."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return not _problem(factory(learning_rate=optax.constant_schedule(0.1)))
        except (TypeError, ValueError, Warning):
            return False


def _problem(optimiser: optax.GradientTransformation) -> str:
    """Why it cannot take a step from gradients alone; empty where it can. Computes nothing."""

    def step(params: PyTree) -> PyTree:
        return update(optimiser, params, optimiser.init(params), params)

    try:
        jax.eval_shape(step, {"w": jax.ShapeDtypeStruct((3, 2), jnp.float32)})
    except (TypeError, ValueError) as error:
        return str(error).split("\n")[0]
    return ""


def _call(flag: str, factory: Callable, arguments: Mapping[str, Any]) -> Any:
    """The factory's product; what optax only warns of (a deprecated name) is an error too."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return factory(**arguments)
        except (TypeError, ValueError, Warning) as error:
            names = ", ".join(inspect.signature(factory).parameters)
            reason = str(error).rstrip(".")
            raise TrainingError(
                f"{flag} takes ({names}), optax says: {reason}. Give what is missing with "
                f"{flag}-options name=value."
            ) from None


def _required(factory: Callable) -> list[str]:
    parameters = inspect.signature(factory).parameters.values()
    return [p.name for p in parameters if p.default is p.empty]
