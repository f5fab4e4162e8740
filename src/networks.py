"""Networks: the trunks (`NETWORKS`), encoders and the tanh-Gaussian actor."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from utils import Config

_kernel = nn.initializers.lecun_uniform()
_MIN_STD = 1e-3
_LAYERS_OF_A_BLOCK = 4


def _layer(x: jax.Array, h_dim: int, use_ln: bool, activation: Callable[[jax.Array], jax.Array]) -> jax.Array:
    x = nn.Dense(h_dim, kernel_init=_kernel)(x)
    return activation(nn.LayerNorm()(x) if use_ln else x)


class Layer(NamedTuple):
    """One layer of a trained network, for who computes it without this code.

    Attributes:
      kernel, bias: (inputs, units), (units,).
      scale, shift: (units,) of the LayerNorm before the activation; None without one.
      activation: its name.
      skip: the input of so many layers, this one the last, is added to what comes out; 0 adds nothing.
    """

    kernel: jax.Array
    bias: jax.Array
    scale: jax.Array | None
    shift: jax.Array | None
    activation: str
    skip: int = 0


def _trained_layer(
    params: dict[str, Any], number: int, activation: Callable[[jax.Array], jax.Array], skip: int = 0
) -> Layer:
    """The `_layer` of this number in a module's parameters."""
    dense, norm = params[f"Dense_{number}"], params.get(f"LayerNorm_{number}", {})
    return Layer(dense["kernel"], dense["bias"], norm.get("scale"), norm.get("bias"), activation.__name__, skip)


class MLP(nn.Module):
    """`n_hidden` layers of `h_dim` units, each with ReLU (`swish`: swish), and LayerNorm before it with `use_ln`."""

    h_dim: int
    n_hidden: int
    use_ln: bool
    activation: Callable[[jax.Array], jax.Array] = nn.relu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(self.n_hidden):
            x = _layer(x, self.h_dim, self.use_ln, self.activation)
        return x

    def layers(self, params: dict[str, Any]) -> list[Layer]:
        """What `__call__` computes with these parameters, layer by layer."""
        return [_trained_layer(params, number, self.activation) for number in range(self.n_hidden)]


class ResidualMLP(nn.Module):
    """Pairs of swish layers with a skip around each, after an input layer (https://arxiv.org/abs/2503.14858).

    The paper uses LayerNorm throughout (`use_ln`). An odd `n_hidden` makes the last block one layer deep.
    """

    h_dim: int
    n_hidden: int
    use_ln: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _layer(x, self.h_dim, self.use_ln, nn.swish)
        for first in range(1, self.n_hidden, 2):
            skip = x
            for _ in range(first, min(first + 2, self.n_hidden)):
                x = _layer(x, self.h_dim, self.use_ln, nn.swish)
            x = x + skip
        return x

    def layers(self, params: dict[str, Any]) -> list[Layer]:
        """What `__call__` computes with these parameters, layer by layer."""
        layers = [_trained_layer(params, number, nn.swish) for number in range(self.n_hidden)]
        for first in range(1, self.n_hidden, 2):
            last = min(first + 2, self.n_hidden) - 1
            layers[last] = layers[last]._replace(skip=last - first + 1)
        return layers


class _Block(nn.Module):
    """Four swish layers with a skip around them, as a step of a scan."""

    h_dim: int
    use_ln: bool

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        skip = x
        for _ in range(_LAYERS_OF_A_BLOCK):
            x = _layer(x, self.h_dim, self.use_ln, nn.swish)
        return x + skip, None


class DeepResidualMLP(nn.Module):
    """`n_hidden` swish layers in blocks of four with a skip around each, after an input layer that is not counted
    (https://arxiv.org/abs/2503.14858). The paper uses LayerNorm throughout (`use_ln`).

    One block is compiled and scanned over the parameters of all, which have a leading axis of blocks: what compiling
    takes does not grow with the depth.
    """

    h_dim: int
    n_hidden: int
    use_ln: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _layer(x, self.h_dim, self.use_ln, nn.swish)
        # Of a layer only its product is kept for the gradient, and the rest computed again: at depth 64, a quarter of
        # the memory and 0.6 times the time on a CPU.
        block = nn.remat(_Block, policy=jax.checkpoint_policies.dots_saveable, prevent_cse=False)
        length = self.n_hidden // _LAYERS_OF_A_BLOCK
        blocks = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=length)
        x, _ = blocks(self.h_dim, self.use_ln, name="blocks")(x, None)
        return x

    def layers(self, params: dict[str, Any]) -> list[Layer]:
        """What `__call__` computes with these parameters, layer by layer."""
        layers = [_trained_layer(params, 0, nn.swish)]
        for number in range(self.n_hidden // _LAYERS_OF_A_BLOCK):
            block = jax.tree.map(lambda stacked, number=number: stacked[number], params["blocks"])
            inside = [_trained_layer(block, within, nn.swish) for within in range(_LAYERS_OF_A_BLOCK)]
            layers += [*inside[:-1], inside[-1]._replace(skip=_LAYERS_OF_A_BLOCK)]
        return layers


def by_depth(h_dim: int, n_hidden: int, use_ln: bool) -> nn.Module:
    """`swish` below four layers, `residual4` from there on (https://arxiv.org/abs/2609.36238)."""
    return NETWORKS[_kind("by_depth", n_hidden)](h_dim=h_dim, n_hidden=n_hidden, use_ln=use_ln)


def _kind(network: str, n_hidden: int) -> str:
    """The network that a depth makes of one that goes by it."""
    return network if network != "by_depth" else "swish" if n_hidden < _LAYERS_OF_A_BLOCK else "residual4"


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "swish": partial(MLP, activation=nn.swish),
    "residual": ResidualMLP,
    "residual4": DeepResidualMLP,
    "by_depth": by_depth,
}

# Networks whose depth must be a multiple of this.
DEPTH_STEPS = {"residual4": _LAYERS_OF_A_BLOCK}


def _size(config: Config, part: str, name: str) -> tuple[str, int]:
    """The flag that says the size `name` of a part, and what it says: the part's own, if it is not 0, goes before."""
    own = f"{part}_{name}"
    flag = own if getattr(config, own) else name
    return flag, getattr(config, flag)


def make_trunk(config: Config, part: str) -> nn.Module:
    """The trunk of a part, "actor" or "critic".

    Raises:
      ValueError: a depth that the network cannot have.
    """
    flag, n_hidden = _size(config, part, "n_hidden")
    step = DEPTH_STEPS.get(_kind(config.network, n_hidden), 1)
    if n_hidden % step:
        raise ValueError(
            f"--network {config.network} is made of blocks of {step} layers: --{flag} {n_hidden} must be a multiple of "
            f"{step}, e.g. {-(-n_hidden // step) * step}"
        )
    _, h_dim = _size(config, part, "h_dim")
    return NETWORKS[config.network](h_dim=h_dim, n_hidden=n_hidden, use_ln=config.use_ln)


def trunk_workspace(config: Config, part: str) -> float:
    """Floats that the gradient of a part's trunk takes for a batch, fitted to the memory of compiled programs."""
    (_, h_dim), (_, n_hidden) = _size(config, part, "h_dim"), _size(config, part, "n_hidden")
    network = _kind(config.network, n_hidden)
    if network == "residual4":  # the products, all else of one block, the gradients of all blocks
        return h_dim * (config.batch_size * (n_hidden + 7.5) + h_dim * n_hidden)
    per_unit = 1.5 + 0.7 * (network != "mlp") + 1.3 * config.use_ln
    return h_dim * config.batch_size * n_hidden * per_unit


def joint_workspace(config: Config, *parts: str) -> float:
    """The same for algorithms whose update is one gradient through these parts, and no other pass."""
    return (2.2 if config.network == "residual4" else 1.4) * sum(trunk_workspace(config, part) for part in parts)


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


class HazardHead(nn.Module):
    """Maps the representations of a plan and a goal, (..., D) each, to logits of hazards (..., bins), the first of them
    on its own, the others by a product of low rank that starts at `biases`, and of occupancy, if there is any."""

    trunk: nn.Module
    biases: tuple[float, ...]
    num_occupancy: int
    rank: int = 64

    @nn.compact
    def __call__(self, phi: jax.Array, psi: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        gain, shift = jnp.split(nn.Dense(2 * phi.shape[-1], kernel_init=_kernel)(psi), 2, axis=-1)
        phi = (1 + 0.1 * gain) * phi + 0.1 * shift
        x = self.trunk(jnp.concatenate([phi, psi, phi - psi, phi * psi], axis=-1))
        first = nn.Dense(1, kernel_init=_kernel)(x)
        basis = self.param("basis", nn.initializers.normal(0.02), (self.rank, len(self.biases)))
        bias = self.param("bias", lambda key: jnp.array(self.biases))
        later = nn.Dense(self.rank, kernel_init=_kernel)(x) @ basis + bias
        hazards = jnp.concatenate([first, later], axis=-1)
        return hazards, nn.Dense(self.num_occupancy, kernel_init=_kernel)(x) if self.num_occupancy else None
