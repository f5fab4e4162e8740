"""JAX as this code needs it, whatever variables that are meant for other programs say."""

import os

import jax

from utils import ConfigError


def all_devices() -> list[jax.Device]:
    """JAX's devices; from here on numbers of several types and shapes mix as usual.

    Raises:
      ConfigError: it finds none, as on a machine that lacks those that JAX_PLATFORMS names.
    """
    # brax's engines and our own code mix them: JAX_NUMPY_DTYPE_PROMOTION=strict would end a run while it is compiled.
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_numpy_rank_promotion", "allow")
    try:
        return jax.devices()
    except Exception as error:  # whatever a platform raises; an AssertionError without a word is one of them
        wanted = os.environ.get("JAX_PLATFORMS", "")
        said = " ".join(str(error).split())[:300] or type(error).__name__
        remedy = f"JAX_PLATFORMS={wanted}: no such device here, unset it" if wanted else "JAX finds no device"
        raise ConfigError(f"{remedy} ({said})") from None
