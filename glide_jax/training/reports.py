"""What a run reports beside its steps: its start and end, validation losses, samples, metrics."""

from collections.abc import Callable
from time import perf_counter

import jax

from glide_jax.data.mixture import parts_of
from glide_jax.data.records import Source
from glide_jax.errors import UserError
from glide_jax.parallel import sharding
from glide_jax.runs.folder import Run
from glide_jax.runs.state import TrainState
from glide_jax.sampling.stage import Weights
from glide_jax.training.data_report import data_report
from glide_jax.training.logging import RunLog, validation_line
from glide_jax.training.preview import Preview
from glide_jax.training.profiling import memory_report
from glide_jax.training.step import Trainer
from glide_jax.training.validation import Validator

Evaluate = Callable[[Weights], tuple[dict[str, float], str]]
"""`parameters -> (metrics of samples by name, the same in words)`."""


def report_start(
    log: RunLog, run: Run, trainer: Trainer, source: Source, step: int, starts_from: str
) -> None:
    """Prints the sizes of a run, its memory per device, and how well its data fit.

    Args:
        log: of the run.
        run: the run.
        trainer: of the run.
        source: its training split.
        step: from which it resumes; 0: it starts.
        starts_from: the run that it starts from, or empty.
    """
    if not log.lead:  # reading records takes seconds
        return
    ignored = ", train.init_from ignored" if run.config.train.init_from else ""
    log.say(
        f"{run.path}: {run.network.parameter_count / 1e6:.1f}M parameters, "
        f"{sum(map(len, parts_of(source))):,} images, "
        f"{jax.device_count()} {jax.devices()[0].platform} device(s)"
        + (f", initialized from {starts_from}" if starts_from else "")
        + (f", resumed at step {step:,}{ignored}" if step else "")
    )
    for line in (memory_report(trainer), *data_report(run.config, source, run.tokenizer)):
        log.say(line)


def report_end(log: RunLog, run: Run, step: int) -> None:
    """Prints how the run ended, given its last step."""
    steps = run.config.train.steps
    stopped = f"stopped at step {step:,} of {steps:,}; the same command resumes"
    log.say(stopped if step < steps else f"done: {step:,} steps in {run.path}")


def report_validation(log: RunLog, validator: Validator, state: TrainState) -> dict[str, float]:
    """Logs the losses of the held-out images, and returns them. All processes must call it."""
    step, started = int(state.step), perf_counter()
    images = "1 image" if validator.examples == 1 else f"{validator.examples:,} images"
    log.say(f"step {step:,}: validating on {images}")
    values = validator(state)
    log.write(step, values)
    log.say(f"step {step:,}: {validation_line(values, perf_counter() - started)}")
    log.copy()
    log.restart_clock()
    return values


def report_samples(log: RunLog, preview: Preview | None, state: TrainState) -> None:
    """Logs a grid of samples. All processes must call it; the lead alone has a preview."""
    step, started = int(state.step), perf_counter()
    log.say(f"step {step:,}: sampling")
    ema = _full_ema(state)
    if preview is not None:
        try:
            file = log.samples(step, preview.sample(ema))
            seconds = perf_counter() - started
            log.say(f"step {step:,}: samples in {file}, {seconds:.0f} s")
        except UserError as error:  # the parameters may recover, as may a full disk
            log.say(f"step {step:,}: no samples: {error}")
    log.copy()
    log.restart_clock()


def report_evaluation(
    log: RunLog, evaluate: Evaluate | None, state: TrainState
) -> dict[str, float]:
    """Logs metrics of samples, and returns them. All processes must call it; the lead evaluates."""
    step, started = int(state.step), perf_counter()
    log.say(f"step {step:,}: sampling to evaluate")
    ema = _full_ema(state)
    values: dict[str, float] = {}
    if evaluate is not None:
        try:
            values, summary = evaluate(ema)
            log.write(step, values)
            log.say(f"step {step:,}: samples: {summary}, {perf_counter() - started:.0f} s")
        except UserError as error:  # the parameters may recover
            log.say(f"step {step:,}: no evaluation: {error}")
    log.copy()
    log.restart_clock()
    return values


def _full_ema(state: TrainState) -> Weights:
    """The EMA parameters for the lead, which samples alone. All processes must call it."""
    # Each process may hold a part of the parameters.
    return state.ema if jax.process_count() == 1 else sharding.to_host(state.ema)
