"""Trains a GLIDE model: configuration, data, model, step, loop.

    python train.py --config configs/scenes_tiny.py --optim.learning-rate 3e-4

Started again, it resumes from the run folder's newest checkpoint. Ctrl-C and SIGTERM save first.
"""

import signal
import sys
from pathlib import Path
from time import perf_counter

import jax
import numpy as np

from glide_jax.command_line import keep_compiled_programs, parse_config
from glide_jax.config import Config
from glide_jax.data.loader import Loader, validation_batches
from glide_jax.data.records import first_captions
from glide_jax.data.sources import open_source
from glide_jax.data.tokenizer import Tokenizer, make_tokenizer
from glide_jax.errors import UserError, exit_on_user_error
from glide_jax.models.glide import glide_network
from glide_jax.pictures import draw_grid, save_png
from glide_jax.stage import Stage
from glide_jax.training import sharding
from glide_jax.training.checkpoint import TOKENIZER, Checkpoints, open_run_folder
from glide_jax.training.logging import RunLog
from glide_jax.training.step import Trainer, TrainState


def train(config: Config, run_dir: Path) -> None:
    """Trains until `config.train.steps`, or until asked to stop."""
    settings, model = config.train, config.denoiser
    if model.condition_channels:
        raise UserError(
            "only base models can be trained so far: model.low_res_px must be 0 and model.inpaint "
            "False (others are converted, see docs/using-openai-weights.md)"
        )
    keep_compiled_programs()
    sharding.use_all_cores(settings.batch_examples // settings.micro_batches)
    lead = jax.process_index() == 0

    # Data ------------------------------------------------------------------------------------

    source = open_source(config.data, config.data.train_split)
    held_out = open_source(config.data, config.data.validation_split)
    open_run_folder(run_dir, config)
    if (run_dir / TOKENIZER).is_dir():
        tokenizer = Tokenizer.load(run_dir / TOKENIZER)
    else:
        tokenizer = make_tokenizer(config.data, model.text.vocab_size, source)
        tokenizer.save(run_dir / TOKENIZER)

    # Model and state -------------------------------------------------------------------------

    network = glide_network(model)
    mesh = sharding.make_mesh(config)
    trainer = Trainer(config, network, mesh)
    checkpoints = Checkpoints(run_dir, kept=settings.checkpoints_kept)
    if checkpoints.latest_step is None:
        state = trainer.init()
        loader_state, log_state = None, None
    else:
        state, host_state = checkpoints.restore(trainer.abstract_state, trainer.state_shardings)
        loader_state, log_state = host_state["loader"], host_state["log"]
    step = int(state.step)
    share = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    loader = Loader(source, tokenizer, config, **share, state=loader_state)
    validation = list(validation_batches(held_out, tokenizer, config, **share))
    prompts = list(settings.sample_prompts) or first_captions(held_out, 8)

    log = RunLog(run_dir, step, settings.steps, settings.batch_examples)
    if log_state is not None:
        log.restore(log_state)
    log.say(
        f"{run_dir}: {network.parameter_count / 1e6:.1f}M parameters, {len(source):,} pictures, "
        f"{jax.device_count()} {jax.devices()[0].platform} device(s)"
        + (f", resumed at step {step:,}" if step else "")
    )

    def save() -> None:
        checkpoints.save(state, {"loader": loader.state(), "log": log.state()})

    def validate(state: TrainState) -> dict[str, float]:
        losses = [trainer.validate(state.ema, sharding.to_devices(b, mesh)) for b in validation]
        mean = jax.tree.map(lambda *values: float(np.mean(values)), *losses)
        return {f"validation_{name}": value for name, value in mean._asdict().items()}

    def draw_samples(state: TrainState) -> None:
        stage = Stage(config, state.ema, tokenizer)
        pictures = stage.draw(prompts, [0] * len(prompts), config.sample)
        if lead:
            grid = draw_grid(pictures, prompts, columns=4)
            save_png(run_dir / "samples" / f"{step:07d}.png", grid)
            log.picture(step, "samples", grid)

    # Loop ------------------------------------------------------------------------------------

    stop = StopRequest()
    try:
        while step < settings.steps and not stop.requested:
            waited = perf_counter()
            batch = sharding.to_devices(next(loader), mesh)
            waited = perf_counter() - waited
            state, metrics = trainer.step(state, batch)
            step += 1
            log.step({name: float(value) for name, value in metrics._asdict().items()}, waited)

            if metrics.skipped_in_a_row >= settings.max_bad_steps:
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
                )
            if settings.validate_every_steps and step % settings.validate_every_steps == 0:
                log.write(step, validate(state))
                log.restart_clock()
            if settings.sample_every_steps and step % settings.sample_every_steps == 0:
                draw_samples(state)
                log.restart_clock()
            if step % settings.checkpoint_every_steps == 0:
                save()

        if checkpoints.latest_step != step:
            save()
        checkpoints.close()
        loader.close()
    finally:
        log.close()
    if step < settings.steps:
        print(f"stopped at step {step:,} of {settings.steps:,}; the same command goes on from here")
    else:
        print(f"done: {step:,} steps in {run_dir}")


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


def main() -> None:
    """The command."""
    file, config = parse_config(sys.argv[1:], "train.py", "Trains a GLIDE model.")
    train(config, Path(config.train.run_dir or f"runs/{file.stem}"))


if __name__ == "__main__":
    with exit_on_user_error():
        main()
