"""W&B's distributions and grids: what a search chooses, and the flag's value that it stands for.

https://docs.wandb.ai/guides/sweeps/sweep-config-keys#distribution-options-for-parameters
"""

import itertools
import math
from collections.abc import Callable, Iterator
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from statistics import NormalDist
from typing import Any, NamedTuple

import optuna

from utils import ConfigError

LARGEST_GRID = 100_000

Spec = dict[str, Any]  # a parameter's entry in the sweep file, every number a number, with its distribution


def _range(spec: Spec) -> tuple[float, float]:
    return float(spec["min"]), float(spec["max"])


def _exponents(spec: Spec) -> tuple[float, float]:
    return math.exp(spec["min"]), math.exp(spec["max"])


def _inverse_exponents(spec: Spec) -> tuple[float, float]:
    return math.exp(-spec["max"]), math.exp(-spec["min"])


def _quantiles(spec: Spec) -> tuple[float, float]:
    return 1e-9, 1 - 1e-9


def _normal(spec: Spec, quantile: float) -> float:
    return NormalDist(spec.get("mu", 0), spec.get("sigma", 1)).inv_cdf(quantile)


def _beta(spec: Spec, quantile: float) -> float:
    from scipy.special import betaincinv

    return float(betaincinv(spec.get("a", 1), spec.get("b", 1), quantile))


def _weighted(spec: Spec, quantile: float) -> Any:
    """The value whose share of the probabilities holds the quantile."""
    ends = itertools.accumulate(spec["probabilities"])
    last = max(at for at, share in enumerate(spec["probabilities"]) if share)
    return spec["values"][next((at for at, end in enumerate(ends) if quantile < end), last)]


class Distribution(NamedTuple):
    """A distribution of W&B.

    Attributes:
      needed, optional: the keys of its entry.
      bounds: spec -> the bounds of the number that the search chooses; None if it chooses from a list, or nothing.
      log: whether that number is spread by its logarithm.
      value: spec, number -> the value.
    """

    needed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    bounds: Callable[[Spec], tuple[float, float]] | None = None
    log: bool = False
    value: Callable[[Spec, float], Any] = lambda spec, chosen: chosen


MIN_MAX = ("min", "max")
_EXACT = {
    "uniform": Distribution(MIN_MAX, bounds=_range),
    "log_uniform": Distribution(MIN_MAX, bounds=_exponents, log=True),
    "log_uniform_values": Distribution(MIN_MAX, bounds=_range, log=True),
    "normal": Distribution(optional=("mu", "sigma"), bounds=_quantiles, value=_normal),
    "log_normal": Distribution(
        optional=("mu", "sigma"), bounds=_quantiles, value=lambda spec, quantile: math.exp(_normal(spec, quantile))
    ),
    "beta": Distribution(optional=("a", "b"), bounds=_quantiles, value=_beta),
}
DISTRIBUTIONS = {
    "constant": Distribution(("value",)),
    "categorical": Distribution(("values",), ("probabilities",)),
    "categorical_w_probabilities": Distribution(("values", "probabilities"), bounds=_quantiles, value=_weighted),
    "int_uniform": Distribution(MIN_MAX),
    **_EXACT,
    "inv_log_uniform": Distribution(MIN_MAX, bounds=_inverse_exponents, log=True),
    "inv_log_uniform_values": Distribution(MIN_MAX, bounds=_range, log=True),
    **{f"q_{name}": each._replace(optional=(*each.optional, "q")) for name, each in _EXACT.items()},
}
SPEC_KEYS = sorted({key for each in DISTRIBUTIONS.values() for key in (*each.needed, *each.optional)})


def choose(trial: optuna.Trial, name: str, spec: Spec) -> Any:
    """What a trial chooses for a parameter; `value_of` makes a flag's value of it."""
    kind = spec["distribution"]
    if kind == "constant":
        return None
    if kind == "categorical":
        return trial.suggest_categorical(name, spec["values"])
    if kind == "int_uniform":
        return trial.suggest_int(name, spec["min"], spec["max"])
    low, high = DISTRIBUTIONS[kind].bounds(spec)
    return trial.suggest_float(name, low, high, log=DISTRIBUTIONS[kind].log)


def value_of(spec: Spec, chosen: Any) -> Any:
    """The flag's value that a choice stands for."""
    kind = spec["distribution"]
    if kind == "constant":
        return spec["value"]
    value = DISTRIBUTIONS[kind].value(spec, chosen)
    return _quantised(spec, value) if kind.startswith("q_") else value


def suggest(trial: optuna.Trial, parameters: dict[str, Spec]) -> dict[str, Any]:
    """The flags of a trial."""
    return {name: value_of(spec, choose(trial, name, spec)) for name, spec in parameters.items()}


def settings_of(chosen: dict[str, Any], parameters: dict[str, Spec]) -> dict[str, Any]:
    """The flags that the `params` of a trial stand for."""
    return {name: value_of(parameters[name], choice) for name, choice in chosen.items()}


def _quantised(spec: Spec, value: float) -> int | float:
    """The multiple of q next to a value, never beyond min and max; a whole number where q is one, as 1 is if absent."""
    q = spec.get("q", 1)
    count = int((Decimal(str(value)) / Decimal(str(q))).to_integral_value())
    if "min" in spec:
        first, last = multiples(spec)
        count = min(max(count, first), last)
    return _times(count, q)


def multiples(spec: Spec) -> tuple[int, int]:
    """The least and the greatest multiple of q between the bounds, as counts of q; decimals, since 0.7 / 0.1 < 7."""
    low, high = DISTRIBUTIONS[spec["distribution"]].bounds(spec)
    q = Decimal(str(spec.get("q", 1)))
    least, greatest = Decimal(str(low)) / q, Decimal(str(high)) / q
    return int(least.to_integral_value(ROUND_CEILING)), int(greatest.to_integral_value(ROUND_FLOOR))


def _times(count: int, q: int | float) -> int | float:
    return count * q if isinstance(q, int) else float(count * Decimal(str(q)))


def samples(spec: Spec) -> list[Any]:
    """Values that show what a parameter can be: all of a list; of a range those at both ends, or near them where it may
    end in a number that is never drawn; of multiples also one beside another."""
    kind = spec["distribution"]
    if kind == "constant":
        return [spec["value"]]
    if "values" in spec:
        likely = spec.get("probabilities", [1] * len(spec["values"]))
        return [value for value, share in zip(spec["values"], likely, strict=True) if share]
    if kind == "int_uniform":
        return [spec["min"], spec["max"]]
    if kind.startswith("q_") and "min" in spec:
        first, last = multiples(spec)
        return [_times(count, spec.get("q", 1)) for count in sorted({first, min(first + 1, last), last})]
    if "min" not in spec:
        found = [value_of(spec, quantile) for quantile in (0.05, 0.5, 0.95)]
        return [*found, _quantised(spec, found[1] + spec.get("q", 1))] if kind.startswith("q_") else found
    low, high = DISTRIBUTIONS[kind].bounds(spec)
    if DISTRIBUTIONS[kind].log:
        return [value_of(spec, low * (high / low) ** share) for share in (0.01, 0.99)]
    return [value_of(spec, low + share * (high - low)) for share in (0.01, 0.99)]


# Grids.


def grid_size(parameters: dict[str, Spec]) -> int:
    """How many settings a grid has."""
    return math.prod(len(values) for values in grid_values(parameters).values())


def grid(parameters: dict[str, Spec]) -> Iterator[dict[str, Any]]:
    """Every combination of the values that are searched."""
    lists = grid_values(parameters)
    return (dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values()))


def grid_values(parameters: dict[str, Spec]) -> dict[str, list[Any]]:
    """The values of each parameter that is searched.

    Raises:
      ConfigError: they cannot be counted, or are too many.
    """
    return {name: _listed(name, spec) for name, spec in parameters.items() if spec["distribution"] != "constant"}


def _listed(name: str, spec: Spec) -> list[Any]:
    kind = spec["distribution"]
    if kind == "categorical":
        return list(dict.fromkeys(spec["values"]))
    if kind not in ("int_uniform", "q_uniform"):
        raise ConfigError(f"{name}: a grid needs a list of values, int_uniform or q_uniform, not {kind}")
    first, last = (spec["min"], spec["max"]) if kind == "int_uniform" else multiples(spec)
    if last - first >= LARGEST_GRID:
        raise ConfigError(f"{name}: {last - first + 1} values are too many for a grid: at most {LARGEST_GRID}")
    q = 1 if kind == "int_uniform" else spec.get("q", 1)
    return [_times(count, q) for count in range(first, last + 1)]
