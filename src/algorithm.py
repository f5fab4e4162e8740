"""What the loop and an algorithm say to each other: an algorithm's flags, and what the registry holds of it."""

import dataclasses
import math
from typing import Annotated, NamedTuple

from utils import Config, ConfigError, Range, derive_schedule


@dataclasses.dataclass(frozen=True)
class OffPolicyConfig(Config):
    """The flags of the algorithms that learn from a replay of many unrolls."""

    multiplier_num_sgd_steps: Annotated[float, Range(0, 2**31 - 1, open=True, example=0.4)] = 1.0
    """Scales the updates per training step, num_envs * (episode_length - 1) / batch_size."""
    min_replay_size: Annotated[int, Range(2)] = 1000
    """Rows per env to collect before learning starts."""
    max_replay_size: Annotated[int, Range(3)] = 10_000
    """Rows per env that the replay holds (rounded up to a multiple of unroll_length)."""
    discounting: Annotated[float, Range(0, 1, open=True, example=0.99)] = 0.99
    """Goals lie k steps ahead with probability proportional to discounting^k; inside (0, 1)."""

    def updates_per_training_step(self) -> int:
        updates = self.multiplier_num_sgd_steps * self.num_envs * (self.episode_length - 1) / self.batch_size
        return max(1, round(updates))

    def prefill_steps(self) -> int:
        return -(-self.min_replay_size // self.unroll_length)

    def replay_rows(self) -> int:
        return -(-self.max_replay_size // self.unroll_length) * self.unroll_length

    def check(self) -> None:
        super().check()
        if self.min_replay_size > self.max_replay_size:
            raise ConfigError(
                f"--min_replay_size {self.min_replay_size} is above --max_replay_size {self.max_replay_size}: at most "
                f"{self.max_replay_size}"
            )
        if self.unroll_length > self.max_replay_size:
            raise ConfigError(
                f"--unroll_length {self.unroll_length} is longer than the replay, --max_replay_size "
                f"{self.max_replay_size}: at most {self.max_replay_size}"
            )
        self._check_batch()
        self._check_ring()
        prefill = derive_schedule(self).prefill_env_steps
        if self.num_timesteps < prefill:
            raise ConfigError(
                f"--num_timesteps {self.num_timesteps} is below the prefill of {prefill} env steps (min_replay_size "
                f"{self.min_replay_size} rows in {self.num_envs} envs, in unrolls of {self.unroll_length}): at least "
                f"{prefill}, or a smaller --min_replay_size"
            )

    def _check_batch(self) -> None:
        per_env = self.multiplier_num_sgd_steps * (self.episode_length - 1)
        collected, drawn = self.num_envs * self.unroll_length, int(self.num_envs * per_env)
        most = min(collected, drawn)
        if self.batch_size > most:
            envs = math.ceil(2 / min(self.unroll_length, per_env))
            raise ConfigError(
                f"--batch_size {self.batch_size} is larger than a training step's data: num_envs {self.num_envs} * "
                f"unroll_length {self.unroll_length} = {collected} rows, multiplier_num_sgd_steps * num_envs * "
                f"(episode_length - 1) = {drawn} to draw; "
                + (f"at most {most}" if most > 1 else f"raise --num_envs to {envs}")
            )

    def _check_ring(self) -> None:
        # The ring's time index counts to twice its length, hence the 2.
        if max(self.num_envs, 2) * (self.max_replay_size + self.unroll_length) >= 2**31:
            rows = 2**31 // max(self.num_envs, 2) - self.unroll_length - 1
            fits = f"--max_replay_size {rows}" if rows >= max(self.min_replay_size, self.unroll_length, 3) else ""
            envs = (2**31 - 1) // (self.max_replay_size + self.unroll_length)
            raise ConfigError(
                f"--num_envs {self.num_envs} * --max_replay_size {self.max_replay_size} rows are too many to number "
                f"with 31 bits: at most {fits or f'--num_envs {envs}'}"
            )


class Method(NamedTuple):
    """What the registry holds of an algorithm: `config`, the class of its flags."""

    config: type[Config]
