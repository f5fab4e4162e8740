"""A plan on paper: memory and time of one seed on many devices, from the memory plan and from measured parts.

    python scripts/scale_plan.py results/benchmark/ant_cpu.json
    python scripts/scale_plan.py results/benchmark/ant_cpu.json --envs 1024 65536 --devices 1 8

Prints a Markdown table. The parts are what `scripts/benchmark.py` measured on one device. The plan takes for granted
that environments and updates divide evenly among the devices, and that a sum over devices sends twice its bytes at the
given rate; it knows of no latency. So it says where the limits lie, not what will be reached.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from envs import make_env
from src.algorithms import ALGORITHMS
from src.output import run_command
from src.plan import measure, memory_plan
from utils import REFUSED, config_of, derive_schedule


def plan(measured: dict, num_envs: int, num_devices: int, bytes_per_second: float) -> dict[str, float]:
    """GiB on each device, and seconds of each part of a million env steps."""
    flags = measured["flags"] | {"num_envs": num_envs, "num_seeds": 1}
    config = config_of(flags, ALGORITHMS, "the measured configuration")
    schedule = derive_schedule(config)
    costs = measure(config, make_env(config.env_name, config.backend))
    memory = sum(memory_plan(config, schedule, costs, (1, num_devices)).values())
    updates = 1e6 * schedule.updates_per_training_step / schedule.env_steps_per_training_step
    # Gradients are summed; the rows of the batch come from whoever holds them; every device sees all representations.
    sizes, representations = costs.sizes, 2 * getattr(config, "repr_dim", 0)
    rows = config.batch_size * (2 * sizes.state + sizes.action + representations)
    exchanged = 2 * 4 * (costs.parameters + rows) * (num_devices > 1)
    return {
        "GiB": memory / 2**30,
        "environments": 1e6 / measured["env steps/s, env alone"] / num_devices,
        "updates": updates * measured["update ms"] / 1e3 / num_devices,
        "exchange": updates * exchanged / bytes_per_second,
    }


def table(measured: dict, envs: list[int], devices: list[int], bytes_per_second: float) -> str:
    """The plans as Markdown; the longest part is the limit."""
    lines = [
        "| envs | devices | memory a device | environments | updates | exchange | limit |",
        "|---:|---:|---:|---:|---:|---:|---|",
    ]
    for num_envs in envs:
        for num_devices in devices:
            parts = plan(measured, num_envs, num_devices, bytes_per_second)
            memory = parts.pop("GiB")
            seconds = " | ".join(f"{value:,.1f} s" for value in parts.values())
            limit = max(parts, key=parts.get)
            lines.append(f"| {num_envs:,} | {num_devices} | {memory:,.2f} GiB | {seconds} | {limit} |")
    return "\n".join(lines)


def main(args: list[str]) -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measured", type=Path, help="JSON file of scripts/benchmark.py")
    parser.add_argument("--envs", type=int, nargs="+", default=[1024, 4096, 16_384, 65_536])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--gigabytes_per_second", type=float, default=10.0, help="between two devices")
    options = parser.parse_args(args)
    try:
        measured = json.loads(options.measured.read_text())
        measured = measured[0] if isinstance(measured, list) else measured  # of a sweep, the base
        measured = {name: measured[name] for name in ("flags", "env steps/s, env alone", "update ms")}
        config_of(measured["flags"], ALGORITHMS, "flags")
    except (OSError, ValueError, LookupError, TypeError) as error:
        print(f"error: {options.measured} is no file of scripts/benchmark.py: {error}", file=sys.stderr)
        return REFUSED
    if min(*options.envs, *options.devices) < 1 or options.gigabytes_per_second <= 0:
        print("error: --envs, --devices and --gigabytes_per_second are above 0", file=sys.stderr)
        return REFUSED
    print(table(measured, options.envs, options.devices, 1e9 * options.gigabytes_per_second))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
