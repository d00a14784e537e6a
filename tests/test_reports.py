"""Reports of a run, without training."""

from unittest.mock import MagicMock

from glide_jax import UserError
from glide_jax.runs.state import TrainState
from glide_jax.training.logging import RunLog
from glide_jax.training.preview import Preview
from glide_jax.training.reports import report_samples


def stand_in(kind, **attributes):
    mock = MagicMock(**attributes)
    mock.__class__ = kind
    return mock


def test_samples_that_are_not_finite_do_not_end_a_run():
    log, preview = stand_in(RunLog), stand_in(Preview)
    preview.sample.side_effect = UserError("sampling gave numbers that are not finite")
    report_samples(log, preview, stand_in(TrainState, step=7, ema={}))
    log.say.assert_called_with("step 7: no samples: sampling gave numbers that are not finite")
    log.samples.assert_not_called()
    preview.sample.side_effect = None
    log.samples.side_effect = UserError("cannot write x.png: disk full")
    report_samples(log, preview, stand_in(TrainState, step=7, ema={}))
    log.say.assert_called_with("step 7: no samples: cannot write x.png: disk full")
