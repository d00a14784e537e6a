import jax.numpy as jnp
import numpy as np

from glide_jax.config import OptimConfig
from glide_jax.training.ema import ema_decay


def test_ema_decay_rises_to_its_limit():
    config = OptimConfig(ema_decay=0.99)
    decays = [float(ema_decay(config, jnp.int32(step))) for step in (0, 90, 10_000)]
    np.testing.assert_allclose(decays, [0.1, 0.91, 0.99], rtol=1e-6)
