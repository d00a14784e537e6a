"""What the principal components of image embeddings hold, measured on the built-in data set.

    python -m glide_jax.evaluation.scenes.principal_components --checkpoint demo --out pca.png

The embeddings of held-out images are rebuilt from their first components and decoded without a
caption (Fig. 7, arXiv 2204.06125). The decoded images are scored against the scenes' captions.
0 components, the mean embedding, give the accuracy of an image that knows nothing of its scene.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import UInt8
from tyro.conf import UseAppendAction

from glide_jax.cli import parse_flags
from glide_jax.compilation import keep_compiled_programs
from glide_jax.config.bounds import Between
from glide_jax.errors import exit_on_user_error, memory_advice
from glide_jax.evaluation.prior import closeness
from glide_jax.evaluation.scenes.flags import (
    CaptionFlags,
    SplitFlags,
    has_closeups,
    require_scenes,
)
from glide_jax.evaluation.scenes.score import MEASURES, score_images
from glide_jax.images import new_figure, require_figure, save_figure
from glide_jax.parallel.sharding import use_all_cores
from glide_jax.sampling.flags import LESS_MEMORY, SamplingFlags
from glide_jax.sampling.latents import MAX_COMPONENTS, MAX_EMBEDDINGS, PrincipalComponents
from glide_jax.sampling.stage import MAX_BATCH
from glide_jax.sampling.unclip import UnCLIP


@dataclass(frozen=True, kw_only=True)
class Arguments(SamplingFlags, CaptionFlags):
    """Decodes image embeddings rebuilt from their first principal components, without a caption.

    Prints, for each number of components, their share of the embeddings' variance, the accuracy of
    the images, and the cosine of their embeddings with the true ones.
    """

    checkpoint: UseAppendAction[tuple[str | Path, ...]]
    """Folder of unCLIP's models, of which CLIP and decoder are used; repeat the flag for
    several."""
    caption_index: Annotated[int, Between(0, 3)] = 1
    """Which of a scene's four captions scores its image: 0 gives colors and relation, 1 is
    complete."""
    components: tuple[Annotated[int, Between(1, MAX_COMPONENTS)], ...] = ()
    """Numbers of components beside 0; none: powers of two, and all."""
    embeddings: Annotated[int, Between(2, MAX_EMBEDDINGS)] = 2048
    """Number of training scenes whose embeddings give the components."""
    out: Path | None = None
    """PNG, SVG or PDF file for a plot of the accuracies."""


@dataclass(frozen=True)
class Row:
    """The result for one number of components."""

    variance: float
    """Share of the embeddings' variance that the components hold."""
    accuracies: dict[str, float]
    """See `accuracies`."""
    cosine: float
    """Mean cosine of decoded images' embeddings with the true ones, after subtracting the mean."""

    def cells(self) -> dict[str, str]:
        """All numbers as text, by name."""
        percents = {"variance": self.variance, **self.accuracies}
        cells = {name: f"{x:.1%}" for name, x in percents.items()}
        return cells | {"cosine": f"{self.cosine:.3f}"}


@memory_advice(LESS_MEMORY)
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Raises UserError."""
    arguments: Arguments = parse_flags(
        Arguments, "python -m glide_jax.evaluation.scenes.principal_components", argv
    )
    require_figure("--out", arguments.out)
    arguments.check()
    keep_compiled_programs()
    use_all_cores(arguments.batch_size or min(arguments.n, MAX_BATCH))
    unclip = UnCLIP.load(*arguments.checkpoint, fsdp=arguments.fsdp)
    config = unclip.config("decoder")
    require_scenes(config)
    unclip.require_stages(
        {name: x for name, x in arguments.settings.items() if x is not None},
        clip=True,
        upsample=False,
    )
    rows = {}
    for count, row in measured(unclip, arguments):
        rows[count] = row
        cells = row.cells()
        widths = [max(len(name), 6) for name in cells]
        if count == 0:
            names = (f"{name:>{width}}" for name, width in zip(cells, widths, strict=True))
            print("components", *names, sep="  ")
        texts = (f"{x:>{width}}" for x, width in zip(cells.values(), widths, strict=True))
        print(f"{count:10}", *texts, sep="  ", flush=True)
    if arguments.out is not None:
        plot({count: row.accuracies for count, row in rows.items()}, arguments.out)
        print(arguments.out)


def measured(unclip: UnCLIP, arguments: Arguments) -> Iterator[tuple[int, Row]]:
    """Numbers of components, in ascending order from 0, with their results.

    Raises UserError for more components than there are.
    """
    closeup = has_closeups(unclip.config("decoder").data)
    px = unclip.config("clip").clip.resolution_px
    training = SplitFlags(n=arguments.embeddings, split="train").images(px, closeup)
    basis = PrincipalComponents.of(unclip.embed_images(list(training)))
    basis.require(arguments.components)
    most = len(basis.components)
    powers = [2**i for i in range(most.bit_length()) if 2**i < most]
    captions = arguments.captions(closeup)
    true = unclip.embed_images(list(arguments.images(px, closeup)))
    for count in sorted({0, *(arguments.components or [*powers, most])}):
        rebuilt = np.concatenate([basis.rebuilt(z, [count]) for z in true])
        images = unclip.decode(
            rebuilt,
            seed=[arguments.seed + i for i in range(arguments.n)],
            upsample=False,
            batch_size=arguments.batch_size,
            progress=True,
            **arguments.settings,
        ).images
        lost = np.sum((true - rebuilt) ** 2) / np.sum((true - basis.mean) ** 2)
        decoded = unclip.embed_images(list(images))
        cosine = closeness(decoded, true, basis.mean).cosine
        yield count, Row(float(1 - lost), accuracies(images, captions), cosine)


def accuracies(images: UInt8[np.ndarray, "n h w 3"], captions: Sequence[str]) -> dict[str, float]:
    """Accuracy of each measure that captions state, and of exact matches, as fractions of 1."""
    scores = score_images(images, captions)
    stated = [name for name in MEASURES if scores.stated[name].any()]
    exact_match = float(scores.exact_match.mean())
    return {name: scores.accuracy(name) for name in stated} | {"exact match": exact_match}


def plot(by_count: dict[int, dict[str, float]], out: Path) -> None:
    """Writes a plot of accuracies over the number of components. Raises UserError.

    Args:
        by_count: `accuracies` of each number of components.
        out: file.
    """
    figure = new_figure(7.5, 4.5)
    axes = figure.add_subplot()
    counts = list(by_count)
    for name in by_count[0]:
        style = {"color": "black", "linewidth": 2.5} if name == "exact match" else {}
        percents = [100 * of_count[name] for of_count in by_count.values()]
        axes.plot(counts, percents, marker="o", label=name, **style)
    axes.set_xscale("symlog", base=2, linthresh=1, linscale=0.5)  # has 0 too
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set(
        xlabel="principal components of the image embedding",
        ylabel="accuracy (%)",
        ylim=(-2, 102),
        title="Images of embeddings rebuilt from principal components",
    )
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    save_figure(out, figure)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
