"""What a run is made of: `Config` (the command line), `derive_schedule` (all step arithmetic), run folders, CSV."""

import contextlib
import csv
import dataclasses
import io
import itertools
import json
import math
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Protocol

import tyro

from envs import ENVS
from envs.base import unknown
from envs.physics import BACKENDS
from src.command_line import ConfigError, parse
from src.losses import CONTRASTIVE_LOSSES, ENERGY_FNS, EXPLORATION_SIGNS
from src.networks import NETWORKS

WANDB_MODES = ("online", "offline")


def _names(registry: Any) -> Any:
    return tyro.conf.arg(metavar="{" + ",".join(registry) + "}")


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a goal-reaching agent with contrastive RL, the whole loop on the accelerator.

    Every flag has a default; `python training.py --env_name ant` is a complete command.
    """

    exp_name: str = "test"
    """Name of the run; first part of its folder's name."""
    group_name: str = "test"
    """Folder and W&B group that collects runs to compare."""
    project_name: str = "crl"
    """Folder and W&B project that collects groups."""
    output_dir: str = "runs"
    """Where run folders are made: OUTPUT_DIR/PROJECT/GROUP/EXP_ENV_sSEED_TIME/."""
    env_name: Annotated[str, _names(ENVS)] = "reacher"
    """Environment to train on."""
    eval_env: Annotated[str | None, _names(ENVS)] = None
    """Environment to evaluate on, of the same sizes; None is the training environment."""
    backend: Annotated[str | None, _names(BACKENDS)] = None
    """Physics backend; None is the environment's own."""
    use_dense_reward: bool = False
    """Report the environment's shaped reward instead of the sparse one. CRL itself learns from neither."""
    fresh_goals: bool = True
    """Draw start and goal anew at every episode. Off: each env repeats its first ones for the whole run."""
    seed: int = 0
    """Where all randomness of the run comes from."""
    num_seeds: int = 1
    """Seeds `seed`, `seed` + 1, ... trained together in one program, each a run of its own with its own folder."""
    seed_batch: int = 0
    """Seeds trained together; the others wait for their turn. 0: as many as fit into the memory by the plan."""
    num_timesteps: int = 10_000_000
    """Env steps over all envs, prefill and action repeats included; a run never stops short of it."""
    num_evals: int = 50
    """Evaluations, spread evenly; with more than one, the first is of the untrained policy."""
    num_eval_envs: int = 128
    """Episodes per evaluation, with the same starts and goals in every evaluation of every run."""
    deterministic_eval: bool = False
    """Evaluate tanh(mean) instead of sampled actions."""
    num_envs: int = 512
    """Environments stepped in parallel."""
    episode_length: int = 1000
    """Time limit of an episode, in env steps."""
    action_repeat: int = 1
    """Env steps that each action is held for."""
    unroll_length: int = 62
    """Actions collected in every env between two rounds of updates."""
    batch_size: int = 256
    """Pairs per update; each pair's goal is a negative for all others."""
    multiplier_num_sgd_steps: int = 1
    """Scales the updates per training step, num_envs * (episode_length - 1) / batch_size."""
    min_replay_size: int = 1000
    """Rows per env to collect before learning starts."""
    max_replay_size: int = 10_000
    """Rows per env that the replay holds (rounded up to a multiple of unroll_length)."""
    discounting: float = 0.99
    """Goals lie k steps ahead with probability proportional to discounting^k; inside (0, 1)."""
    policy_lr: float = 6e-4
    """Adam's rate for the actor."""
    critic_lr: float = 3e-4
    """Adam's rate for both encoders."""
    alpha_lr: float = 3e-4
    """Adam's rate for the entropy temperature."""
    contrastive_loss_fn: Annotated[str, _names(CONTRASTIVE_LOSSES)] = "symmetric_infonce"
    """Loss of the critic."""
    energy_fn: Annotated[str, _names(ENERGY_FNS)] = "l2"
    """Energy between the representations of a state-action and a goal."""
    logsumexp_penalty: float = 0.1
    """Weight of mean(logsumexp^2) in the critic's loss."""
    l2_penalty: float = 0.0
    """Weight of the mean squared representations in the critic's loss."""
    exploration_coef: float = 0.0
    """Weight of the actor's bonus on the norm of phi; energies l2 and dot only."""
    random_goals: float = 0.0
    """Share of the actor's rows that train on another row's goal."""
    no_resubs: bool = False
    """Take the positive out of every logsumexp."""
    use_c_target: bool = False
    """Scale the logits by a learned scalar."""
    disable_entropy_actor: bool = False
    """Drop the entropy term from the actor's loss."""
    network: Annotated[str, _names(NETWORKS)] = "mlp"
    """Trunk of all three networks."""
    h_dim: int = 256
    """Width of the hidden layers."""
    n_hidden: int = 2
    """Hidden layers."""
    repr_dim: int = 64
    """Size of the representations."""
    actor_n_hidden: int = 0
    """Hidden layers of the actor; 0: `n_hidden`."""
    critic_n_hidden: int = 0
    """Hidden layers of each encoder of the critic; 0: `n_hidden`."""
    actor_h_dim: int = 0
    """Width of the actor; 0: `h_dim`."""
    critic_h_dim: int = 0
    """Width of the critic; 0: `h_dim`."""
    algorithm: str = "crl"
    """Algorithm."""
    action_chunk: int = 1
    """Actions that the policy plans at once and carries out without looking."""
    num_critics: int = 1
    """Critics."""
    critic: str = "two_encoders"
    """Form of the critic."""
    goal_rule: str = "geometric"
    """Goal rule."""
    goal_proposal: str = "env"
    """Goal proposal."""
    use_ln: bool = False
    """LayerNorm in actor and both encoders."""
    normalize_observations: bool = False
    """Standardise states and goals by running moments, in actor and both encoders."""
    render: bool = True
    """Leave a video and pictures of the final policy in the run folder."""
    video_every: int = 0
    """Evaluations between videos, besides the one at the end; 0 is none. Each keeps training waiting, and says how
    long."""
    log_wandb: bool = False
    """Also log to Weights & Biases; without an account or network, to its offline folder."""
    wandb_mode: Annotated[str, _names(WANDB_MODES)] = "online"
    """Whether Weights & Biases is asked at all, or only its offline folder written."""
    log_tensorboard: bool = False
    """Also log to TensorBoard's event files, in the run folder."""
    num_devices: int = 0
    """Devices to use, 0 for all: the seeds are spread over them, and the envs and the batch of a seed over what each
    seed has."""
    coordinator_address: str | None = None
    """HOST:PORT of the first of several processes that train one run together, the same for all of them. `auto` finds
    the processes by the variables of SLURM and other launchers."""
    num_processes: int = 1
    """Processes that train together, with `--coordinator_address HOST:PORT`."""
    process_id: int = 0
    """Number of this process, from 0. Process 0 logs and saves."""
    compilation_cache: bool = True
    """Keep compiled programs for the next start."""
    resume: str | None = None
    """Go on from the newest checkpoint of RUN_DIR (or from one of RUN_DIR/checkpoints/). A bare `--resume` takes the
    newest run of the same names, env and seed, and starts anew if there is none."""
    checkpoint_every: float = 0.0
    """Minutes between checkpoints, besides the one at every evaluation; 0 is none."""
    checkpoint_replay: bool = True
    """Keep the replay in checkpoints, most of their size. Off: a resumed run refills it, so its numbers differ."""
    keep_policies: int = 0
    """Policies of the newest evaluations to keep in policies/, besides the last and the best one."""
    dry_run: bool = False
    """Print the plan and stop."""


NEWEST = "newest"  # what a bare --resume stands for
AUTO = "auto"  # the --coordinator_address that the cluster's own variables stand for

# Command line.


def parse_config(args: list[str]) -> Config:
    """Reads the command line into a checked `Config`.

    Raises:
      ConfigError: an unknown flag, a value of the wrong type or out of range.
      SystemExit: after --help.
    """
    bare = [arg == "--resume" and (args + ["--"])[at + 1].startswith("--") for at, arg in enumerate(args)]
    args = [f"--resume={NEWEST}" if alone else arg for arg, alone in zip(args, bare, strict=True)]
    config = parse(Config, args, prog="training.py")
    check_config(config)
    return config


def command_line(config: Config) -> str:
    """The command that trains `config`."""
    words = ["python", "training.py"]
    for field in dataclasses.fields(Config):
        value = getattr(config, field.name)
        if isinstance(value, bool) and value != field.default:
            words.append(f"--{field.name}" if value else f"--no_{field.name}")
        elif value != field.default:
            words += [f"--{field.name}={value}"] if str(value).startswith("-") else [f"--{field.name}", str(value)]
    return shlex.join(words)


def check_config(config: Config) -> None:
    """Checks every flag's range.

    Raises:
      ConfigError: the first rule that does not hold, with the numbers and the nearest legal value.
    """
    registries = {
        "env_name": ("env", ENVS),
        "eval_env": ("env", ENVS),
        "backend": ("backend", BACKENDS),
        "contrastive_loss_fn": ("contrastive loss", CONTRASTIVE_LOSSES),
        "energy_fn": ("energy", ENERGY_FNS),
        "network": ("network", NETWORKS),
        "wandb_mode": ("W&B mode", WANDB_MODES),
    }
    for flag, (kind, registry) in registries.items():
        name = getattr(config, flag)
        if name is not None and name not in registry:
            raise ConfigError(f"--{flag}: {unknown(kind, name, registry)}")
    for flag in ("exp_name", "group_name", "project_name"):
        _require_name(flag, getattr(config, flag))
    _check_ranges(config)
    _check_combinations(config)
    _check_processes(config)


def _require_name(flag: str, name: str) -> None:
    if not name or name.startswith(".") or any(sign in name for sign in "/\\\0\n") or len(name) > 100:
        raise ConfigError(
            f"--{flag} {name!r} cannot be part of a folder's name: use 1 to 100 signs, no slash, no leading dot"
        )


# The least legal value of each number; a learning rate is above its 0, everything else may equal its bound.
_LEAST = {
    **dict.fromkeys(
        ("num_seeds", "num_timesteps", "num_evals", "num_eval_envs", "num_envs", "action_repeat", "unroll_length"), 1
    ),
    **dict.fromkeys(("multiplier_num_sgd_steps", "h_dim", "n_hidden", "repr_dim"), 1),
    **dict.fromkeys(("batch_size", "episode_length", "min_replay_size"), 2),
    "max_replay_size": 3,
    **dict.fromkeys(("checkpoint_every", "keep_policies", "num_devices", "process_id", "seed_batch", "video_every"), 0),
    "num_processes": 1,
    **dict.fromkeys(("seed", "logsumexp_penalty", "l2_penalty", "policy_lr", "critic_lr", "alpha_lr"), 0),
}

# The greatest legal value where it is not the greatest int32: beyond it, lists of that length would fill the memory.
_MOST = {"num_timesteps": 2**53, "num_evals": 100_000, "num_seeds": 1000, "n_hidden": 1000}


def _check_ranges(config: Config) -> None:
    for flag, least in _LEAST.items():
        value = getattr(config, flag)
        if not least <= value < 3e38 or (flag.endswith("_lr") and value == 0):
            rule = "above 0, e.g. 3e-4" if flag.endswith("_lr") else f"finite and at least {least}"
            raise ConfigError(f"--{flag} {value} is out of range: it must be {rule}")
        most = _MOST.get(flag, 2**31 - 1)
        if value > most and isinstance(value, int):
            raise ConfigError(f"--{flag} {value} is out of range: it must be at most {most}")
    if not 0 < config.discounting < 1:
        raise ConfigError(f"--discounting {config.discounting} is out of range: it lies inside (0, 1), e.g. 0.99")
    if not 0 <= config.random_goals <= 1:
        raise ConfigError(f"--random_goals {config.random_goals} is out of range: a share lies in [0, 1]")
    if not math.isfinite(config.exploration_coef):
        raise ConfigError(f"--exploration_coef {config.exploration_coef} is out of range: it must be finite")


def _check_combinations(config: Config) -> None:
    c = config
    if c.exploration_coef and c.energy_fn not in EXPLORATION_SIGNS:
        raise ConfigError(f"--exploration_coef needs --energy_fn {' or '.join(EXPLORATION_SIGNS)}, not {c.energy_fn}")
    if c.energy_fn.startswith("mrn") and c.repr_dim % 2:
        raise ConfigError(
            f"--energy_fn {c.energy_fn} splits the representation in half: --repr_dim {c.repr_dim} must be even, "
            f"e.g. {c.repr_dim + 1}"
        )
    if c.action_repeat * 2 > c.episode_length:
        raise ConfigError(
            f"--action_repeat {c.action_repeat} leaves an episode of {c.episode_length} env steps fewer than two "
            f"actions: at most {c.episode_length // 2}"
        )
    if c.min_replay_size > c.max_replay_size:
        raise ConfigError(
            f"--min_replay_size {c.min_replay_size} is above --max_replay_size {c.max_replay_size}: at most "
            f"{c.max_replay_size}"
        )
    if c.unroll_length > c.max_replay_size:
        raise ConfigError(
            f"--unroll_length {c.unroll_length} is longer than the replay, --max_replay_size {c.max_replay_size}: at "
            f"most {c.max_replay_size}"
        )
    collected, drawn = c.num_envs * c.unroll_length, c.multiplier_num_sgd_steps * c.num_envs * (c.episode_length - 1)
    if c.batch_size > min(collected, drawn):
        raise ConfigError(
            f"--batch_size {c.batch_size} is larger than a training step's data: num_envs {c.num_envs} * "
            f"unroll_length {c.unroll_length} = {collected} rows, num_envs * (episode_length - 1) = {drawn} to draw; "
            + (f"at most {min(collected, drawn)}" if min(collected, drawn) > 1 else "raise --num_envs to 2")
        )
    # The ring's time index counts to twice its length, hence the 2.
    if max(c.num_envs, 2) * (c.max_replay_size + c.unroll_length) >= 2**31:
        rows = 2**31 // max(c.num_envs, 2) - c.unroll_length - 1
        fits = f"--max_replay_size {rows}" if rows >= max(c.min_replay_size, c.unroll_length, 3) else ""
        raise ConfigError(
            f"--num_envs {c.num_envs} * --max_replay_size {c.max_replay_size} rows are too many to number with 31 "
            f"bits: at most {fits or f'--num_envs {(2**31 - 1) // (c.max_replay_size + c.unroll_length)}'}"
        )
    if c.seed + c.num_seeds > 2**31:
        raise ConfigError(
            f"--seed {c.seed} and the --num_seeds {c.num_seeds} after it pass 2^31: at most {2**31 - c.num_seeds}"
        )
    schedule = derive_schedule(c)
    if max(schedule.eval_at) >= 2**31 or schedule.updates_per_training_step * c.batch_size >= 2**31:
        raise ConfigError(
            f"{max(schedule.eval_at)} training steps of {schedule.updates_per_training_step} updates of {c.batch_size} "
            f"pairs are too many to number with 31 bits: fewer --num_timesteps or --multiplier_num_sgd_steps, or a "
            f"longer --unroll_length"
        )
    if c.num_timesteps < schedule.prefill_env_steps:
        raise ConfigError(
            f"--num_timesteps {c.num_timesteps} is below the prefill of {schedule.prefill_env_steps} env steps "
            f"(min_replay_size {c.min_replay_size} rows in {c.num_envs} envs, in unrolls of {c.unroll_length}): at "
            f"least {schedule.prefill_env_steps}, or a smaller --min_replay_size"
        )


def _check_processes(config: Config) -> None:
    c = config
    if c.coordinator_address in (None, AUTO) and (c.num_processes > 1 or c.process_id):
        raise ConfigError(
            f"--num_processes {c.num_processes} and --process_id {c.process_id} need --coordinator_address HOST:PORT, "
            f"not {c.coordinator_address}"
        )
    if c.process_id >= c.num_processes:
        raise ConfigError(
            f"--process_id {c.process_id} is out of range: with --num_processes {c.num_processes} at most "
            f"{c.num_processes - 1}"
        )
    if c.coordinator_address not in (None, AUTO):
        address = re.fullmatch(r".+:(\d+)", c.coordinator_address)
        if address is None or int(address[1]) > 65535:
            raise ConfigError(
                f"--coordinator_address {c.coordinator_address!r} is neither HOST:PORT (a port up to 65535) nor {AUTO}"
            )


# Schedule.


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Every number of steps in a run, derived from a `Config`.

    Attributes:
      env_steps_per_training_step: env steps of one unroll over all envs, action repeats included.
      updates_per_training_step: gradient steps after each unroll.
      prefill_steps: unrolls before learning starts.
      training_steps: unrolls followed by updates.
      epoch_lengths: training steps between evaluations; they differ by one at most.
      first_evaluation: whether the untrained policy is evaluated.
      replay_rows: rows per env of the ring, a multiple of the unroll.
    """

    env_steps_per_training_step: int
    updates_per_training_step: int
    prefill_steps: int
    training_steps: int
    epoch_lengths: tuple[int, ...]
    first_evaluation: bool
    replay_rows: int

    @property
    def eval_at(self) -> tuple[int, ...]:
        """Training steps done, the prefill's included, at each evaluation."""
        ends = [self.prefill_steps + end for end in itertools.accumulate(self.epoch_lengths)]
        return (0, *ends) if self.first_evaluation else tuple(ends)

    @property
    def prefill_env_steps(self) -> int:
        return self.prefill_steps * self.env_steps_per_training_step

    @property
    def total_env_steps(self) -> int:
        return (self.prefill_steps + self.training_steps) * self.env_steps_per_training_step

    @property
    def total_updates(self) -> int:
        return self.training_steps * self.updates_per_training_step


def derive_schedule(config: Config) -> Schedule:
    """The step arithmetic of a run; all of it happens here."""
    per_step = config.num_envs * config.unroll_length * config.action_repeat
    prefill_steps = -(-config.min_replay_size // config.unroll_length)
    training_steps = max(1, -(-config.num_timesteps // per_step) - prefill_steps)
    updates = config.multiplier_num_sgd_steps * config.num_envs * (config.episode_length - 1) / config.batch_size
    epochs = min(max(config.num_evals - 1, 1), training_steps)
    ends = [training_steps * (epoch + 1) // epochs for epoch in range(epochs)]
    return Schedule(
        env_steps_per_training_step=per_step,
        updates_per_training_step=max(1, round(updates)),
        prefill_steps=prefill_steps,
        training_steps=training_steps,
        epoch_lengths=tuple(end - start for start, end in zip([0, *ends], ends, strict=False)),
        first_evaluation=config.num_evals > 1,
        replay_rows=-(-config.max_replay_size // config.unroll_length) * config.unroll_length,
    )


# Run folders.

_RECORDED_PACKAGES = ("jax", "jaxlib", "flax", "optax", "brax", "mujoco", "mujoco-mjx", "numpy")


def make_run_dir(config: Config) -> Path:
    """Makes the run's folder, new whatever else runs or ran.

    Raises:
      ConfigError: the output folder cannot be written.
    """
    group = Path(config.output_dir) / config.project_name / config.group_name
    name = f"{config.exp_name}_{config.env_name}_s{config.seed}_{time.strftime('%Y%m%d-%H%M%S')}"
    for attempt in range(1, 10_000):
        run_dir = group / (name if attempt == 1 else f"{name}_{attempt}")
        try:
            group.mkdir(parents=True, exist_ok=True)
            run_dir.mkdir()
            return run_dir
        except FileExistsError:
            if not group.is_dir():
                raise ConfigError(f"--output_dir: {group} is not a folder") from None
        except OSError as error:
            raise ConfigError(f"--output_dir: cannot write {group}: {error.strerror}") from None
    raise ConfigError(f"--output_dir: {group} holds 10,000 runs named {name}")


def write_record(
    run_dir: Path, config: Config, schedule: Schedule, devices: list[str], trained_with: list[str]
) -> None:
    """Writes config.json: the flags, what the run depends on besides, and the folders of the seeds trained together."""
    record = {
        "flags": dataclasses.asdict(config),
        "schedule": dataclasses.asdict(schedule),
        "versions": {"python": sys.version.split()[0]} | {name: metadata.version(name) for name in _RECORDED_PACKAGES},
        "git_commit": _git_commit(),
        "devices": devices,
        "trained_with": trained_with,
    }
    write_text(run_dir / "config.json", json.dumps(record, indent=2) + "\n")


def read_config(run_dir: Path) -> Config:
    """The config of a run folder; flags that this version does not know are left out.

    Raises:
      ConfigError: there is no readable config.json.
    """
    try:
        flags = dict(json.loads((Path(run_dir) / "config.json").read_text())["flags"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{run_dir} is not a run folder: no readable config.json ({error})") from None
    known = {field.name for field in dataclasses.fields(Config)}
    return Config(**{name: value for name, value in flags.items() if name in known})


def write_text(path: Path, text: str) -> None:
    """Writes a file so that a reader, or a crash, sees the old text or the new one, never a part."""
    with replacing(path) as temporary:
        temporary.write_text(text)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file to write instead of `path`, put in its place if that worked and removed if not. A folder that
    was lost is made again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    with contextlib.suppress(OSError):
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        return answer.stdout.strip() or None
    return None


# Loggers: a constructor, `log(metrics, step)` and `close()`.


class Logger(Protocol):
    """Where metrics go. A metric that was not measured is absent from `metrics`, never 0."""

    def log(self, metrics: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


def survives(what: str, write: Callable[[], Any], nevertheless: str = "training goes on") -> bool:
    """Whether `write` worked. If not, one line says why and training goes on: it never dies of its records."""
    try:
        write()
    except Exception as error:  # a full disk, a lost folder, whatever a service answers
        reason = " ".join(str(error).split())[:300]
        print(f"warning: {what} failed, {nevertheless} ({type(error).__name__}: {reason})", file=sys.stderr)
        return False
    return True


class CSVLogger:
    """One row per `log` in metrics.csv, first column env_steps; columns are added as metrics appear.

    All rows stay in memory: what a full disk or a lost folder kept from being written is written at the next chance.

    Attributes:
      rows: all rows so far, column -> text.
      complete: whether the file holds all of them.
    """

    def __init__(self, path: Path, rows: list[dict[str, str]] | None = None):
        """Goes on after `rows`; without any, the file begins with the first `log`."""
        self.path = path
        self.rows: list[dict[str, str]] = rows or []
        self.columns = list(dict.fromkeys(["env_steps", *itertools.chain(*self.rows)]))
        self.complete = not rows or survives(str(path), self._rewrite)

    def log(self, metrics: dict[str, float], step: int) -> None:
        row = {name: str(value) for name, value in {"env_steps": step, **metrics}.items()}
        self.rows.append(row)
        new = [name for name in row if name not in self.columns]
        self.columns += new
        longer = self.complete and not new and self.path.exists()
        self.complete = survives(str(self.path), self._append if longer else self._rewrite)

    def _append(self) -> None:
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(self.rows[-1])

    def _rewrite(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())

    def close(self) -> None:
        """Writes what could not be written before."""
        if self.rows and not (self.complete and self.path.exists()):
            self.complete = survives(str(self.path), self._rewrite)


def read_rows(path: Path, last_env_step: int) -> list[dict[str, str]]:
    """The rows of a metrics.csv up to an env step; a last line that a crash cut short is left out."""
    try:
        with path.open(newline="", errors="replace") as file:
            rows = [row for row in csv.DictReader(file) if None not in row and None not in row.values()]
    except (OSError, csv.Error):
        return []
    rows = [row for row in rows if row.get("env_steps", "").isdigit() and int(row["env_steps"]) <= last_env_step]
    return [{name: text for name, text in row.items() if text} for row in rows]


class Progress:
    """The line a person watches: redrawn in place on a terminal, one line per evaluation when piped."""

    def __init__(self, total_env_steps: int):
        self.total = total_env_steps
        self.live = sys.stdout.isatty()
        self.success = ""

    def announce(self, text: str) -> None:
        """Says what is being compiled. A finished line ends with a newline; unfinished ones are for terminals."""
        if self.live or text.endswith("\n"):
            print(f"\x1b[2K\r{text}" if self.live else text, end="", flush=True)

    def update(self, env_steps: int, steps_per_second: float) -> None:
        """Redraws the live line; says nothing when piped."""
        if self.live:
            self._show(env_steps, steps_per_second, end="\r")

    def evaluated(self, env_steps: int, metrics: dict[str, float]) -> None:
        """Prints the line of an evaluation."""
        if "eval/episode_success" in metrics:
            near, any_success = metrics["eval/episode_success"], metrics["eval/episode_success_any"]
            self.success = f"   near goal {near:6.1f} steps   success {any_success:.2f}"
        self._show(env_steps, metrics.get("training/sps"), end="\n")

    def _show(self, env_steps: int, steps_per_second: float | None, end: str) -> None:
        speed, left = " " * 21, ""
        if steps_per_second:
            speed = f"{steps_per_second:>9,.0f} env steps/s"
            left = f"   {_duration((self.total - env_steps) / steps_per_second)} left"
        clear = "\x1b[2K" if self.live else ""
        print(f"{clear}{env_steps:>12,} / {self.total:,} env steps{speed}{left}{self.success}", end=end, flush=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
