"""Train a model: configuration, data, model, state, loop.

    python train.py --config configs/scenes_tiny.py --optim.learning-rate 3e-4

The same command resumes the run from its newest checkpoint. Ctrl-C, SIGTERM and SIGHUP save one
first. With several processes, run the command once per process: docs/multi-host.md.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter

from jax.sharding import Mesh

from glide_jax.cli import parse_command
from glide_jax.compilation import keep_compiled_programs
from glide_jax.config import Config, ModelConfig
from glide_jax.data.loader import Loader
from glide_jax.data.mixture import parts_of
from glide_jax.data.sources import open_source
from glide_jax.errors import UserError, exit_on_user_error, memory_advice
from glide_jax.evaluation.during_training import TrainingEvaluation, extractor_of
from glide_jax.parallel import sharding
from glide_jax.parallel.launch import Launch, LaunchFlags, joined, require_same
from glide_jax.parallel.process_group import ProcessGroup
from glide_jax.runs.checkpoint import Checkpoints
from glide_jax.runs.fine_tune import starting_params, with_starting_sizes
from glide_jax.runs.folder import Run
from glide_jax.runs.kept import Kept
from glide_jax.runs.lock import sole_training
from glide_jax.runs.paths import last_step, run_dir_of
from glide_jax.runs.state import TrainState
from glide_jax.storage import AnyPath
from glide_jax.training import reports
from glide_jax.training.build import (
    clip_run_of,
    initial_params,
    make_objective,
    require_startable,
    share_of_batches,
    tokenizer_of,
    with_clip,
)
from glide_jax.training.flops import utilization_flops
from glide_jax.training.frozen_clip import FrozenClip
from glide_jax.training.logging import RunLog
from glide_jax.training.pending import PendingMetrics, StepReport
from glide_jax.training.preview import Preview
from glide_jax.training.profiling import Profile, ProfileFlags, peak_memory
from glide_jax.training.step import Trainer
from glide_jax.training.stop import StopRequest
from glide_jax.training.validation import Validator

LESS_MEMORY = (
    "use --model.remat blocks, then more --train.micro-batches, then fewer --train.batch-examples"
)


@memory_advice(LESS_MEMORY)
def train(config: Config, run_dir: AnyPath, group: ProcessGroup, profile: Profile) -> None:
    """Trains until `config.train.steps` or a request to stop.

    Settings and inputs, except all images, are checked before the run folder is written.

    Args:
        config: of the run.
        run_dir: the run folder, on storage that all processes share.
        group: the processes of the run. All save checkpoints; the lead alone writes the rest.
        profile: of which steps to trace.
    """
    # Data: both splits, the same in all processes.
    settings = config.train
    source = open_source(config.data, config.data.train_split)
    held_out = open_source(config.data, config.data.validation_split)
    require_same(group, config, sum(map(len, parts_of(source))))
    require_startable(config, source, len(held_out))
    clip_run = clip_run_of(config)
    config = with_clip(config, clip_run)

    # Start: the newest checkpoint if there is one, else train.init_from, else random parameters.
    resumes = group.gather(last_step(run_dir) is not None)[0]
    starts_from = "" if resumes else settings.init_from
    initial = starting_params(Run.open(starts_from), config) if starts_from else None

    # Model: objective, mesh, then the shapes and shardings of the train state.
    clip = None if clip_run is None else FrozenClip.load(clip_run)
    objective = make_objective(config, clip)
    mesh = sharding.make_mesh(config)
    trainer = Trainer(config, objective, mesh)
    extractor = extractor_of(config) if group.lead else None  # all have devices now

    # Run folder: the lead creates or updates it; the other processes wait, then read it.
    tokenizer = partial(tokenizer_of, config, source, run_dir if resumes else starts_from)
    run = Run.create_shared(run_dir, config, tokenizer, group)
    checkpoints = Checkpoints(run_dir, Kept.of(run_dir, settings, group), group)

    # State: every array is restored or initialized once, with its final sharding.
    share = share_of_batches(config, clip_run)
    if resumes:
        state, resumed = checkpoints.restore(trainer.abstract_state, trainer.state_shardings)
    else:
        initial = initial or initial_params(objective, source, run.tokenizer, mesh, **share)
        state, resumed = trainer.init(initial), {"loader": None, "log": None}
    del initial  # as large as the model

    # Loop: loader and log resume where the checkpoint was saved.
    place = partial(sharding.to_devices, mesh=mesh)
    loader = Loader(source, run.tokenizer, config, **share, state=resumed["loader"], place=place)
    validator = Validator.open(run, trainer, mesh, held_out, **share)
    preview = Preview.open(run, held_out, clip) if group.lead else None
    evaluate = TrainingEvaluation(run, held_out, extractor, clip) if extractor else None
    flops = utilization_flops(objective, config, clip.config if clip else None)
    with RunLog(run, int(state.step), profile, resumed["log"], **flops, lead=group.lead) as log:
        reports.report_start(log, run, trainer, source, int(state.step), starts_from)
        parts = Parts(run, mesh, trainer, checkpoints, loader, validator, preview, evaluate, log)
        with StopRequest(log.say, group, int(state.step)) as stop, checkpoints, loader:
            step = loop(parts, state, stop)
    reports.report_end(log, run, step)


@dataclass(frozen=True)
class Parts:
    """The parts of a run that its loop uses."""

    run: Run
    mesh: Mesh
    trainer: Trainer
    checkpoints: Checkpoints
    loader: Loader
    validator: Validator | None
    preview: Preview | None
    evaluate: reports.Evaluate | None
    """These two of the lead only."""
    log: RunLog


def loop(parts: Parts, state: TrainState, stop: StopRequest) -> int:
    """Trains until the last step or a request to stop. Returns the step of the last checkpoint."""
    settings, log = parts.run.config.train, parts.log
    has_samples = isinstance(parts.run.config.model, ModelConfig)
    first = step = int(state.step)
    pending = PendingMetrics(parts.mesh.devices.flat[0].platform)
    stopping = False
    while step < settings.steps and not stopping:
        log.before_step(state)
        started = perf_counter()
        batch = next(parts.loader)
        wait_s = perf_counter() - started
        if step == first:
            log.say(f"step {step + 1:,}: compiling, which takes minutes for a large model")
            started = perf_counter()
        state, metrics = parts.trainer.step(state, batch)
        step += 1
        pending.add(step, metrics, wait_s)
        stopping = stop.after(step)

        # The host waits for this step only if it then uses the state.
        saves = due(step, settings.checkpoint_every_steps, settings.keep_checkpoint_every_steps)
        validates = due(step, settings.validate_every_steps)
        samples = has_samples and due(step, settings.sample_every_steps)
        ends = stopping or step == settings.steps
        evaluates = due(step, settings.evaluate_every_steps)
        waits = saves or validates or samples or evaluates or ends or step == first + 1
        for report in pending.read(last=waits):
            log.step(report.metrics, report.wait_s)
            if report.step == first + 1:
                log.say(f"step {step:,}: compiled and computed in {perf_counter() - started:.0f} s")
                log.restart_clock()
            after_step(parts, report)
        if saves:
            save(parts, state)
        values: dict[str, float] = {}
        if validates and parts.validator is not None:
            values |= reports.report_validation(log, parts.validator, state)
        if samples:
            reports.report_samples(log, parts.preview, state)
        if evaluates:
            values |= reports.report_evaluation(log, parts.evaluate, state)
        if (validates or evaluates) and parts.checkpoints.is_best(step, values):
            save(parts, state)

    if parts.checkpoints.latest_step != step:
        save(parts, state)
    return step


def due(step: int, *intervals: int) -> bool:
    """Whether something is done after this step, given its intervals in steps; 0: never."""
    return any(interval > 0 and step % interval == 0 for interval in intervals)


def save(parts: Parts, state: TrainState) -> None:
    """Starts to write a checkpoint of the state, the loader's position and the log."""
    parts.log.copy()  # first: the log must reach as far as any checkpoint
    parts.checkpoints.save(state, {"loader": parts.loader.state(), "log": parts.log.state()})


def after_step(parts: Parts, report: StepReport) -> None:
    """Logs the last steps if a line is due. Raises UserError after too many bad steps in a row."""
    settings, step = parts.run.config.train, report.step
    if report.metrics["skipped_in_a_row"] >= settings.max_bad_steps:
        raise UserError(
            f"step {step}: loss or gradient was not finite in {settings.max_bad_steps} steps "
            "in a row; lower optim.learning_rate and start again: "
            f"{parts.run.path} {parts.checkpoints.kept()}"
        )
    if due(step, settings.log_every_steps) or step == settings.steps:
        parts.log.write_window(
            step,
            truncated_captions=parts.run.tokenizer.truncated,
            bad_records=parts.loader.bad_records,
            **peak_memory(),
        )


@dataclass(frozen=True, kw_only=True)
class Flags(LaunchFlags, ProfileFlags):
    """This start of the run: its processes, and a profile of some steps."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command. Raises UserError."""
    argv = sys.argv[1:] if argv is None else argv
    command = "train.py", "Train a model.", Flags
    name, config, flags = parse_command(argv, *command, with_starting_sizes)
    launch, profile = Launch.of(flags, os.environ), Profile.of(flags)
    run_dir = run_dir_of(name, config)
    keep_compiled_programs()
    examples = config.train.batch_examples // config.train.micro_batches
    sharding.use_all_cores(examples, launch.processes, launch.sharing_cores)
    with (
        joined(launch, partial(last_step, run_dir)) as group,
        sole_training(run_dir, lead=group.lead),
    ):
        train(config, run_dir, group, profile)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
