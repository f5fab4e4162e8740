"""The ground floor: `Config` (the flags every run has), the schedule, run folders and records. Knows nothing of ours.

An algorithm adds its flags in a subclass of `Config`. Parsing and checks receive the registries that a flag's names
come from, as a dict kind -> registry.
"""

import contextlib
import dataclasses
import difflib
import enum
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

# Exit statuses besides 0: a run that went wrong, bad input, left by a signal and ready to be resumed, and a run folder
# that another process trains in.
FAILED, REFUSED, INTERRUPTED, IN_USE = 1, 2, 75, 76

NEWEST = "newest"  # what a bare --resume stands for
AUTO = "auto"  # the --coordinator_address that the cluster's own variables stand for

FAILURES: list[str] = []  # what went wrong outside of JAX, whose own error keeps a traceback of it at best

Registries = Mapping[str, Collection[str]]


class ConfigError(ValueError):
    """A request that cannot be carried out; its text is one line that says what would be right."""


def unknown(kind: str, name: str, valid: Collection[str], where: str = "") -> str:
    """One line for a name that does not exist: the valid ones and the nearest."""
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.0)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}{where}: choose from {', '.join(sorted(valid))}{hint}"


# What a field of a config may say of its flag, beside the type: `Annotated[int, Range(1), Role.KEEPING]`.


class Choice(NamedTuple):
    """The value is a name of the registry of this kind."""

    kind: str


class Range(NamedTuple):
    """The legal numbers, the bounds left out where they are `open`. None: as much as the device's numbers hold."""

    least: float | None = None
    most: float | None = None
    open: bool = False
    example: float | None = None

    def refusal(self, value: float) -> str:
        """What a value out of range would have to be; empty for a legal one."""
        largest = 2**31 - 1 if isinstance(value, int) else 3e38
        least = -largest if self.least is None else self.least
        most = largest if self.most is None else self.most
        if least < value < most if self.open else least <= value <= most:
            return ""
        if self.open:
            bounds = f"above {least:g}" if self.most is None else f"inside ({least:g}, {most:g})"
            return f"it must be {bounds}, e.g. {self.example:g}"
        if value > most and (isinstance(value, int) or self.most is not None):
            return f"it must be at most {most}"
        return "it must be finite" + ("" if self.least is None else f" and at least {least}")


RATE = Range(0, open=True, example=3e-4)  # of an optimiser


class Role(enum.Enum):
    """What a flag is to a run where it is no setting that runs are compared by."""

    LABEL = "tells runs apart; the same when the run resumes"
    KEEPING = "how the run is kept, watched and spread; changes no number, so it may differ when the run resumes"
    LENGTH = "may grow when the run resumes"


class Before(NamedTuple):
    """What code did that did not have the flag yet: its value in a record without it."""

    value: Any


_Fact = TypeVar("_Fact")


def fact(field: dataclasses.Field, kind: type[_Fact]) -> _Fact | None:
    """What the field says of its flag, of one kind."""
    return next((each for each in getattr(field.type, "__metadata__", ()) if isinstance(each, kind)), None)


def plain_type(field: dataclasses.Field) -> Any:
    """The field's type without what it says besides."""
    return getattr(field.type, "__origin__", field.type)


@dataclasses.dataclass(frozen=True)
class Config:
    """The flags that every run has, each with a default; an algorithm adds its own in a subclass."""

    exp_name: Annotated[str, Role.LABEL] = "test"
    """Name of the run; first part of its folder's name."""
    group_name: Annotated[str, Role.LABEL] = "test"
    """Folder and W&B group that collects runs to compare."""
    project_name: Annotated[str, Role.LABEL] = "crl"
    """Folder and W&B project that collects groups."""
    output_dir: Annotated[str, Path, Role.KEEPING] = "runs"
    """Where run folders are made: OUTPUT_DIR/PROJECT/GROUP/EXP_ENV_sSEED_TIME/."""
    algorithm: Annotated[str, Choice("algorithm"), Before("crl")] = "crl"
    """What learns, and which further flags there are: `--algorithm NAME --help` shows them."""
    env_name: Annotated[str, Choice("env"), Role.LABEL] = "reacher"
    """Environment to train on."""
    eval_env: Annotated[str | None, Choice("env"), Role.LABEL] = None
    """Environment to evaluate on, of the same sizes; None is the training environment."""
    gen_distances: Annotated[str, Before("")] = ""
    """How far goals are from starts in the mazes ENV_gen, in cells of their corridor, such as 1,3; empty: all ways."""
    eval_gen_distances: Annotated[str, Role.LABEL, Before("")] = ""
    """The same for the evaluation; empty: those of training where it is on the same environment, else all ways."""
    backend: Annotated[str | None, Choice("backend")] = None
    """Physics backend; None is the environment's own, or on a CPU `mujoco` in place of `mjx`."""
    use_dense_reward: bool = False
    """Report the environment's shaped reward instead of the sparse one."""
    fresh_goals: bool = True
    """Draw a new start and goal at every episode. Off: each env repeats its first ones for the whole run."""
    goal_proposal: Annotated[str, Choice("goal proposal"), Before("env")] = "env"
    """Who proposes the goals of new episodes. Only `env` where a goal needs the start that is drawn with it."""
    seed: Annotated[int, Range(0), Role.LABEL] = 0
    """Where all randomness of the run comes from."""
    num_seeds: Annotated[int, Range(1, 1000), Role.KEEPING] = 1
    """Seeds `seed`, `seed` + 1, ... trained together in one program, each a run of its own with its own folder."""
    seed_batch: Annotated[int, Range(0), Role.KEEPING] = 0
    """Seeds trained together; the others wait for their turn. 0: as many as fit into the memory by the plan."""
    num_timesteps: Annotated[int, Range(1, 2**53), Role.LENGTH] = 10_000_000
    """Env steps over all envs, prefill and action repeats included; a run never stops short of it."""
    num_evals: Annotated[int, Range(1, 100_000), Role.KEEPING] = 50
    """Evaluations, spread evenly; with more than one, the first is of the untrained policy."""
    num_eval_envs: Annotated[int, Range(1), Role.LABEL] = 128
    """Episodes per evaluation, with the same starts and goals in every evaluation of every run."""
    deterministic_eval: bool = False
    """Evaluate tanh(mean) instead of sampled actions."""
    num_envs: Annotated[int, Range(1)] = 512
    """Environments stepped in parallel."""
    episode_length: Annotated[int, Range(2)] = 1000
    """Time limit of an episode, in env steps."""
    action_repeat: Annotated[int, Range(1)] = 1
    """Env steps that each action is held for."""
    unroll_length: Annotated[int, Range(1)] = 62
    """Actions collected in every env between two rounds of updates."""
    batch_size: Annotated[int, Range(2)] = 256
    """Rows per update."""
    policy_lr: Annotated[float, RATE] = 6e-4
    """Adam's rate for the actor."""
    network: Annotated[str, Choice("network")] = "mlp"
    """Trunk of all networks."""
    h_dim: Annotated[int, Range(1)] = 256
    """Width of the hidden layers."""
    n_hidden: Annotated[int, Range(1, 1000)] = 2
    """Hidden layers."""
    actor_h_dim: Annotated[int, Range(0), Before(0)] = 0
    """Width of the actor's hidden layers; 0: h_dim."""
    actor_n_hidden: Annotated[int, Range(0, 1000), Before(0)] = 0
    """Hidden layers of the actor; 0: n_hidden."""
    critic_h_dim: Annotated[int, Range(0), Before(0)] = 0
    """Width of the critic's hidden layers; 0: h_dim."""
    critic_n_hidden: Annotated[int, Range(0, 1000), Before(0)] = 0
    """Hidden layers of each of the critic's networks; 0: n_hidden."""
    use_ln: bool = False
    """LayerNorm in all networks."""
    normalize_observations: bool = False
    """Standardise states and goals by running moments, in all networks."""
    render: Annotated[bool, Role.KEEPING] = True
    """Leave a video and pictures of the final policy in the run folder."""
    video_every: Annotated[int, Range(0), Role.KEEPING] = 0
    """Evaluations between videos, besides the one at the end; 0 is none. Each keeps training waiting, and says how
    long."""
    log_wandb: Annotated[bool, Role.KEEPING] = False
    """Also log to Weights & Biases; without an account or network, to its offline folder."""
    wandb_mode: Annotated[str, Choice("W&B mode"), Role.KEEPING] = "online"
    """Whether Weights & Biases is asked at all, or only its offline folder written."""
    log_tensorboard: Annotated[bool, Role.KEEPING] = False
    """Also log to TensorBoard's event files, in the run folder."""
    num_devices: Annotated[int, Range(0), Role.KEEPING] = 0
    """Devices to use, 0 for all: the seeds are spread over them, and the envs and the batch of a seed over what each
    seed has."""
    coordinator_address: Annotated[str | None, Role.KEEPING] = None
    """HOST:PORT of the first of several processes that train one run together, the same for all of them. `auto` finds
    the processes by the variables of SLURM and other launchers."""
    num_processes: Annotated[int, Range(1), Role.KEEPING] = 1
    """Processes that train together, with `--coordinator_address HOST:PORT`."""
    process_id: Annotated[int, Range(0), Role.KEEPING] = 0
    """Number of this process, from 0. Process 0 logs and saves."""
    compilation_cache: Annotated[bool, Role.KEEPING] = True
    """Keep compiled programs for the next start."""
    resume: Annotated[str | None, Path, Role.KEEPING] = None
    """Continue from the newest checkpoint of RUN_DIR (or from one of RUN_DIR/checkpoints/). A bare `--resume` takes the
    newest run of the same names, env and seed, and begins a new one if there is none."""
    run_dir_file: Annotated[str | None, Path, Role.KEEPING] = None
    """File that receives the run folders, one path per line, before training begins."""
    checkpoint_every: Annotated[float, Range(0), Role.KEEPING] = 0.0
    """Minutes between checkpoints, besides the one at every evaluation; 0 is none."""
    checkpoint_replay: Annotated[bool, Role.KEEPING] = True
    """Keep the replay in checkpoints, most of their size. Off: a resumed run refills it, so its numbers differ."""
    keep_policies: Annotated[int, Range(0), Role.KEEPING] = 0
    """Policies of the newest evaluations to keep in policies/, besides the last and the best one."""
    dry_run: Annotated[bool, Role.KEEPING] = False
    """Print the plan and stop."""

    def updates_per_training_step(self) -> int:
        """Gradient steps after each unroll. Each algorithm says its own."""
        raise NotImplementedError(f"{type(self).__name__} does not say how many updates a training step has")

    def prefill_steps(self) -> int:
        """Unrolls before learning starts."""
        return 0

    def replay_rows(self) -> int:
        """Rows per env of the ring, a multiple of the unroll."""
        return self.unroll_length

    def check(self) -> None:
        """Checks every flag's range, and what flags ask of each other; a subclass adds its own rules.

        Raises:
          ConfigError: the first rule that does not hold, with the numbers and the nearest legal value.
        """
        for field in dataclasses.fields(self):
            value, legal = getattr(self, field.name), fact(field, Range)
            wrong = legal.refusal(value) if legal else ""
            if wrong:
                raise ConfigError(f"--{field.name} {value} is out of range: {wrong}")
        for flag in ("exp_name", "group_name", "project_name"):
            _require_name(flag, getattr(self, flag))
        if self.action_repeat * 2 > self.episode_length:
            raise ConfigError(
                f"--action_repeat {self.action_repeat} leaves an episode of {self.episode_length} env steps fewer than "
                f"two actions: at most {self.episode_length // 2}"
            )
        if self.seed + self.num_seeds > 2**31:
            most = 2**31 - self.num_seeds
            raise ConfigError(f"--seed {self.seed} with --num_seeds {self.num_seeds} passes 2^31: at most {most}")
        if self.goal_proposal != Config.goal_proposal and not self.fresh_goals:
            raise ConfigError(
                f"--goal_proposal {self.goal_proposal} proposes goals to new episodes, which --no_fresh_goals has none "
                f"of: --goal_proposal {Config.goal_proposal}, or --fresh_goals"
            )
        schedule = derive_schedule(self)
        if max(schedule.eval_at) >= 2**31 or schedule.updates_per_training_step * self.batch_size >= 2**31:
            raise ConfigError(
                f"{max(schedule.eval_at)} training steps of {schedule.updates_per_training_step} updates of "
                f"{self.batch_size} rows are too many to number with 31 bits: fewer --num_timesteps or updates, or a "
                f"longer --unroll_length"
            )


def _require_name(flag: str, name: str) -> None:
    if not name or name.startswith(".") or any(sign in name for sign in "/\\\0\n") or len(name) > 100:
        raise ConfigError(
            f"--{flag} {name!r} cannot be part of a folder's name: use 1 to 100 characters, no slash, no leading dot"
        )


def may_differ(field: dataclasses.Field) -> bool:
    """Whether a run may resume with another value of this flag."""
    return fact(field, Role) in (Role.KEEPING, Role.LENGTH)


def bookkeeping(config_class: type[Config] = Config) -> frozenset[str]:
    """The flags that make no setting of their own when runs are compared."""
    fields = dataclasses.fields(config_class)
    return frozenset(field.name for field in fields if fact(field, Role) in (Role.KEEPING, Role.LABEL))


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
    """The step arithmetic of a run; all of it happens here, and in what an algorithm's config says of itself."""
    per_step = config.num_envs * config.unroll_length * config.action_repeat
    prefill_steps = config.prefill_steps()
    training_steps = max(1, -(-config.num_timesteps // per_step) - prefill_steps)
    epochs = min(max(config.num_evals - 1, 1), training_steps)
    ends = [training_steps * (epoch + 1) // epochs for epoch in range(epochs)]
    return Schedule(
        env_steps_per_training_step=per_step,
        updates_per_training_step=config.updates_per_training_step(),
        prefill_steps=prefill_steps,
        training_steps=training_steps,
        epoch_lengths=tuple(end - start for start, end in zip([0, *ends], ends, strict=False)),
        first_evaluation=config.num_evals > 1,
        replay_rows=config.replay_rows(),
    )


# Run folders and their records.

RECORDED_PACKAGES = ("jax", "jaxlib", "flax", "optax", "brax", "mujoco", "mujoco-mjx", "numpy")


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
        "versions": {"python": sys.version.split()[0]} | {name: metadata.version(name) for name in RECORDED_PACKAGES},
        "git_commit": _git_commit(),
        "devices": devices,
        "trained_with": trained_with,
    }
    write_text(run_dir / "config.json", json.dumps(record, indent=2) + "\n")


def _git_commit() -> str | None:
    """The commit of the code, with "-dirty" behind it if files of it have changed since."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    return None


def read_config(run_dir: Path, algorithms: Mapping[str, Any]) -> Config:
    """The config of a run folder, of the class that its algorithm has in the registry.

    Raises:
      ConfigError: there is no readable config.json, or it does not say all that this code must know.
    """
    path = Path(run_dir) / "config.json"
    try:
        flags = dict(json.loads(path.read_text())["flags"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{run_dir} is not a run folder: no readable config.json ({error})") from None
    return config_of(flags, algorithms, str(path))


def config_of(flags: Mapping[str, Any], algorithms: Mapping[str, Any], source: str) -> Config:
    """The config that recorded flags describe; those that this code does not know are left out.

    A flag that is younger than the record has the value of what code did before; one that changes no number of a run
    has its default.

    Raises:
      ConfigError: an unknown algorithm, or a flag is missing and nobody says what code did before.
    """
    name = str(flags.get("algorithm", Config.algorithm))
    if name not in algorithms:
        raise ConfigError(f"{source}: {unknown('algorithm', name, algorithms)}")
    config_class = algorithms[name].config
    values = {}
    for field in dataclasses.fields(config_class):
        before = fact(field, Before)
        if field.name not in flags and before is None and fact(field, Role) is not Role.KEEPING:
            raise ConfigError(f"{source} does not say --{field.name}; a new flag needs Before(what older code did)")
        values[field.name] = flags.get(field.name, before.value if before else field.default)
    return config_class(**values)


# Files.


def write_text(path: Path, text: str) -> None:
    """Writes a file so that a reader, or a crash, sees the old text or the new one, never a part."""
    with replacing(path) as temporary:
        temporary.write_text(text)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file to write instead of `path`, put in its place if that worked and removed if not. A folder that
    was lost is made again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")  # no ending by which a killed run's would be found
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
