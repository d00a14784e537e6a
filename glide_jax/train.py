"""Trains a GLIDE model: configuration, data, model, step, loop.

    python train.py --config configs/scenes_tiny.py --optim.learning-rate 3e-4

Started again, it resumes from the run folder's newest checkpoint. Ctrl-C and SIGTERM save first.
On several machines, once on each: docs/multi-host.md.
"""

import os
import signal
import sys
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter

import jax

from glide_jax.cli import keep_compiled_programs, parse_command
from glide_jax.config import ClipConfig, Config
from glide_jax.data.loader import Loader, validation_batches
from glide_jax.data.mixture import parts_of
from glide_jax.data.records import Source
from glide_jax.data.sources import open_source
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.data.tokenizers.build import make_tokenizer, tokenizer_class
from glide_jax.errors import UserError, exit_on_user_error
from glide_jax.images import save_png
from glide_jax.parallel import sharding
from glide_jax.parallel.chips import chip_of
from glide_jax.parallel.launch import Launch, LaunchFlags, any_process, joined, require_same
from glide_jax.parallel.process_group import ProcessGroup
from glide_jax.runs.checkpoint import Checkpoints
from glide_jax.runs.fine_tune import starting_params
from glide_jax.runs.folder import Run, require_shared
from glide_jax.runs.layout import last_step
from glide_jax.sampling.clip import ClipStage
from glide_jax.storage import AnyPath, MirroredFolder, path_of
from glide_jax.training.build import make_objective
from glide_jax.training.flops import abstract_batch, step_flops
from glide_jax.training.logging import METRICS, RunLog
from glide_jax.training.preview import Preview
from glide_jax.training.profiling import Profile, ProfileFlags, memory_report, peak_memory
from glide_jax.training.step import Trainer
from glide_jax.training.validation import summary


def train(config: Config, run_dir: AnyPath, group: ProcessGroup, profile: Profile) -> None:
    """Trains until `config.train.steps`, or until asked to stop.

    Args:
        config: the run.
        run_dir: its folder, which all processes see.
        group: the processes that train together; the lead alone writes, but for checkpoints.
        profile: of which steps a trace is wanted.
    """
    settings, lead = config.train, group.lead

    # Data ------------------------------------------------------------------------------------

    source = open_source(config.data, config.data.train_split)
    held_out = open_source(config.data, config.data.validation_split)
    images = sum(map(len, parts_of(source)))
    require_same(group, config, images)
    resumes = group.gather(last_step(run_dir) is not None)[0]
    start = Run.open(settings.init_from) if settings.init_from and not resumes else None
    initial = starting_params(start, config) if start else None
    if lead:
        start = Run.open(run_dir) if resumes else start
        tokenizer = start.tokenizer if start else new_tokenizer(config, source)
    clip = ClipStage.load(Run.open(settings.clip_run)) if settings.clip_loss_weight else None
    if lead:
        Run.create(run_dir, config, tokenizer)
    group.barrier()
    if not lead:
        require_shared(run_dir, config)
        tokenizer = Run.open(run_dir).tokenizer

    # Model and state -------------------------------------------------------------------------

    is_clip = isinstance(config.model, ClipConfig)
    if is_clip and images < settings.batch_examples:
        raise UserError(
            f"train.batch_examples ({settings.batch_examples}) must be at most the number of "
            f"images ({images}): a CLIP cannot tell an image from itself"
        )
    objective = make_objective(config, clip)
    mesh = sharding.make_mesh(config)
    trainer = Trainer(config, objective, mesh)
    checkpoints = Checkpoints(run_dir, settings.max_checkpoints, group)
    if not resumes:
        state = trainer.init(initial)
        loader_state, log_state = None, None
    else:
        state, host_state = checkpoints.restore(trainer.abstract_state, trainer.state_shardings)
        loader_state, log_state = host_state["loader"], host_state["log"]
    del initial  # as large as the model
    first = step = int(state.step)
    share = {
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
        "clip_tokenizer": clip and clip.tokenize,
    }
    loader = Loader(source, tokenizer, config, **share, state=loader_state)
    validation, preview = [], None
    if settings.validate_every_steps:
        batched = for_validation(config, len(held_out)) if is_clip else config
        validation = list(validation_batches(held_out, tokenizer, batched, **share))
    if settings.sample_every_steps and not is_clip and lead:
        preview = Preview(config, tokenizer, held_out)

    chip = chip_of(jax.devices()[0].device_kind)
    growing = MirroredFolder(run_dir, (METRICS,) if lead else ())
    log = RunLog(
        growing.path,
        step,
        settings.steps,
        settings.batch_examples,
        flops=step_flops(objective, abstract_batch(config, clip.config if clip else None))
        if chip
        else 0.0,
        peak_flops=chip.flops * jax.device_count() if chip else 0.0,
        lead=lead,
    )
    if log_state is not None:
        log.restore(log_state)
    log.say(
        f"{run_dir}: {objective.network.parameter_count / 1e6:.1f}M parameters, "
        f"{images:,} images, {jax.device_count()} {jax.devices()[0].platform} device(s)"
        + (f", from {settings.init_from}" if settings.init_from else "")
        + (f", resumed at step {step:,}" if step else "")
    )
    log.say(memory_report(trainer))

    def save() -> None:
        growing.copy()  # before what resumes from there
        checkpoints.save(state, {"loader": loader.state(), "log": log.state()})

    def validate() -> dict[str, float]:
        values = {}
        for params, suffix in ((state.ema, ""), (state.params, "_raw")):
            results = [
                sharding.to_host(trainer.validate(params, sharding.to_devices(batch, mesh), k))
                for k, batch in enumerate(validation)
            ]
            for name, value in summary(results, objective.timestep_count).items():
                values[f"validation_{name}{suffix}"] = value
        return values

    def draw_samples() -> None:
        if is_clip:
            return
        # Others may hold parts of it; they wait for the lead in the next step.
        ema = state.ema if group.count == 1 else sharding.to_host(state.ema)
        if preview is not None:
            grid = preview.draw(ema)
            save_png(run_dir / "samples" / f"{step:07d}.png", grid)
            log.image(step, "samples", grid)

    # Loop ------------------------------------------------------------------------------------

    stop, stops = StopRequest(), False
    try:
        while step < settings.steps and not stops:
            traced = profile.before_step(growing.path / "profile", run_dir / "profile")
            if traced:
                growing.copy()  # before it is said to be there
            log.say(traced)
            waited = perf_counter()
            batch = sharding.to_devices(next(loader), mesh)
            waited = perf_counter() - waited
            state, metrics = trainer.step(state, batch)
            step += 1
            # Waits for the step. Two at once, with collectives between CPU devices, can deadlock.
            values = {name: float(value) for name, value in metrics.items()}
            log.step(values, waited)
            if step == first + 1:
                log.restart_clock()  # it was compiled
            stops = any_process(stop.requested)

            if values["skipped_in_a_row"] >= settings.max_bad_steps:
                raise UserError(
                    f"step {step}: {settings.max_bad_steps} steps in a row had a loss or gradient "
                    "that is not finite; lower optim.learning_rate and start again: "
                    f"{run_dir} keeps its last checkpoint (step {checkpoints.latest_step})"
                )
            if step % settings.log_every_steps == 0:
                log.write_window(
                    step,
                    truncated_captions=tokenizer.truncated,
                    bad_records=loader.bad_records,
                    **peak_memory(),
                )
            if step % settings.checkpoint_every_steps == 0:
                save()
            if settings.validate_every_steps and step % settings.validate_every_steps == 0:
                log.write(step, validate())
                growing.copy()
                log.restart_clock()
            if settings.sample_every_steps and step % settings.sample_every_steps == 0:
                draw_samples()
                growing.copy()
                log.restart_clock()

        if checkpoints.latest_step != step:
            save()
        checkpoints.close()
        loader.close()
    finally:
        traced = profile.end(growing.path / "profile", run_dir / "profile")
        log.close()
        growing.close()
        log.say(traced)
    if not lead:
        return
    if step < settings.steps:
        print(f"stopped at step {step:,} of {settings.steps:,}; the same command goes on from here")
    else:
        print(f"done: {step:,} steps in {run_dir}")


def new_tokenizer(config: Config, source: Source) -> Tokenizer:
    """A tokenizer trained on all captions: later runs may resume with those left out here."""
    kind = tokenizer_class(config.model)
    if config.data.caption_pattern:
        source = open_source(replace(config.data, caption_pattern=""), config.data.train_split)
    return make_tokenizer(config.data, config.model.text.vocab_size, source, kind)


def for_validation(config: Config, held_out: int) -> Config:
    """The run with a batch in which no held-out image comes twice: a CLIP could not tell which.

    Raises:
        UserError: there are too few images for it, or for the batch that it is trained on.
    """
    settings = config.train
    least = jax.device_count() * settings.micro_batches
    whole = min(settings.validation_examples, held_out) // least * least
    if not whole:
        raise UserError(
            f"a CLIP is validated by telling images apart, and {least} are needed for that: give "
            "more, or --train.validate-every-steps 0"
        )
    batch = min(settings.batch_examples, whole)
    return replace(config, train=replace(settings, batch_examples=batch))


class StopRequest:
    """Ctrl-C or SIGTERM, remembered until the loop can save; a second one ends the program."""

    def __init__(self) -> None:
        self.requested = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


@dataclass(frozen=True, kw_only=True)
class Flags(LaunchFlags, ProfileFlags):
    """This start of the run: its processes, and a trace of some steps."""


def main() -> None:
    """The command."""
    name, config, flags = parse_command(sys.argv[1:], "train.py", "Train a model.", Flags)
    launch, profile = Launch.of(flags, os.environ), Profile.of(flags)
    run_dir = path_of(config.train.run_dir or f"runs/{name}")
    keep_compiled_programs()
    examples = config.train.batch_examples // config.train.micro_batches
    sharding.use_all_cores(examples, launch.processes, launch.sharing_cores)
    with joined(launch, partial(last_step, run_dir)) as group:
        train(config, run_dir, group, profile)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
