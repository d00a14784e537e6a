"""Metrics over guidance scales, as in Figure 6 of the GLIDE paper.

    python -m glide_jax.evaluate.sweep --checkpoint demo --n 256 --clip demo/clip --plot sweep.png

Samples the same captions at each scale of classifier-free guidance, and of CLIP guidance if there
is a CLIP among the checkpoints; each image of a caption has the same seed at all scales. Plots the
Frechet distance against the CLIP score, and precision against recall. The same command resumes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glide_jax.cli import parse_flags
from glide_jax.compilation import keep_compiled_programs
from glide_jax.diffusion.samplers import SAMPLERS
from glide_jax.errors import UserError, exit_on_user_error, memory_advice
from glide_jax.evaluate.flags import EvaluationFlags
from glide_jax.evaluate.results import BATCH_SIZE, Evaluator, with_px
from glide_jax.evaluate.sampling import sample_images
from glide_jax.evaluation.image_sets import open_images
from glide_jax.evaluation.reference import write_json
from glide_jax.evaluation.suite import in_digits
from glide_jax.images import new_figure, require_figure, save_figure
from glide_jax.parallel.sharding import use_all_cores
from glide_jax.sampling.flags import LESS_MEMORY
from glide_jax.sampling.pipeline import Glide

CLASSIFIER_FREE, CLIP = "classifier-free guidance", "CLIP guidance"


@dataclass(frozen=True, kw_only=True)
class Arguments(EvaluationFlags):
    """Metrics of a model's samples over guidance scales."""

    scales: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0)
    """Classifier-free guidance scales; 1 is none."""
    clip_scales: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """CLIP guidance scales, if there is a CLIP among the checkpoints; 0 is none."""
    clip_sampler: str = "ddpm"
    """Sampler for CLIP guidance; docs/samplers.md says why ddpm."""
    plot: Path | None = None
    """PNG, SVG or PDF file for the plot."""

    def check(self) -> None:
        """Raises UserError for flags that do not fit together."""
        if not self.checkpoint:
            raise UserError("give --checkpoint, the model to sample from")
        if self.clip_sampler not in SAMPLERS:
            raise UserError(
                f"--clip-sampler {self.clip_sampler}: must be one of {', '.join(SAMPLERS)}"
            )
        if self.guidance_scale is not None or self.clip_guidance_scale is not None:
            raise UserError("give --scales and --clip-scales, not one guidance scale")
        require_figure("--plot", self.plot)
        super().check()


@memory_advice(LESS_MEMORY)
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Raises UserError."""
    arguments: Arguments = parse_flags(
        Arguments, "python -m glide_jax.evaluate.sweep", argv, __doc__
    )
    if arguments.clip and not arguments.metrics:
        arguments = replace(arguments, metrics=",".join([*arguments.feature_metrics, "clip_score"]))
    arguments.check()
    use_all_cores(arguments.batch_size or BATCH_SIZE)
    keep_compiled_programs()
    evaluator = Evaluator(arguments)
    points = []
    for kind, scale, flags in plan(arguments):
        sampled = sample_images(flags)
        images = open_images([sampled.folder], preparation=with_px(flags, sampled).preparation)
        results, _, settings = evaluator.results(images, sampled)
        values = {result.name: result.value for result in results}
        errors = {result.name: result.error for result in results}
        points.append(
            {"guidance": kind, "scale": scale, "values": values, "standard_errors": errors}
            | {"settings": settings}
        )
        shown = ", ".join(f"{r.name} {in_digits(r.value, r.error)}" for r in results)
        print(f"{kind} {scale:g}: {shown}", flush=True)
    if arguments.out is not None:
        write_json(arguments.out, points)
        print(arguments.out)
    if arguments.plot is not None:
        plot(points, arguments.plot)
        print(arguments.plot)


def plan(arguments: Arguments) -> Iterator[tuple[str, float, Arguments]]:
    """Kind of guidance, scale, and the flags that sample with it."""
    root = arguments.samples or Path("sweep")
    changes: dict[str, Any]
    for scale in arguments.scales:
        changes = {"guidance_scale": scale, "samples": root / f"classifier-free-{scale:g}"}
        yield CLASSIFIER_FREE, scale, replace(arguments, **changes)
    if not Glide.load(*arguments.checkpoint).has("clip"):
        return
    for scale in arguments.clip_scales:
        changes = {
            "guidance_scale": 1.0,
            "clip_guidance_scale": scale,
            "sampler": arguments.clip_sampler,
            "samples": root / f"clip-{scale:g}",
        }
        yield CLIP, scale, replace(arguments, **changes)


def plot(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws the Frechet distance against the CLIP score, and precision against recall.

    Raises:
        UserError: neither pair was measured, or the file cannot be written.
    """
    names = list(points[0]["values"])

    def named(*starts: str) -> str | None:
        return next((name for name in names if name.startswith(starts)), None)

    pairs = [
        (named("CLIP score"), named("FD", "FID") or named("KID")),
        (named("recall"), named("precision")),
    ]
    shown = [pair for pair in pairs if None not in pair]
    if not shown:
        raise UserError(
            "--plot needs the metrics fd (or fid, kid) and clip_score, or precision_recall"
        )
    figure = new_figure(5.5 * len(shown), 4.5)
    for axes, (x, y) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for kind in dict.fromkeys(point["guidance"] for point in points):
            curve = [point for point in points if point["guidance"] == kind]
            xs, ys = ([point["values"][name] for point in curve] for name in (x, y))
            x_errors, y_errors = (
                [point["standard_errors"][name] or 0 for point in curve] for name in (x, y)
            )
            axes.errorbar(xs, ys, y_errors, x_errors, marker="o", capsize=2, label=kind)
            for point, where in zip(curve, zip(xs, ys, strict=True), strict=True):
                label = f"{point['scale']:g}"
                axes.annotate(label, where, xytext=(5, 5), textcoords="offset points", fontsize=8)
        axes.set(xlabel=x, ylabel=y)
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(path, figure)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
