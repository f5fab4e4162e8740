"""Networks: the trunks (`NETWORKS`), encoders and the tanh-Gaussian actor."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from utils import Config

_kernel = nn.initializers.lecun_uniform()
_MIN_STD = 1e-3


class MLP(nn.Module):
    """`n_hidden` layers of `h_dim` ReLU units, LayerNorm before each ReLU with `use_ln`."""

    h_dim: int
    n_hidden: int
    use_ln: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(self.n_hidden):
            x = nn.Dense(self.h_dim, kernel_init=_kernel)(x)
            x = nn.relu(nn.LayerNorm()(x) if self.use_ln else x)
        return x


class ResidualMLP(nn.Module):
    """Pairs of swish layers with a skip around each, after an input layer (https://arxiv.org/abs/2503.14858).

    The paper uses LayerNorm throughout (`use_ln`). An odd `n_hidden` makes the last block one layer deep.
    """

    h_dim: int
    n_hidden: int
    use_ln: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def layer(x):
            x = nn.Dense(self.h_dim, kernel_init=_kernel)(x)
            return nn.swish(nn.LayerNorm()(x) if self.use_ln else x)

        x = layer(x)
        for first in range(1, self.n_hidden, 2):
            skip = x
            for _ in range(first, min(first + 2, self.n_hidden)):
                x = layer(x)
            x = x + skip
        return x


NETWORKS: dict[str, Callable[..., nn.Module]] = {"mlp": MLP, "residual": ResidualMLP}


def make_trunk(config: Config, part: str) -> nn.Module:
    """The trunk of a part, "actor" or "critic", whose own depth and width go before `n_hidden` and `h_dim`."""
    return NETWORKS[config.network](
        h_dim=getattr(config, f"{part}_h_dim") or config.h_dim,
        n_hidden=getattr(config, f"{part}_n_hidden") or config.n_hidden,
        use_ln=config.use_ln,
    )


class Encoder(nn.Module):
    """A trunk and a linear map to the (..., repr_dim) representation."""

    trunk: nn.Module
    repr_dim: int

    @nn.compact
    def __call__(self, *inputs: jax.Array) -> jax.Array:
        x = self.trunk(jnp.concatenate(inputs, axis=-1))
        return nn.Dense(self.repr_dim, kernel_init=_kernel)(x)


class Actor(nn.Module):
    """Maps state and goal to mean and standard deviation, each (..., action_size), of the Gaussian before the tanh."""

    trunk: nn.Module
    action_size: int

    @nn.compact
    def __call__(self, state: jax.Array, goal: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = self.trunk(jnp.concatenate([state, goal], axis=-1))
        mean, spread = jnp.split(nn.Dense(2 * self.action_size, kernel_init=_kernel)(x), 2, axis=-1)
        return mean, nn.softplus(spread) + _MIN_STD


class QNetwork(nn.Module):
    """Maps state, goal and action to the value (...) of the action."""

    trunk: nn.Module

    @nn.compact
    def __call__(self, state: jax.Array, goal: jax.Array, action: jax.Array) -> jax.Array:
        x = self.trunk(jnp.concatenate([state, goal, action], axis=-1))
        return nn.Dense(1, kernel_init=_kernel)(x)[..., 0]
