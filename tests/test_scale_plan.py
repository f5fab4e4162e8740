"""The plan on paper."""

import dataclasses
import json

import pytest

from envs import make_env
from scripts import scale_plan
from src.algorithms import ALGORITHMS
from src.algorithms.crl import CRLConfig
from src.plan import measure, memory_plan
from utils import derive_schedule

MEASURED = {"flags": dataclasses.asdict(CRLConfig(num_envs=256)), "env steps/s, env alone": 1e5, "update ms": 2.0}


def test_parts_divide_among_devices_and_the_exchange_appears():
    one, four = (scale_plan.plan(MEASURED, 1024, devices, 1e9) for devices in (1, 4))
    assert one["environments"] == 10 and four["environments"] == 2.5
    assert one["updates"] == pytest.approx(1e6 / 15.89 * 2e-3, rel=1e-3)
    assert four["updates"] == pytest.approx(one["updates"] / 4)
    assert one["exchange"] == 0 < four["exchange"]
    assert scale_plan.plan(MEASURED, 1024, 4, 2e9)["exchange"] == four["exchange"] / 2
    config = CRLConfig(num_envs=1024)
    costs = measure(config, make_env("reacher"))
    assert one["GiB"] == sum(memory_plan(config, derive_schedule(config), costs).values()) / 2**30


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_can_be_planned(name):
    config = ALGORITHMS[name].config(num_envs=256)
    measured = MEASURED | {"flags": dataclasses.asdict(config)}
    parts = scale_plan.plan(measured, 1024, 4, 1e9)
    costs = measure(config, make_env("reacher"))
    batch = config.batch_size * (2 * costs.sizes.state + costs.sizes.action + 2 * getattr(config, "repr_dim", 0))
    schedule = derive_schedule(dataclasses.replace(config, num_envs=1024))
    updates = 1e6 * schedule.updates_per_training_step / schedule.env_steps_per_training_step
    assert parts["exchange"] == pytest.approx(updates * 8 * (costs.parameters + batch) / 1e9)


def test_the_table_names_the_longest_part(tmp_path, capsys):
    measured = tmp_path / "measured.json"
    measured.write_text(json.dumps([MEASURED]))
    command = [str(measured), "--envs", "1024", "--devices", "1", "64", "--gigabytes_per_second", "0.1"]
    assert scale_plan.main(command) == 0
    *_, one, many = capsys.readouterr().out.splitlines()
    assert one.startswith("| 1,024 | 1 |") and one.endswith("| updates |")
    assert many.startswith("| 1,024 | 64 |") and many.endswith("| exchange |")


@pytest.mark.parametrize("content", [None, "no JSON", "[]", "{}", "3"])
def test_a_file_that_is_none_of_the_benchmark_is_refused_in_one_line(content, tmp_path, capsys):
    measured = tmp_path / "measured.json"
    if content is not None:
        measured.write_text(content)
    assert scale_plan.main([str(measured)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {measured} is no file of scripts/benchmark.py: ") and said.count("\n") == 1


def test_numbers_below_one_are_refused(tmp_path, capsys):
    measured = tmp_path / "measured.json"
    measured.write_text(json.dumps(MEASURED))
    assert scale_plan.main([str(measured), "--envs", "0"]) == 2
    assert "are above 0" in capsys.readouterr().err
