"""Metrics over guidance scales, as in Figure 6 of the GLIDE paper.

    python -m glide_jax.evaluate.sweep --checkpoint demo --n 256 --clip demo/clip --plot sweep.png

Samples the same captions at each scale of classifier-free guidance, and of CLIP guidance if there
is a CLIP among the checkpoints; each image of a caption has the same seed at all scales. Plots the
Frechet distance (or KID) against CLIP score and Inception Score, and precision against recall. The
same command resumes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glide_jax.cli import parse_flags
from glide_jax.compilation import keep_compiled_programs
from glide_jax.errors import UserError, exit_on_user_error, memory_advice
from glide_jax.evaluate.flags import EvaluationFlags
from glide_jax.evaluate.results import Evaluator, with_px
from glide_jax.evaluate.sampling import sample_images
from glide_jax.evaluation.features import BATCH_SIZE
from glide_jax.evaluation.guidance_scales import Curve, ScaleFlags, draw_curves, label_scales
from glide_jax.evaluation.image_sets import open_images
from glide_jax.evaluation.reference import write_json
from glide_jax.evaluation.suite import in_digits
from glide_jax.images import new_figure, require_figure, save_figure
from glide_jax.parallel.sharding import use_all_cores
from glide_jax.sampling.flags import LESS_MEMORY
from glide_jax.sampling.pipeline import Glide

CLASSIFIER_FREE, CLIP = "classifier-free guidance", "CLIP guidance"


@dataclass(frozen=True, kw_only=True)
class Arguments(ScaleFlags, EvaluationFlags):
    """Metrics of a model's samples over guidance scales."""

    plot: Path | None = None
    """PNG, SVG or PDF file for the plot."""

    def check(self) -> None:
        """Raises UserError for flags that do not fit together."""
        if not self.checkpoint:
            raise UserError("give --checkpoint, the model to sample from")
        self.check_scales()
        require_figure("--plot", self.plot)
        super().check()
        measured = {*self.feature_metrics, *self.caption_metrics}
        if self.clip:
            measured.add("clip_score")
        pairs = {"fd", "fid", "kid"} & measured and {"clip_score", "is"} & measured
        if self.plot is not None and not (pairs or "precision_recall" in measured):
            raise UserError(
                "--plot needs the metrics fd (or fid, kid) and clip_score, or precision_recall"
            )


@memory_advice(LESS_MEMORY)
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Raises UserError."""
    arguments: Arguments = parse_flags(
        Arguments, "python -m glide_jax.evaluate.sweep", argv, __doc__
    )
    arguments.check()
    if arguments.clip and not arguments.metrics:
        arguments = replace(arguments, metrics=",".join([*arguments.feature_metrics, "clip_score"]))
    use_all_cores(arguments.batch_size or BATCH_SIZE)
    keep_compiled_programs()
    evaluator = Evaluator(arguments)
    points = []
    glide = Glide.load(*arguments.checkpoint, fsdp=arguments.fsdp)
    for kind, scale, flags in plan(arguments, glide):
        sampled = sample_images(flags, glide)
        preparation = with_px(flags, sampled).preparation
        images = open_images([sampled.folder], preparation=preparation, n=sampled.count)
        results, _, settings = evaluator.results(images, sampled)
        values = {result.name: result.value for result in results}
        errors = {result.name: result.error for result in results}
        kind = f"{kind}, {sampled.settings['sampler']}"
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


def plan(arguments: Arguments, glide: Glide) -> Iterator[tuple[str, float, Arguments]]:
    """Kind of guidance, scale, and the flags that sample with it."""
    root = arguments.samples or Path("sweep")
    kinds = {CLASSIFIER_FREE: arguments.by_scale()}
    if glide.has("clip"):
        kinds[CLIP] = arguments.by_clip_scale()
        if arguments.clip in map(str, arguments.checkpoint):
            print("the CLIP that guides also scores: it prefers the samples that it guided")
    elif arguments.clip_scales != Arguments.clip_scales:
        raise UserError("--clip-scales: there is no CLIP among the checkpoints")
    else:
        print("no CLIP among the checkpoints: classifier-free guidance only")
    for kind, settings in kinds.items():
        for scale, changes in settings.items():
            folder = root / f"{kind.split()[0].lower()}-{scale:g}"
            yield kind, scale, replace(arguments, samples=folder, **changes)


def plot(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws the distance against CLIP score and Inception Score, and precision against recall.

    Raises:
        UserError: the file cannot be written.
    """
    names = list(points[0]["values"])

    def named(*starts: str) -> str | None:
        return next((name for name in names if name.startswith(starts)), None)

    distance = named("FD", "FID") or named("KID")
    pairs = [(named("CLIP score"), distance), (named("IS"), distance)]
    pairs.append((named("recall"), named("precision")))
    shown = [(x, y) for x, y in pairs if x is not None and y is not None]
    figure = new_figure(5.5 * len(shown), 4.5)
    panels = list(zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True))
    for axes, (x, y) in panels:
        draw_curves(axes, curves_of(points, x, y))
        axes.set(xlabel=x, ylabel=y)
    handles = panels[0][0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=len(handles[1]))
    for axes, (x, y) in panels:
        label_scales(axes, curves_of(points, x, y))
    save_figure(path, figure)


def curves_of(points: Sequence[dict[str, Any]], x: str, y: str) -> list[Curve]:
    """A curve per kind of guidance of one metric over another."""
    curves = []
    for kind in dict.fromkeys(point["guidance"] for point in points):
        some = [point for point in points if point["guidance"] == kind]
        values = ([point["values"][name] for point in some] for name in (x, y))
        errors = ([point["standard_errors"][name] or 0.0 for point in some] for name in (x, y))
        curves.append(Curve(kind, [point["scale"] for point in some], *values, *errors))
    return curves


if __name__ == "__main__":
    with exit_on_user_error():
        main()
