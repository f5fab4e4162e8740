"""Sweep files: what they can ask for is obeyed, everything else is refused in one line before anything starts."""

import contextlib
import copy
import io
import itertools
import math
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import optuna
import pytest
import yaml
from conftest import slow
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts import sweep, sweep_command, sweep_worker
from scripts.sweep_command import check_flags, expand
from scripts.sweep_file import read_sweep
from scripts.sweep_space import DISTRIBUTIONS, choose, grid, grid_size, samples, suggest, value_of
from src.command_line import parse_config
from src.registries import REGISTRIES
from utils import REFUSED, ConfigError

ROOT = Path(__file__).resolve().parents[1]

# A sweep file without parameters that says all that is needed.
HEAD = {"run_cap": 2, "method": "random", "metric": {"name": "score", "goal": "maximize"}}


@pytest.fixture
def read(tmp_path):
    """read(parameters, more of the file) -> the sweep file, read; read(text=...) the same of a text or bytes."""

    def make(parameters=None, text=None, **more):
        content = HEAD | {"parameters": parameters or {"seed": {"value": 1}}} | more
        text = yaml.safe_dump(content) if text is None else text
        (tmp_path / "mine.yml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_sweep(tmp_path / "mine.yml")

    return make


@pytest.fixture
def parameter(read):
    """parameter(entry as YAML) -> its checked entry."""
    return lambda entry, **more: read({"h_dim": yaml.safe_load(entry)}, **more)["parameters"]["h_dim"]


def drawn(spec, count=60):
    """Values as the runs of a random search get them."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [suggest(study.ask(), {"x": spec})["x"] for _ in range(count)]


# Numbers keep their type.


@pytest.mark.parametrize(
    ("entry", "values"),
    [
        ("{distribution: q_uniform, min: 8, max: 32, q: 8}", [8, 16, 24, 32]),
        ("{distribution: q_uniform, min: 8, max: 10}", [8, 9, 10]),
        ("{distribution: q_uniform, min: 0.5, max: 3.5}", [1, 2, 3]),
        ("{distribution: q_uniform, min: 10, max: 30, q: 8}", [16, 24]),  # what is written is never left
        ("{distribution: q_log_uniform_values, min: 3e2, max: 1.0e+3, q: 256}", [512, 768]),
        ("{distribution: q_log_uniform, min: 0, max: 1.2}", [1, 2, 3]),  # from 1 to 3.3
        ("{min: 3, max: 5}", [3, 4, 5]),
        ("{distribution: int_uniform, min: 4.0, max: 5.0}", [4, 5]),
        ("{distribution: int_uniform, min: 1e1, max: 1.1e1}", [10, 11]),  # text in YAML 1.1
        ("{distribution: q_uniform, min: 0.5, max: 0.7, q: 0.1}", [0.5, 0.6, 0.7]),
        ("{distribution: q_uniform, min: 0, max: 2, q: 1.0}", [0.0, 1.0, 2.0]),
    ],
)
def test_a_number_is_whole_where_the_file_says_so(parameter, entry, values):
    found = drawn(parameter(entry))
    assert set(map(repr, found)) == set(map(repr, values))


def test_numbers_in_lists_and_constants_are_handed_on_as_they_stand(read):
    entries = {"a": {"values": [1, 1.5, "1e-4", None, False]}, "b": {"value": 1.0e7}, "c": {"value": "1e7"}}
    parameters = read(entries)["parameters"]
    assert samples(parameters["a"]) == [1, 1.5, "1e-4", None, False]
    assert expand(["${args}"], "", {name: spec.get("value") for name, spec in parameters.items()}, Path()) == [
        "--a=None",
        "--b=10000000.0",
        "--c=1e7",
    ]


# Distributions, by the quantiles of their definitions.


@pytest.mark.parametrize(
    ("entry", "quantile", "value"),
    [
        ("{distribution: normal}", 0.5, 0.0),
        ("{distribution: normal, mu: 100, sigma: 10}", 0.975, 119.59963984540054),
        ("{distribution: log_normal, mu: 2}", 0.5, math.exp(2)),
        ("{distribution: log_normal, mu: 1, sigma: 2}", 0.8413447460685429, math.exp(3)),
        ("{distribution: q_normal, mu: 100, sigma: 10, q: 25}", 0.975, 125),
        ("{distribution: q_log_normal, mu: 2}", 0.5, 7),
        ("{distribution: beta}", 0.3, 0.3),
        ("{distribution: beta, a: 2}", 0.25, 0.5),  # the quantile is x^2
        ("{distribution: q_beta, a: 2, q: 0.25}", 0.3, 0.5),
    ],
)
def test_quantiles_of_the_normal_family(parameter, entry, quantile, value):
    found = value_of(parameter(entry), quantile)
    assert found == pytest.approx(value)
    assert isinstance(found, type(value))


@pytest.mark.parametrize(
    ("entry", "low", "high", "log"),
    [
        ("{distribution: uniform, min: 0, max: 2}", 0, 2, False),
        ("{min: 0.5, max: 2}", 0.5, 2, False),
        ("{distribution: log_uniform_values, min: 1e-4, max: 1e-2}", 1e-4, 1e-2, True),
        ("{distribution: log_uniform, min: -2, max: 3}", math.exp(-2), math.exp(3), True),
        ("{distribution: inv_log_uniform, min: -2, max: 3}", math.exp(-3), math.exp(2), True),
        ("{distribution: inv_log_uniform_values, min: 0.5, max: 8}", 0.5, 8, True),
    ],
)
def test_ranges_are_searched_between_their_bounds(parameter, entry, low, high, log):
    spec = parameter(entry)
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    assert low <= value_of(spec, choose(trial, "x", spec)) <= high
    distribution = trial.distributions["x"]
    assert (distribution.low, distribution.high, distribution.log) == (pytest.approx(low), pytest.approx(high), log)


def test_every_distribution_has_values_to_check(parameter):
    for kind, distribution in DISTRIBUTIONS.items():
        entry = {"value": 1, "values": [1, 2], "probabilities": [1, 0], "min": 1, "max": 2}
        spec = parameter(str({"distribution": kind} | {key: entry[key] for key in distribution.needed}))
        assert samples(spec)


def test_probabilities_are_obeyed(parameter):
    spec = parameter("{values: [a, null, b, c], probabilities: [0.5, 0.3, 0, 2e-1]}")
    counts = Counter(value_of(spec, (at + 0.5) / 1000) for at in range(1000))
    assert counts == {"a": 500, None: 300, "c": 200}
    assert value_of(spec, 0.0) == "a" and value_of(spec, 1.0) == "c"
    rare = parameter("{values: [null, generalized], probabilities: [0.999, 0.001]}")
    assert Counter(drawn(rare, 100))[None] > 95
    first = parameter("{values: [never, always], probabilities: [0, 1]}")
    assert set(drawn(first)) == {"always"}


def test_grids_count_lists_whole_numbers_and_steps(read):
    entries = {
        "discounting": {"distribution": "q_uniform", "min": 0.5, "max": 0.7, "q": 0.1},
        "h_dim": {"distribution": "q_uniform", "min": 8, "max": 24, "q": 8},
        "n_hidden": {"value": 2},
        "seed": {"distribution": "int_uniform", "min": 0, "max": 2},
        "use_ln": {"values": [True, False, True]},
    }
    parameters = read(entries, method="grid")["parameters"]
    expected = list(itertools.product([0.5, 0.6, 0.7], [8, 16, 24], [0, 1, 2], [True, False]))
    assert [tuple(chosen.values()) for chosen in grid(parameters)] == expected
    assert grid_size(parameters) == len(expected)
    study = optuna.create_study()
    study.enqueue_trial(next(itertools.islice(grid(parameters), 9, None)))
    found = suggest(study.ask(), parameters)
    assert found == {"discounting": 0.5, "h_dim": 16, "n_hidden": 2, "seed": 1, "use_ln": False}
    assert isinstance(found["h_dim"], int)


# Refusals: one line, status 2, nothing started. The smallest input of each kind, and others of it.

NAMES = [
    ("{value: 1}", {"entitiy": "me"}, "unknown key 'entitiy': choose from .*; did you mean 'entity'"),
    ("{value: 1}", {"paramters": {}}, "unknown key 'paramters': .* did you mean 'parameters'"),
    ("{value: 1}", {1: 2}, "unknown key '1'"),
    ("{value: 1}", {"early_terminate": {"type": "hyperband"}}, "early_terminate only works with W&B"),
    (
        "{value: 1}",
        {"metric": {"name": "x", "gaol": "maximize"}},
        "'gaol' of metric: .* did you mean 'goal'",
    ),
    ("{value: 1}", {"metric": {"name": "x", "impute": "best"}}, "metric: impute only works with W&B"),
    ("{valeu: 1}", {}, "unknown key 'valeu' of h_dim: .* did you mean 'value'"),
    ("{min: 1, max: 2, step: 3}", {}, "unknown key 'step' of h_dim"),
    ("{min: 1, max: 2, q: 1}", {}, "h_dim: q does not go with int_uniform"),
    ("{value: 1, values: [1]}", {}, "h_dim: values does not go with constant"),
    ("{value: 1, probabilities: [1]}", {}, "h_dim: probabilities does not go with constant"),
    (
        "{distribution: q_unifrom, min: 1, max: 2}",
        {},
        "'q_unifrom' of h_dim: .* did you mean 'q_uniform'",
    ),
    ("{distribution: [uniform], min: 1, max: 2}", {}, "unknown distribution"),
    ("{parameters: {a: {value: 1}}}", {}, "h_dim: nested parameters only work with W&B"),
    ("{values: [1, 2], probabilities: [0.5, 0.5]}", {"method": "bayes"}, "only work with method random, not bayes"),
    ("{values: [1, 2], probabilities: [0.5, 0.5]}", {"method": "grid"}, "only work with method random, not grid"),
    ("{value: 1}", {"parameters": {"h dim": {"value": 1}}}, "'h dim' is no flag's name"),
    ("{value: 1}", {"parameters": {"--h_dim": {"value": 1}}}, "'--h_dim' is no flag's name"),
    ("{value: 1}", {"parameters": {True: {"value": 1}}}, "True is no flag's name"),
    ("", {"parameters": {"h_dim": {"value": 1}, "h-dim": {"value": 2}}}, "h_dim and h-dim are the same flag"),
    ("{value: 1}", {"parameters": {"exp-name": {"values": ["a", "b"]}}}, "exp_name cannot be searched"),
    ("{value: 1}", {"project": "p", "parameters": {"project-name": {"value": "q"}}}, "are the same flag"),
    ("{value: 1}", {"parameters": {"total-env-steps": {"value": 9}}}, "total_env_steps .now num_timesteps"),
]
GRID = {"method": "grid", "run_cap": None}
VALUES = [
    ("{distribution: log_uniform_values, min: 0, max: 1.0}", {}, "h_dim: min 0 has no logarithm"),
    ("{distribution: q_log_uniform_values, min: -1, max: 1.0}", {}, "h_dim: min -1 has no logarithm"),
    ("{distribution: log_uniform, min: 1, max: 1000}", {}, "exponents of e, at most 690 .* log_uniform_values takes"),
    ("{min: 1.0e-3, max: 1.0e-5}", {}, "h_dim: min 0.001 is above max 1e-05; exchange them"),
    ("{min: 2, max: 1}", {}, "h_dim: min 2 is above max 1"),
    ("{values: []}", {}, r"h_dim: values \[\] must be a list with at least one value"),
    ("{values: 8}", {}, "h_dim: values 8 must be a list"),
    ("{values: [[1, 2]]}", {}, r"h_dim: \[1, 2\] is no flag's value"),
    ("{value: {a: 1}}", {}, "is no flag's value"),
    ("{values: [2026-11-29]}", {}, "is no flag's value"),
    ("{values: [1, true]}", {}, "h_dim: 1 and True are equal: keep one of them"),
    ("{values: [.nan]}", {}, "h_dim: nan is no finite number"),
    ('{value: "a\\0b"}', {}, "no word of a command holds a character of code 0"),
    ('{value: "\\ud800"}', {}, "it has no form in the encoding"),
    ("{distribution: int_uniform, min: 0.5, max: 2}", {}, "h_dim: min: 0.5 is no whole number"),
    ("{distribution: int_uniform, min: 1e0x, max: 2}", {}, "h_dim: min: '1e0x' is no number"),
    ("{min: 1, max: .inf}", {}, "h_dim: max: inf is no number"),
    ("{min: true, max: 2}", {}, "h_dim: min: True is no number"),
    ("{min: 1, max: [2]}", {}, r"h_dim: max: \[2\] is no number"),
    ("{min: 1}", {}, "h_dim: uniform needs min and max; missing: max"),
    ("{distribution: uniform}", {}, "missing: min, max"),
    ("{mu: 1}", {}, "h_dim needs value, values, or min and max, or a distribution"),
    ("{}", {}, "h_dim needs value"),
    ("8", {}, r"h_dim needs .* write h_dim: \{value: 8\}"),
    ("null", {}, "h_dim needs"),
    ("{distribution: q_uniform, min: 1, max: 2, q: 0}", {}, "h_dim: q 0 must be above 0"),
    ("{distribution: q_uniform, min: 9, max: 15, q: 8}", {}, "h_dim: no multiple of q 8 lies from 9 to 15"),
    ("{distribution: normal, sigma: -1}", {}, "h_dim: sigma -1 must be above 0"),
    ("{distribution: log_normal, mu: 1000}", {}, "out of range"),
    ("{values: [1, 2], probabilities: [0.5]}", {}, r"must be a list, one per value \(2\)"),
    ("{values: [1, 2], probabilities: [0.5, 0.4]}", {}, "these sum to 0.9"),
    ("{values: [1, 2], probabilities: [1.5, -0.5]}", {}, "must be at least 0"),
    ("{min: 0, max: 1.5}", {"method": "grid"}, "a grid needs a list of values, int_uniform or q_uniform, not uniform"),
    ("{min: 0, max: 1000000}", {"method": "grid"}, "1000001 values are too many for a grid"),
    ("{value: 1}", {"metric": "eval/episode_success"}, "has no goal; write it as in metric: {name: "),
    ("{value: 1}", {"metric": None}, "metric is missing"),
    ("{value: 1}", {"metric": {"goal": "maximize"}}, "metric needs a name"),
    ("{value: 1}", {"metric": {"name": ["x"]}}, "metric needs a name"),
    ("{value: 1}", {"metric": {"name": "x", "goal": "max"}}, "goal 'max' is none of minimize, maximize"),
    ("{value: 1}", {"metric": {"name": "x", "target": "high"}}, "metric: target: 'high' is no number"),
    ("{value: 1}", {"run_cap": 0}, "run_cap: 0 is no whole number from 1"),
    ("{value: 1}", {"run_cap": "two"}, "run_cap: 'two' is no number"),
    ("{value: 1}", {"run_cap": True}, "run_cap: True is no number"),
    ("{value: 1}", {"run_cap": None}, "how many runs"),
    ("", {"parameters": {"a": {"min": 1, "max": 999}, "b": {"min": 1, "max": 999}}} | GRID, "a grid of 998,001 runs"),
    ("{value: 1}", {"method": "guess"}, "method 'guess' is none of bayes, random, grid"),
    ("{value: 1}", {"method": ["bayes"]}, "is none of bayes, random, grid"),
    ("{value: 1}", {"parameters": None}, "it has no parameters"),
    ("{value: 1}", {"parameters": {}}, "it has no parameters"),
    ("{value: 1}", {"parameters": [1]}, "it has no parameters"),
    ("{value: 1}", {"program": "nothing.py"}, "program nothing.py: no such file"),
    ("{value: 1}", {"program": "x" * 300}, "no such file"),
    ("{value: 1}", {"program": ["training.py"]}, "is no text"),
    ("{value: 1}", {"command": "python training.py"}, "must be a list of words"),
    ("{value: 1}", {"command": []}, "must be a list of words"),
    ("{value: 1}", {"command": ["${program}", None, "${args}"]}, "None is no word"),
    ("{value: 1}", {"command": ["${env}", "${program}"]}, "nothing hands the parameters on"),
    ("{value: 1}", {"command": ["no-such-program", "${program}", "${args}"]}, "'no-such-program' cannot be started"),
    ("{value: 1}", {"command": ["bash -c python", "${program}", "${args}"]}, "cannot be started: begin with"),
    ("{value: 1}", {"command": ["WANDB_MODE=offline", "python", "${program}", "${args}"]}, "cannot be started"),
    ("{value: 1}", {"command": ["${args}"]}, "'..args.' cannot be started: begin with ..interpreter., or ..env. and"),
    ("{value: 1}", {"command": ["${program}", "${arg}"]}, "command: unknown macro 'arg': .* did you mean 'args'"),
    ("{value: 1}", {"command": ["${args}", "--file=${args_json_file}"]}, "only where it is a word of its own"),
    ("{value: 1}", {"command": ["${args}", "${envvar:NOT_SET_HERE}"]}, "the variable NOT_SET_HERE is not set"),
    ("{values: [1, 2]}", {"parameters": {"exp_name": {"values": ["a", "b"]}}}, "exp_name cannot be searched"),
    ("{value: 1}", {"project": "p", "parameters": {"project_name": {"value": "q"}}}, "are the same flag"),
    ("{value: 1}", {"project": "p", "command": ["${program}", "--project_name=q", "${args}"]}, "are the same flag"),
]
WORDS = [
    ("{value: 1}", {"name": "ant/lr sweep"}, "because of '/': e.g. ant-lr sweep"),
    ("{value: 1}", {"name": "a\nb"}, r"because of '\\n'"),
    ("{value: 1}", {"name": ".hidden"}, "no leading dot"),
    ("{value: 1}", {"name": "x" * 101}, "1 to 100 bytes"),
    ("{value: 1}", {"name": ["a"]}, "is no text"),
    ("{value: 1}", {"project": "a\\b"}, r"project .* cannot be a folder's name"),
]


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """refused(content or text, more words) -> the line that refuses it; nothing was started or left behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep_worker.Sweep, "work", lambda *_: pytest.fail("a worker was started"))

    def refuse(content, *words, file="mine.yml"):
        text = yaml.safe_dump(content) if isinstance(content, dict) else content
        Path(file).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        status = sweep.main([file, *words])
        printed = capsys.readouterr()
        assert (status, printed.out) == (REFUSED, "")
        (line,) = printed.err.splitlines()
        assert line.startswith("error: ") and not Path("runs").exists()
        return line

    return refuse


@pytest.mark.parametrize(("entry", "change", "said"), [*NAMES, *VALUES, *WORDS])
def test_sweep_files_that_are_refused(refused, entry, change, said):
    text = yaml.safe_dump(HEAD | {"parameters": {"h_dim": "ENTRY"}} | change, sort_keys=False)
    line = refused(text.replace("ENTRY", entry))
    assert re.search(said, line), line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot read mine.yml: ParserError"),
        ("just words", "it has no parameters"),
        ("", "it has no parameters"),
        ("- 1", "it has no parameters"),
        ("name: größe\n".encode("latin-1"), "cannot read mine.yml: ReaderError"),
        ("name: \x07", "cannot read mine.yml: ReaderError"),
        ("method: random\nmethod: grid", "method stands twice"),
        ("parameters: {h_dim: {value: 1}, h_dim: {value: 2}}", "h_dim stands twice"),
        ("parameters: {h_dim: {min: 1, min: 2, max: 3}}", "min stands twice"),
        ("a: &a [*a]", "unknown key 'a'"),
        ("parameters: !!python/name:os.system", "cannot read mine.yml: ConstructorError"),
        ("parameters: {h_dim: {value: !!bool maybe}}", "cannot read mine.yml: KeyError"),
        ("parameters: {h_dim: {value: 2026-99-99}}", "cannot read mine.yml: ValueError"),
        ("[" * 5000, "cannot read mine.yml: RecursionError"),
        ("--- 1\n--- 2", "cannot read mine.yml: ComposerError"),
    ],
)
def test_texts_that_are_no_sweep_file(refused, text, said):
    assert said in refused(text)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--runs", "0"], "--runs 0 is out of range: at least 1"),
        (["--here", "0"], "--here 0 is out of range: at least 1"),
        (["--workers", "-1"], "--workers -1 is out of range: at least 0"),
        (["--study", "a/b"], "--study 'a/b' cannot be a folder's name, because of '/': e.g. a-b"),
        (["--study", "a\tb"], "cannot be a folder's name"),
        (["--wrokers", "1"], "did you mean --workers"),
        (["--output_dir", "mine.yml"], "--output_dir: cannot make mine.yml/sweeps: Not a directory"),
        (["--storage", "nonsense", "--slurm"], "cannot open nonsense: Could not parse"),
        (["--storage", ""], "cannot open : Could not parse"),
        (["--storage", "nothing://there"], "cannot open nothing://there"),
    ],
)
def test_command_lines_that_are_refused(refused, tmp_path, words, said):
    (tmp_path / "program.py").touch()
    assert said in refused(HEAD | {"program": "program.py", "parameters": {"seed": {"value": 1}}}, *words)


def test_files_that_are_not_there(refused, tmp_path, capsys):
    for name in ("nothing.yml", ".", "a\0b"):
        assert sweep.main([name]) == REFUSED
        assert capsys.readouterr().err.startswith(f"error: cannot read {name[0]}")
    assert "--study: '.yml' cannot be a folder's name" in refused(
        HEAD | {"parameters": {"seed": {"values": [1]}}}, file=".yml"
    )


def test_files_of_any_writer_are_read(read):
    text = "# größer\nname: größe\nrun_cap: '3'\nmethod: random\nmetric: {name: x}\nparameters: {seed: {value: 1}}\n"
    for written in (text.encode(), b"\xef\xbb\xbf" + text.encode(), text.replace("\n", "\r\n").encode()):
        found = read(text=written)
        assert (found["name"], found["run_cap"]) == ("größe", 3)
    assert read(text=text.encode("utf-16"))["name"] == "größe"


def test_keys_that_yaml_merges_stand_once(read):
    entries = "parameters:\n  a: &a {min: 1, max: 2}\n  b: {<<: *a, max: 3}\n"
    found = read(text="run_cap: 1\nmethod: random\nmetric: {name: x}\n" + entries)["parameters"]
    assert (found["b"]["min"], found["b"]["max"]) == (1, 3)


def test_files_are_utf_8_in_any_locale(tmp_path):
    (tmp_path / "program.py").touch()
    content = HEAD | {"program": "program.py", "parameters": {"seed": {"value": 1}}}
    text = "# größer\n" + yaml.safe_dump(content)
    (tmp_path / "mine.yml").write_bytes(text.encode())
    (tmp_path / "named.yml").write_bytes((text + "name: größe").encode())
    plain = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, str(ROOT / "scripts" / "sweep.py")]
    options = {"cwd": tmp_path, "env": plain, "capture_output": True, "check": False}
    done = subprocess.run([*command, "mine.yml", "--slurm"], **options)
    assert (done.returncode, done.stdout) == (0, b"sbatch runs/sweeps/mine.sbatch\n")
    named = subprocess.run([*command, "named.yml", "--slurm"], **options)
    assert named.returncode == REFUSED
    assert named.stderr.startswith(b"error: named.yml: name 'gr\\xf6\\xdfe': it has no form in the encoding ascii")


# Commands.

SETTINGS = {"h_dim": 16, "use_ln": True, "render": False, "backend": None, "lr": 0.5}


@pytest.mark.parametrize(
    ("words", "expanded"),
    [
        (["${env}", "python", "${program}"], ["/usr/bin/env", "python", "/p.py"]),
        (["${interpreter}", "${program}"], [sys.executable, "/p.py"]),
        (
            ["--x", "8", "${args}"],
            ["--x", "8", *["--h_dim=16", "--use_ln=True", "--render=False", "--backend=None", "--lr=0.5"]],
        ),
        (["${args_no_boolean_flags}"], ["--h_dim=16", "--use_ln", "--backend=None", "--lr=0.5"]),
        (["${args_no_hyphens}"], ["h_dim=16", "use_ln=True", "render=False", "backend=None", "lr=0.5"]),
        (
            ["${args_no_equals}"],
            ["--h_dim", "16", "--use_ln", "True", "--render", "False", "--backend", "None", "--lr", "0.5"],
        ),
        (["${args_append_hydra}"], ["+h_dim=16", "+use_ln=True", "+render=False", "+backend=None", "+lr=0.5"]),
        (["${args_override_hydra}"], ["++h_dim=16", "++use_ln=True", "++render=False", "++backend=None", "++lr=0.5"]),
        (["${args_json}"], ['{"h_dim": 16, "use_ln": true, "render": false, "backend": null, "lr": 0.5}']),
        (["--file", "${args_json_file}"], ["--file", "/s.json"]),
        (["--out=${envvar:WHERE}/x", "${envvar:WHERE}"], ["--out=/there/x", "/there"]),
        (["bash", "-c", "echo ${HOME}"], ["bash", "-c", "echo ${HOME}"]),
    ],
)
def test_macros(monkeypatch, words, expanded):
    monkeypatch.setenv("WHERE", "/there")
    assert expand(words, "/p.py", SETTINGS, Path("/s.json")) == expanded


def ask(read, parameters, *more, **file):
    """What training.py says to a sweep file, in this process."""
    check_flags(read(parameters, **file), list(more), sweep_command.answers)


COMMAND = ["${env}", "python", "${program}", "--num_envs", "64", "--log_wandb", "${args_no_boolean_flags}"]


def test_a_sweep_file_of_the_published_form_runs(read):
    parameters = {
        "discounting": {"distribution": "uniform", "min": 0.9, "max": 0.98},
        "contrastive_loss_fn": {"distribution": "categorical", "values": ["infonce", "fb"]},
        "seed": {"distribution": "int_uniform", "min": 0, "max": 10},
        "env_name": {"distribution": "constant", "value": "reacher"},
    }
    found = read(parameters, command=COMMAND, program="training.py", method="bayes", entity="me", project="mine")
    check_flags(found, [], sweep_command.answers)
    assert found["command"] == COMMAND


def test_names_that_are_gone_are_named_with_their_successors(read):
    parameters = {
        "contrastive_loss_fn": {"values": ["fwd_infonce", "sym_infonce", "fb"]},
        "energy_fn": {"value": "norm"},
        "wandb_group": {"value": "x"},
    }
    command = ["python", "${program}", "crl", "--total_env_steps", "1000", "--project_name", "crl"]
    command += ["--train_step_multiplier=1", "--contrastive_loss_fn", "bwd_infonce", "${args}"]
    for program in ("main.py", "training.py"):
        with pytest.raises(ConfigError) as refusal:
            read(parameters, command=command, program=program)
        words = str(refusal.value)
        for gone, successor in {
            "total_env_steps": "num_timesteps",
            "train_step_multiplier": "multiplier_num_sgd_steps",
            "wandb_group": "group_name",
            "contrastive_loss_fn fwd_infonce": "infonce",
            "contrastive_loss_fn sym_infonce": "symmetric_infonce",
            "contrastive_loss_fn bwd_infonce": "infonce_backward",
            "energy_fn norm": "l2",
        }.items():
            assert f"{gone} (now {successor})" in words
        assert words.count("crl after ${program} (now --algorithm crl)") == 1
        assert ("program main.py (now training.py)" in words) == (program == "main.py")


def test_successors_are_flags_and_values_of_training(read):
    for flag in sweep_command.GONE_FLAGS.values():
        assert hasattr(parse_config([], REGISTRIES), flag)
    for flag, successors in sweep_command.GONE_VALUES.items():
        ask(read, {flag: {"values": list(successors.values())}})


@pytest.mark.parametrize(
    ("parameters", "file", "said"),
    [
        ({"h_dimm": {"value": 8}}, {}, "--h_dimm.*did you mean --h_dim"),
        slow({"h_dim": {"values": [8, "wide"]}}, {}, "^h_dim 'wide': .*--h_dim"),
        slow({"h_dim": {"values": [8, 0]}}, {}, "^h_dim 0: --h_dim 0 is out of range"),
        slow({"discounting": {"min": 0.5, "max": 1.5}}, {}, "^discounting 1.49: .*out of range"),
        slow({"h_dim": {"distribution": "q_uniform", "min": 0, "max": 8, "q": 8}}, {}, "^h_dim 0: "),
        slow(
            {"h_dim": {"distribution": "q_uniform", "min": 8, "max": 32, "q": 0.5}},
            {},
            "^h_dim 8.5: .* no whole number",
        ),
        slow({"h_dim": {"distribution": "q_normal", "mu": 64, "sigma": 8, "q": 0.5}}, {}, "no whole number"),
        slow({"h_dim": {"distribution": "normal", "mu": 64, "sigma": 8}}, {}, "no whole number"),
        slow({"l2_penalty": {"distribution": "normal"}}, {}, "^l2_penalty -1.64.*: .*out of range"),
        slow({"energy_fn": {"values": ["l2", "l3"]}}, {}, "^energy_fn 'l3': "),
        ({"fresh_goals": {"value": False}}, {"command": COMMAND}, "fresh_goals False.*hands on True: use .{args}"),
        slow({"render": {"values": [True, False]}}, {"command": COMMAND}, "^render False: .*render False"),
        slow({"num_envs": {"values": [64, 32]}}, {"command": [*COMMAND, "--num_envs", "64"]}, "^num_envs 32: "),
        ({"h_dim": {"value": 8}}, {"command": ["python", "${program}", "${args_no_hyphens}"]}, "h_dim=8"),
        slow({"log_wandb": {"value": True}}, {"project": "50%"}, "W&B allows no %"),
        ({"dry_run": {"value": True}}, {"command": ["python", "${program}", "--help", "${args}"]}, "does not train"),
    ],
)
def test_flags_that_training_refuses_or_is_not_told(read, parameters, file, said):
    with pytest.raises(ConfigError, match=said):
        ask(read, parameters, **file)


def test_values_that_go_with_some_of_the_others_are_none_of_a_sweeps_faults(read):
    ask(read, {"num_envs": {"values": [4, 512]}, "batch_size": {"values": [512, 256, 64]}})
    ask(
        read, {"num_timesteps": {"value": 10}}, "--num_timesteps", "100000000"
    )  # what stands after -- has the last word
    ask(read, {"discounting": {"min": 0.5, "max": 1.0}})  # 1 itself is never drawn


@pytest.mark.slow
def test_training_is_asked_before_anything_starts(refused):
    line = refused(HEAD | {"parameters": {"h_dimm": {"values": [8, 16]}}})
    assert "did you mean --h_dim?" in line


# Property tests: main, in this process, on files that are valid and on ones that are not.

names = st.sampled_from(["a", "h_dim", "use-ln", "x.y", "_z9"])
scalars = (
    st.none() | st.booleans() | st.integers(-99, 99) | st.floats(-9, 9) | st.text("abc é0.%?#'\"$ {}-", max_size=5)
)
lists = st.lists(scalars, min_size=1, max_size=4, unique_by=lambda value: value)
reals = st.floats(-100, 100).map(lambda number: round(number, 3))


def entry(kind, **numbers):
    return {"distribution": kind} | numbers


@st.composite
def ranges(draw, kind, bound, with_q=False):
    low, high = sorted([draw(bound), draw(bound)])
    step = {"q": draw(st.sampled_from([high - low, 1 if high - low >= 1 else high - low, "1e-3"]))} if with_q else {}
    if with_q and (high == low or step["q"] == 0):
        high, step = low + 2, {}
    return entry(kind, min=low, max=high, **step)


@st.composite
def weighted(draw):
    values = draw(lists)
    shares = [draw(st.integers(0, 9)) for _ in values]
    shares[0] += 1
    return {"values": values, "probabilities": [share / sum(shares) for share in shares]}


positive = st.floats(1e-3, 100)
constants = scalars.map(lambda value: {"value": value})
listed = lists.map(lambda values: {"values": values})
counted = st.one_of(constants, listed, ranges("int_uniform", st.integers(-9, 9)))
searched = st.one_of(
    *(constants, listed, weighted(), ranges("int_uniform", st.integers(-999, 999)), ranges("uniform", reals)),
    *(ranges(kind, positive) for kind in ("log_uniform_values", "inv_log_uniform_values")),
    *(ranges(kind, reals) for kind in ("log_uniform", "inv_log_uniform")),
    *(ranges(kind, st.integers(1, 99), with_q=True) for kind in ("q_uniform", "q_log_uniform_values")),
    *(st.builds(entry, st.just(kind), mu=reals, sigma=positive) for kind in ("normal", "q_normal")),
    st.builds(entry, st.sampled_from(["log_normal", "q_log_normal"]), mu=st.floats(-9, 9), sigma=st.floats(0.1, 9)),
    st.builds(entry, st.sampled_from(["beta", "q_beta"]), a=positive, b=positive),
)
metrics = st.builds(
    lambda more: {"name": "score"} | more,
    st.fixed_dictionaries({}, optional={"goal": st.sampled_from(["minimize", "maximize"]), "target": reals}),
)
further = {
    "name": st.sampled_from(["plain", "lr? 50% #2", "{x} 'y'", "größe", 2026]),
    "description": st.text(max_size=9),
    "entity": st.just("me"),
    "project": st.sampled_from(["mine", "a b"]),
    "command": st.sampled_from(
        [
            ["${env}", "${interpreter}", "${program}", "${args}"],
            ["python", "${program}", "--constant", 8, "${args_no_boolean_flags}", "${args_json}"],
            ["${interpreter}", "${program}", "${args_no_hyphens}", "${args_json_file}", "${envvar:PATH}"],
        ]
    ),
}


@st.composite
def sweep_files(draw):
    method = draw(st.sampled_from(["random", "grid", "bayes"]))
    entries = {"grid": counted, "random": searched}.get(
        method, searched.filter(lambda spec: "probabilities" not in spec)
    )
    content = {"method": method, "metric": draw(metrics), "run_cap": draw(st.sampled_from([1, 2, "2", 2.0]))}
    content["parameters"] = draw(st.dictionaries(names, entries, min_size=1, max_size=4))
    return content | draw(st.fixed_dictionaries({}, optional=further))


def planned(text):
    """status, stderr's lines and the commands of `scripts/sweep.py FILE -- --dry_run` on a text, without its runs."""
    commands = []

    def attempt(self, trial, command, log, device):
        commands.append(command)
        return 0, ""

    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sweep_worker.Sweep, "_attempt", attempt)
        patch.setattr(sweep, "visible_gpus", lambda: [])
        Path("mine.yml").write_bytes(text)
        status = sweep.main(["mine.yml", "--", "--dry_run"])
    return status, err.getvalue().splitlines(), commands


@pytest.fixture
def desk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("program.py").touch()


def written(content):
    return yaml.safe_dump(content | {"program": "program.py"}, allow_unicode=True, sort_keys=False).encode()


def check_valid(content):
    status, errors, commands = planned(written(content))
    assert (status, errors) == (0, []), content
    runs = int(float(content["run_cap"]))
    assert len(commands) == min(runs, grid_size_of(content))
    for command in commands:
        assert all(isinstance(word, str) for word in command)
        for name, spec in content["parameters"].items():
            words = [word for word in command if word.lstrip("-").startswith(f"{name}=")]
            for word in words[:1]:
                check_drawn(spec, word.partition("=")[2])


def grid_size_of(content):
    if content["method"] != "grid":
        return math.inf
    sizes = [
        len(set(spec["values"])) if "values" in spec else spec["max"] - spec["min"] + 1
        for spec in content["parameters"].values()
        if "value" not in spec
    ]
    return math.prod(sizes)


def check_drawn(spec, text):
    if "value" in spec or "values" in spec:
        assert text in map(str, spec.get("values", [spec.get("value")]))
    elif "min" in spec and "log_uniform" not in spec["distribution"].replace("log_uniform_values", ""):
        assert spec["min"] <= float(text) <= spec["max"]
    if spec.get("distribution") in ("int_uniform", "q_normal") or isinstance(spec.get("q"), int):
        assert str(int(text)) == text
        assert int(text) % spec.get("q", 1) == 0


BAD_ENTRIES = [
    *({"valeu": 1}, {}, 8, None, [1], "x", {"values": []}, {"values": {}}, {"value": [1]}, {"value": 1, "min": 0}),
    *({"min": 2, "max": 1}, {"min": "x", "max": 1}, {"min": 0}, {"min": True, "max": 2}, {"min": 0, "max": math.nan}),
    *({"values": [1, 2], "probabilities": [2, -1]}, {"values": [1], "probabilities": []}, {"values": [1, 1.0, True]}),
    *(entry("log_uniform_values", min=0, max=1), entry("int_uniform", min=0.5, max=2), entry("unifrom", min=0, max=1)),
    *(entry("q_uniform", min=9, max=15, q=8), entry("q_uniform", min=0, max=1, q=-1), entry("normal", sigma=0)),
    *(entry("log_uniform", min=0, max=1e5), entry("constant"), entry(None), {"parameters": {}}, {"value": math.inf}),
]
BAD_TOPS = {
    "method": ["guess", 3, None, []],
    "metric": ["score", None, {}, [], {"name": 3}, {"name": "x", "goal": "up"}, {"name": "x", "target": []}],
    "run_cap": [0, -1, "many", 1.5, True, [], math.inf],
    "parameters": [None, {}, [], "x", {"a b": {"value": 1}}, {1: {"value": 1}}],
    "name": ["a/b", "..", [], "\n", {}, True, "x" * 200],
    "project": ["a\\b", [], "/"],
    "entity": [[], {}],
    "command": ["python", [], [None, "${args}"], ["${program}"], ["${args}", "${agrs}"], ["${args}", "x${args}"]],
    "nmae": ["x"],
    "early_terminate": [{}],
    5: [1],
}


@st.composite
def mutated(draw):
    """A sweep file with one fault."""
    content = copy.deepcopy(draw(sweep_files()))
    where = draw(st.sampled_from(["entry", "top", "bytes", "twice"]))
    if where == "entry":
        content["parameters"][draw(names)] = draw(st.sampled_from(BAD_ENTRIES))
    elif where == "top":
        key = draw(st.sampled_from(list(BAD_TOPS)))
        content[key] = draw(st.sampled_from(BAD_TOPS[key]))
    text = written(content)
    if where == "bytes":
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.sampled_from([b"\xff", b"\x00", b"\x07"])) + text[at:]
    if where == "twice":
        text += b"method: random\n"
    return text


def check_refused(text):
    status, errors, commands = planned(text)
    assert (status, commands) == (REFUSED, []), text
    assert len(errors) == 1 and errors[0].startswith("error: ") and "Traceback" not in errors[0], errors


@st.composite
def scrambled(draw):
    """A sweep file with a few characters lost, doubled or changed: it may be one or not."""
    text = written(draw(sweep_files())).decode()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text)))
        text = (
            text[:at]
            + draw(st.text("aq:-[]{}&*!|>%@`'\"#, \n\t01.eé", max_size=2))
            + text[at + draw(st.integers(0, 2)) :]
        )
    return text.encode()


def check_either(text):
    status, errors, commands = planned(text)
    assert status in (0, REFUSED), (text, errors)
    assert (len(errors), bool(commands)) == ((0, True) if status == 0 else (1, False)), (text, errors)


few = settings(max_examples=settings.default.max_examples // 8)  # each takes as long as eight of the others


@few
@given(sweep_files())
def test_valid_files_run_to_a_plan(desk, content):
    check_valid(content)


@few
@given(mutated())
def test_files_with_a_fault_are_refused_in_one_line(desk, text):
    check_refused(text)


@few
@given(scrambled())
def test_no_text_ends_in_a_traceback(desk, text):
    check_either(text)
