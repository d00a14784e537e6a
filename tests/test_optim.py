import numpy as np

from glide_jax.config import OptimConfig
from glide_jax.training.optim import learning_rate


def test_learning_rate_warms_up_and_decays():
    rate = learning_rate(OptimConfig(learning_rate=1.0, warmup_steps=10, decay_steps=110))
    np.testing.assert_allclose(
        [rate(0), rate(5), rate(10), rate(60), rate(110)], [0, 0.5, 1, 0.5, 0]
    )
    constant = learning_rate(OptimConfig(learning_rate=1.0, warmup_steps=10))
    np.testing.assert_allclose([constant(5), constant(10), constant(10**6)], [0.5, 1, 1])
    at_once = learning_rate(OptimConfig(learning_rate=1.0, warmup_steps=0))
    np.testing.assert_allclose([at_once(0), at_once(10**6)], [1, 1])
