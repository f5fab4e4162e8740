"""The sweep file, W&B's: checked in full before anything starts. What is not obeyed is refused by its name.

https://docs.wandb.ai/guides/sweeps/sweep-config-keys
"""

import math
import os
import re
from pathlib import Path
from typing import Any

import yaml

from scripts.sweep_command import (
    DEFAULT_COMMAND,
    argument,
    check_command,
    check_start,
    find_program,
    flag_of,
    shown,
)
from scripts.sweep_space import DISTRIBUTIONS, MIN_MAX, SPEC_KEYS, Spec, grid_values, multiples
from utils import ConfigError, unknown

METHODS = ("bayes", "random", "grid")
GOALS = ("minimize", "maximize")
UNDERSTOOD = (
    *("program", "name", "description", "project", "entity", "method", "metric", "parameters", "run_cap", "command"),
)
ONLY_WANDB = ("early_terminate", "controller", "scheduler", "job", "image_uri", "metrics", "kind", "apiVersion")
ONLY_WANDB_METRIC = ("impute", "impute_while_running")
# Beyond these, differences and exponentials leave the floats, and the database rounds whole numbers.
LARGEST, LARGEST_WHOLE, LARGEST_EXPONENT = 1e300, 2**53, 690


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice; YAML's loader would drop the first."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for at, key in enumerate(keys) if key in keys[:at]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice} stands twice", node.start_mark)
        return node


def read_sweep(path: Path) -> dict[str, Any]:
    """The sweep file, every parameter with its distribution, every number a number.

    Raises:
      ConfigError: it cannot be read, or asks for something that is not understood or not possible; one line.
    """
    try:
        content = yaml.load(path.read_bytes(), _Loader)  # UTF-8, whatever the locale
    except Exception as error:  # what PyYAML raises for a text that is no YAML is of any kind
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise ConfigError(one_line(f"cannot read {path}: {reason}")) from None
    try:
        return _checked(content)
    except ConfigError as error:
        raise ConfigError(one_line(f"{path}: {error}")) from None


def one_line(text: str) -> str:
    """A text on one line, of a length that can be read, every sign visible."""
    words = " ".join(text.split())
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in words)[:600]


def _checked(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ConfigError("this is not a sweep file: it has no parameters")
    for key in content:
        if key in ONLY_WANDB:
            raise ConfigError(f"{key} only works with W&B; understood: {', '.join(UNDERSTOOD)}")
        if key not in UNDERSTOOD:
            raise ConfigError(unknown("key", str(key), UNDERSTOOD))
    sweep = {key: value for key, value in content.items() if value is not None}  # an empty entry says nothing
    if sweep.get("method") not in METHODS:
        raise ConfigError(f"method {shown(sweep.get('method'))} is none of {', '.join(METHODS)}")
    for key in ("program", "name", "project", "entity"):
        if key in sweep:
            sweep[key] = _text(sweep[key], key)
    for key in ("name", "project"):
        if key in sweep:
            check_name(sweep[key], key)
    if "run_cap" in sweep:
        sweep["run_cap"] = _whole(sweep["run_cap"], "run_cap", least=1)
    sweep["metric"] = _metric(sweep.get("metric"))
    sweep["parameters"] = _parameters(sweep.get("parameters"), sweep["method"])
    if "command" in sweep:
        sweep["command"] = check_command(sweep["command"])
    program = sweep.get("program", "training.py")
    sweep["program"] = str(find_program(program, sweep.get("command", []), sweep["parameters"]))
    flags = [*sweep["parameters"], *(word for word in sweep.get("command", ()) if word.startswith("--"))]
    if "project" in sweep and "project_name" in map(flag_of, flags):
        raise ConfigError("project and project_name are the same flag: leave one of them out")
    check_start(sweep.get("command", DEFAULT_COMMAND), sweep["program"])
    return sweep


def _text(value: Any, where: str) -> str:
    """A text; YAML takes a name such as 2026 or 2026-11-29 for something else."""
    if isinstance(value, bool | list | dict) or not str(value).strip():
        raise ConfigError(f"{where} {shown(value)} is no text")
    return argument(value, where)


def check_name(name: str, where: str) -> str:
    """A name that folders, database and job scripts can bear.

    Raises:
      ConfigError: it is not one.
    """
    argument(name, where)
    if not 0 < len(os.fsencode(name)) <= 100 or name.startswith(".") or name != name.strip():
        raise ConfigError(f"{where} {shown(name)} cannot be a folder's name: 1 to 100 bytes, no leading dot or space")
    wrong = next((sign for sign in name if sign in "/\\" or not sign.isprintable()), None)
    if wrong:
        fits = "".join("-" if sign in "/\\" or not sign.isprintable() else sign for sign in name)
        raise ConfigError(f"{where} {shown(name)} cannot be a folder's name, because of {wrong!r}: e.g. {fits}")
    return name


# Numbers. YAML 1.1 reads 1e1 as text; where only a number makes sense, it is one.

_DIGITS = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?")


def _number(value: Any, where: str) -> int | float:
    if isinstance(value, str) and _DIGITS.fullmatch(value.strip()):
        text = value.strip().replace("_", "")
        value = int(text) if text.lstrip("+-").isdigit() and len(text) < 400 else float(text)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        raise ConfigError(f"{where}: {shown(value)} is no number that can be used, as 8, 0.5 and 1.0e-3 are")
    return value


def _whole(value: Any, where: str, least: int = -LARGEST_WHOLE) -> int:
    number = _number(value, where)
    if number != int(number) or not least <= number <= LARGEST_WHOLE:
        raise ConfigError(f"{where}: {shown(value)} is no whole number from {least} to {LARGEST_WHOLE}")
    return int(number)


def _metric(metric: Any) -> dict[str, Any]:
    example = "metric: {name: eval/episode_success, goal: maximize}"
    if not isinstance(metric, dict):
        said = "metric is missing" if metric is None else f"metric {shown(metric)} has no goal"
        raise ConfigError(f"{said}; write it as in {example}")
    for key in metric:
        if key in ONLY_WANDB_METRIC:
            raise ConfigError(f"metric: {key} only works with W&B")
        if key not in ("name", "goal", "target"):
            raise ConfigError(unknown("key", str(key), ("name", "goal", "target"), " of metric"))
    if not isinstance(metric.get("name"), str) or not metric["name"].strip():
        raise ConfigError(f"metric needs a name; write it as in {example}")
    if metric.get("goal", "minimize") not in GOALS:
        raise ConfigError(f"metric: goal {shown(metric['goal'])} is none of {', '.join(GOALS)}")
    return metric | ({"target": _number(metric["target"], "metric: target")} if "target" in metric else {})


# Parameters.


def _parameters(parameters: Any, method: str) -> dict[str, Spec]:
    if not isinstance(parameters, dict) or not parameters:
        raise ConfigError("this is not a sweep file: it has no parameters")
    for name in parameters:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}", name):
            raise ConfigError(f"parameters: {shown(name)} is no flag's name: letters, digits and underscores")
    first: dict[str, str] = {}
    for name in parameters:
        if first.setdefault(flag_of(name), name) != name:
            raise ConfigError(f"{first[flag_of(name)]} and {name} are the same flag: leave one of them out")
    specs = {name: _parameter(name, spec) for name, spec in parameters.items()}
    for name, spec in specs.items():
        if spec["distribution"] == "categorical_w_probabilities" and method != "random":
            raise ConfigError(f"{name}: probabilities only work with method random, not {method}")
    if method == "grid":
        grid_values(specs)
    return specs


def _parameter(name: str, entry: Any) -> Spec:
    """A parameter's entry with the distribution that W&B would take it to have, checked."""
    if not isinstance(entry, dict):
        raise ConfigError(f"{name} needs value, values, or min and max; write {name}: {{value: {shown(entry)}}}")
    if "parameters" in entry:
        raise ConfigError(f"{name}: nested parameters only work with W&B; flags have no dots")
    for key in entry:
        if key not in (*SPEC_KEYS, "distribution"):
            raise ConfigError(unknown("key", str(key), (*SPEC_KEYS, "distribution"), f" of {name}"))
    spec = {key: _number(value, f"{name}: {key}") if key in _NUMBERS else value for key, value in entry.items()}
    spec["distribution"] = kind = _distribution(name, spec)
    needed, optional = DISTRIBUTIONS[kind].needed, DISTRIBUTIONS[kind].optional
    missing = [key for key in needed if key not in spec]
    strange = [key for key in spec if key not in (*needed, *optional, "distribution")]
    if missing:
        raise ConfigError(f"{name}: {kind} needs {' and '.join(needed)}; missing: {', '.join(missing)}")
    if strange:
        takes = ", ".join((*needed, *optional))
        raise ConfigError(f"{name}: {', '.join(strange)} does not go with {kind}, which takes {takes}")
    return _possible(name, spec)


_NUMBERS = ("min", "max", "q", "mu", "sigma", "a", "b")


def _distribution(name: str, spec: Spec) -> str:
    kind = spec.get("distribution")
    if kind is None:
        whole = all(isinstance(spec.get(bound), int) for bound in MIN_MAX)
        kinds = {"value": "constant", "values": "categorical", "min": "int_uniform" if whole else "uniform"}
        kind = next((kind for key, kind in kinds.items() if key in spec), None)
    if kind is None:
        raise ConfigError(f"{name} needs value, values, or min and max, or a distribution with what belongs to it")
    if not isinstance(kind, str) or kind not in DISTRIBUTIONS:
        raise ConfigError(unknown("distribution", str(kind), DISTRIBUTIONS, f" of {name}"))
    return "categorical_w_probabilities" if kind == "categorical" and "probabilities" in spec else kind


def _possible(name: str, spec: Spec) -> Spec:
    """Refuses numbers and lists that no value could be drawn from."""
    kind = spec["distribution"]
    if "value" in spec:
        _scalar(name, spec["value"])
    if "values" in spec:
        _check_values(name, spec["values"])
    if "probabilities" in spec:
        spec = spec | {"probabilities": _shares(name, spec)}
    if kind == "int_uniform":
        spec = spec | {bound: _whole(spec[bound], f"{name}: {bound}") for bound in MIN_MAX}
    if "min" in spec:
        _check_range(name, spec)
    for key in ("q", "sigma", "a", "b"):
        if not spec.get(key, 1) > 0:
            raise ConfigError(f"{name}: {key} {spec[key]} must be above 0")
    if kind.endswith("log_normal") and abs(spec.get("mu", 0)) + 7 * spec.get("sigma", 1) > LARGEST_EXPONENT:
        raise ConfigError(f"{name}: mu and sigma are those of the logarithm; e^{spec.get('mu', 0)} is out of range")
    if kind.startswith("q_") and "min" in spec:
        first, last = multiples(spec)
        if first > last:
            raise ConfigError(f"{name}: no multiple of q {spec.get('q', 1)} lies from {spec['min']} to {spec['max']}")
    return spec


def _check_range(name: str, spec: Spec) -> None:
    low, high, kind = spec["min"], spec["max"], spec["distribution"]
    if low > high:
        raise ConfigError(f"{name}: min {low} is above max {high}; exchange them")
    if kind.endswith("log_uniform_values") and low <= 0:
        raise ConfigError(f"{name}: min {low} has no logarithm; {kind} needs one above 0, e.g. {high / 1000:g}")
    if kind.endswith("log_uniform") and max(abs(low), abs(high)) > LARGEST_EXPONENT:
        raise ConfigError(
            f"{name}: {kind} takes exponents of e, at most {LARGEST_EXPONENT} and not below -{LARGEST_EXPONENT}, not "
            f"{low} to {high}; {kind}_values takes the values"
        )


def _scalar(name: str, value: Any) -> None:
    if not isinstance(value, bool | int | float | str | None):
        raise ConfigError(f"{name}: {shown(value)} is no flag's value: text, number, true, false or null")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name}: {value} is no finite number")
    argument(value, name)


def _check_values(name: str, values: Any) -> None:
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{name}: values {shown(values)} must be a list with at least one value")
    written: dict[Any, str] = {}
    for value in values:
        _scalar(name, value)
        if written.setdefault(value, repr(value)) != repr(value):
            raise ConfigError(f"{name}: {written[value]} and {value!r} are equal: keep one of them")


def _shares(name: str, spec: Spec) -> list[float]:
    shares, values = spec["probabilities"], spec["values"]
    if not isinstance(shares, list) or len(shares) != len(values):
        raise ConfigError(f"{name}: probabilities {shown(shares)} must be a list, one per value ({len(values)})")
    shares = [_number(share, f"{name}: probabilities") for share in shares]
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ConfigError(f"{name}: probabilities must be at least 0 and sum to 1; these sum to {sum(shares):g}")
    return shares
