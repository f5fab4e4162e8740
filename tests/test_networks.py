"""Trunks, encoders and actor against NumPy forward passes, and what their parameters look like when fresh."""

import dataclasses
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny
from jax.experimental.compilation_cache import compilation_cache

from src.networks import DEPTH_STEPS, NETWORKS, Actor, Encoder, make_trunk

STATE, GOAL, H_DIM = 5, 2, 16


def relu(x):
    return np.maximum(x, 0)


def swish(x):
    return x / (1 + np.exp(-x))


def dense(params, x):
    return x @ params["kernel"] + params["bias"]


def layer_norm(params, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * params["scale"] + params["bias"]


def hidden_layer(params, number, x, activation):
    x = dense(params[f"Dense_{number}"], x)
    norm = f"LayerNorm_{number}"
    return activation(layer_norm(params[norm], x) if norm in params else x)


def numpy_mlp(params, x, n_hidden):
    for number in range(n_hidden):
        x = hidden_layer(params, number, x, relu)
    return x


def numpy_residual(params, x, n_hidden):
    x = hidden_layer(params, 0, x, swish)
    number = 1
    while number < n_hidden:
        skip, end = x, min(number + 2, n_hidden)
        for inner in range(number, end):
            x = hidden_layer(params, inner, x, swish)
        x, number = x + skip, end
    return x


def numpy_swish(params, x, n_hidden):
    for number in range(n_hidden):
        x = hidden_layer(params, number, x, swish)
    return x


def numpy_residual4(params, x, n_hidden):
    x = hidden_layer(params, 0, x, swish)
    for number in range(n_hidden // 4):
        block = jax.tree.map(lambda leaf, at=number: leaf[at], params["blocks"])
        x = x + numpy_swish(block, x, 4)
    return x


NUMPY_TRUNKS = {
    "mlp": numpy_mlp,
    "swish": numpy_swish,
    "residual": numpy_residual,
    "residual4": numpy_residual4,
    "by_depth": lambda params, x, n_hidden: (numpy_swish if n_hidden < 4 else numpy_residual4)(params, x, n_hidden),
}


def depth_of(name, depth):
    """A legal number of hidden layers."""
    return depth * DEPTH_STEPS.get(name, 4 if name == "by_depth" and depth > 3 else 1)


def dense_layers(name, n_hidden):
    """How many layers a trunk has: `residual4` does not count its input layer."""
    return n_hidden + (name == "residual4" or (name == "by_depth" and n_hidden > 3))


def jittered(params, seed=0):
    """Parameters with every leaf moved off its initial value, so that zero biases and unit scales take part."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: np.asarray(leaf) + 0.3 * random.standard_normal(leaf.shape), params)


def trunk(name, n_hidden, use_ln):
    return NETWORKS[name](h_dim=H_DIM, n_hidden=n_hidden, use_ln=use_ln)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("depth", "use_ln"), [(1, False), (2, True), (4, True), (5, False)])
def test_trunks_match_numpy(name, depth, use_ln):
    n_hidden = depth_of(name, depth)
    module = trunk(name, n_hidden, use_ln)
    x = np.random.default_rng(1).standard_normal((7, STATE))
    params = jittered(jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, STATE)))["params"])
    counts = {"Dense": 0, "LayerNorm": 0}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if path[-1].key == "bias":
            counts[path[-2].key.split("_")[0]] += leaf.size // H_DIM
    layers = dense_layers(name, n_hidden)
    assert counts == {"Dense": layers, "LayerNorm": layers if use_ln else 0}
    outputs = jax.jit(module.apply)({"params": params}, jnp.asarray(x, jnp.float32))
    expected = NUMPY_TRUNKS[name](params, x, n_hidden)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5 * np.max(np.abs(expected)))


def test_a_residual_block_that_says_nothing_leaves_its_input():
    module = trunk("residual", 5, False)
    params = module.init(jax.random.key(0), jnp.zeros((1, STATE)))["params"]
    silent = {
        name: params[name] if name == "Dense_0" else jax.tree.map(jnp.zeros_like, params[name]) for name in params
    }
    x = jnp.ones((1, STATE))
    np.testing.assert_allclose(module.apply({"params": silent}, x), swish(dense(params["Dense_0"], x)), rtol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("use_ln", [False, True])
@pytest.mark.parametrize("depth", [1, 3])
def test_parameter_counts(name, use_ln, depth):
    """Fully connected layers, biases included, and two numbers per unit for LayerNorm."""
    n_hidden = depth_of(name, depth)
    layers = dense_layers(name, n_hidden)
    hidden = (STATE + GOAL) * H_DIM + H_DIM + (layers - 1) * (H_DIM * H_DIM + H_DIM)
    hidden += 2 * H_DIM * layers if use_ln else 0
    inputs = (jnp.zeros((1, STATE)), jnp.zeros((1, GOAL)))
    for module, outputs in [
        (Encoder(trunk(name, n_hidden, use_ln), 6), 6),
        (Actor(trunk(name, n_hidden, use_ln), 3), 2 * 3),
    ]:
        shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
        count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        assert count == hidden + H_DIM * outputs + outputs


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("head", [Encoder, Actor])
def test_fresh_parameters(name, head):
    """Kernels fill U(-b, b) with b = sqrt(3 / inputs) (lecun_uniform); biases are 0; LayerNorm starts as itself."""
    module = head(trunk(name, depth_of(name, 2), True), 6)
    params = jax.jit(module.init)(jax.random.key(1), jnp.zeros((1, STATE)), jnp.zeros((1, GOAL)))["params"]
    kernels = 0
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        kind = path[-1].key
        if kind == "kernel":
            kernels += leaf.shape[0] if leaf.ndim == 3 else 1
            bound = np.sqrt(3 / leaf.shape[-2])
            assert 0.85 * bound < np.max(np.abs(leaf)) <= bound
            assert abs(np.mean(leaf)) < 0.25 * bound
            assert np.std(leaf) == pytest.approx(bound / np.sqrt(3), rel=0.2)
        else:
            np.testing.assert_array_equal(leaf, {"bias": 0, "scale": 1}[kind])
    assert kernels == {"residual4": 10}.get(name, 3)


def test_the_actor_is_a_gaussian_with_a_spread_above_zero():
    module = Actor(trunk("mlp", 1, False), 3)
    inputs = (jnp.ones((4, STATE)), jnp.ones((4, GOAL)))
    params = module.init(jax.random.key(0), *inputs)
    head = np.asarray(params["params"]["Dense_0"]["kernel"])
    hidden = relu(dense(jax.tree.map(np.asarray, params["params"]["trunk"]["Dense_0"]), np.ones((4, STATE + GOAL))))
    mean, std = module.apply(params, *inputs)
    np.testing.assert_allclose(mean, hidden @ head[:, :3], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(std, np.log1p(np.exp(hidden @ head[:, 3:])) + 1e-3, rtol=1e-4)

    params["params"]["Dense_0"]["bias"] = jnp.full(6, -1e4)
    _, narrow = module.apply(params, *inputs)
    assert np.all(narrow > 0)


def test_the_encoder_sees_all_its_inputs():
    module = Encoder(trunk("mlp", 1, False), 4)
    state, action = jnp.ones((2, STATE)), jnp.ones((2, GOAL))
    params = module.init(jax.random.key(0), state, action)
    out = module.apply(params, state, action)
    assert out.shape == (2, 4)
    assert not np.allclose(out, module.apply(params, state, 2 * action))
    assert not np.allclose(out, module.apply(params, 2 * state, action))
    assert module.apply(params, jnp.ones((3, 2, STATE)), jnp.ones((3, 2, GOAL))).shape == (3, 2, 4)


# Depth.


def gradient_of_depth(n_hidden):
    """The gradient of a trunk's output, ready to be compiled."""
    module, x = trunk("residual4", n_hidden, True), jnp.ones((4, STATE))
    params = jax.eval_shape(module.init, jax.random.key(0), x)
    return jax.jit(jax.grad(lambda params: jnp.sum(module.apply(params, x)))).lower(params)


def test_the_blocks_of_a_deep_network_start_apart():
    params = jax.jit(trunk("residual4", 12, False).init)(jax.random.key(0), jnp.ones((1, STATE)))["params"]
    one, two, three = params["blocks"]["Dense_0"]["kernel"]
    assert not np.allclose(one, two)
    assert not np.allclose(two, three)


@pytest.fixture
def nothing_compiled_before():
    """What is compiled is compiled, not found in a cache."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_compiled_before")
def test_compiling_a_deep_network_takes_no_longer_than_a_shallow_one():
    """One block is compiled, whatever the depth: as many instructions, and the time that they take."""
    seconds, instructions = {8: [], 64: []}, {}
    for n_hidden in [8, 64] * 3:
        lowered = gradient_of_depth(n_hidden)
        started = time.perf_counter()
        compiled = lowered.compile()
        seconds[n_hidden].append(time.perf_counter() - started)
        instructions[n_hidden] = len(re.findall(" = ", compiled.as_text()))
    assert instructions[64] == instructions[8]
    assert min(seconds[64]) < 1.5 * min(seconds[8])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_hidden": 2}, "--n_hidden 2 must be a multiple of 4, e.g. 4"),
        ({"n_hidden": 6, "network": "by_depth"}, "--n_hidden 6 must be a multiple of 4, e.g. 8"),
        ({"n_hidden": 4, "critic_n_hidden": 9}, "--critic_n_hidden 9 must be a multiple of 4, e.g. 12"),
    ],
)
def test_a_depth_without_whole_blocks_is_refused(changes, words):
    config = tiny(**{"network": "residual4"} | changes)
    with pytest.raises(ValueError, match=words):
        make_trunk(config, "critic")
    make_trunk(dataclasses.replace(config, n_hidden=8, critic_n_hidden=0), "critic")
