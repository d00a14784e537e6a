"""Parts of the training loop, without training."""

from unittest.mock import MagicMock

from glide_jax import UserError
from glide_jax.config import Config
from glide_jax.runs.state import TrainState
from glide_jax.train import Parts, log_samples


def stand_in(kind, **attributes):
    mock = MagicMock(**attributes)
    mock.__class__ = kind
    return mock


def test_samples_that_are_not_finite_do_not_end_a_run():
    parts = stand_in(Parts)
    parts.run.config = Config()
    parts.preview.sample.side_effect = UserError("sampling gave numbers that are not finite")
    log_samples(parts, stand_in(TrainState, step=7, ema={}))
    parts.log.say.assert_called_with(
        "step 7: no samples: sampling gave numbers that are not finite"
    )
    parts.log.samples.assert_not_called()
    parts.preview.sample.side_effect = None
    parts.log.samples.side_effect = UserError("cannot write x.png: disk full")
    log_samples(parts, stand_in(TrainState, step=7, ema={}))
    parts.log.say.assert_called_with("step 7: no samples: cannot write x.png: disk full")
