"""Accuracy and diversity of unCLIP's images of scenes over the guidance scale, beside GLIDE's.

    python -m glide_jax.evaluation.scenes.unclip --checkpoint demo --n 128 --out unclip.png

What conditions the decoder, beside the caption, is one of: an embedding from the prior; the
caption's own embedding in place of an image's; none; or the true embedding of the scene's image,
which is an upper bound. The paper compares the first three (Fig. 8 and sec. 5.1, arXiv 2204.06125),
and GLIDE's loss of diversity over the scale with unCLIP's (Fig. 9).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from tyro.conf import UseAppendAction

from glide_jax.cli import parse_flags
from glide_jax.compilation import keep_compiled_programs
from glide_jax.errors import UserError, exit_on_user_error, memory_advice
from glide_jax.evaluation.scenes.flags import SCENES, CaptionFlags, has_closeups, require_scenes
from glide_jax.evaluation.scenes.guidance import SEEDS, Point, measured_point, plot
from glide_jax.images import require_figure
from glide_jax.parallel.sharding import use_all_cores
from glide_jax.sampling.flags import LESS_MEMORY, SamplingFlags
from glide_jax.sampling.pipeline import Glide
from glide_jax.sampling.samples import Samples
from glide_jax.sampling.stage import MAX_BATCH
from glide_jax.sampling.unclip import UnCLIP

Embeddings = Literal["prior", "text", "none", "true"]
Sampled = Callable[..., Samples]
"""`(captions, **settings) -> SEEDS samples of each`."""


@dataclass(frozen=True, kw_only=True)
class Arguments(SamplingFlags, CaptionFlags):
    """Samples the same captions with unCLIP and GLIDE at several guidance scales.

    Prints the fraction of exact matches and the diversity at each scale.
    """

    checkpoint: UseAppendAction[tuple[str | Path, ...]]
    """Folder of unCLIP's models, CLIP, prior and decoder, and of a base model of GLIDE; repeat the
    flag for several."""
    n: Annotated[int, SCENES] = 128
    """Number of captions: of the first scenes of the split."""
    scales: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0)
    """Classifier-free guidance scales of the decoder and of GLIDE; 1 is none."""
    embeddings: tuple[Embeddings, ...] = ("prior", "text", "none", "true")
    """What the decoder is conditioned on beside the caption."""
    glide: bool = True
    """Whether to measure GLIDE's base model too."""
    out: Path | None = None
    """PNG file for a plot."""


@memory_advice(LESS_MEMORY)
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Raises UserError."""
    arguments: Arguments = parse_flags(
        Arguments, "python -m glide_jax.evaluation.scenes.unclip", argv
    )
    require_figure("--out", arguments.out)
    arguments.check()
    if arguments.guidance_scale is not None:
        raise UserError("--guidance-scale: give --scales instead")
    keep_compiled_programs()
    use_all_cores(arguments.batch_size or min(arguments.n * SEEDS, MAX_BATCH))
    unclip = UnCLIP.load(*arguments.checkpoint, fsdp=arguments.fsdp)
    config = unclip.config("decoder")
    require_scenes(config)
    closeup = has_closeups(config.data)
    captions = arguments.captions(closeup)
    common = {"batch_size": arguments.batch_size, "upsample": False} | arguments.settings
    curves: dict[str, list[Point]] = {}

    def curve(name: str, sampled: Sampled) -> None:
        print(f"{name}\n   scale  exact match  diversity")
        curves[name] = [
            measured_point(scale, sampled(captions, **common | {"guidance_scale": scale}))
            for scale in arguments.scales
        ]

    if arguments.glide:
        curve("GLIDE", _glide(arguments))
    for embeddings in arguments.embeddings:
        curve(f"unCLIP, {_NAMES[embeddings]}", _unclip(unclip, embeddings, arguments, closeup))
    if arguments.out is not None:
        plot(curves, arguments.out)
        print(arguments.out)


_NAMES: dict[str, str] = {
    "prior": "embedding from the prior",
    "text": "embedding of the caption",
    "none": "caption alone",
    "true": "true embedding",
}


def _glide(arguments: Arguments) -> Sampled:
    glide = Glide.load(*arguments.checkpoint, fsdp=arguments.fsdp)

    def sampled(captions: Sequence[str], **settings: Any) -> Samples:
        return glide.generate(captions, n=SEEDS, seed=arguments.seed, progress=True, **settings)

    return sampled


def _unclip(unclip: UnCLIP, embeddings: str, arguments: Arguments, closeup: bool) -> Sampled:
    """Samples with these embeddings."""
    if embeddings != "true":
        prior = "model" if embeddings == "prior" else embeddings

        def generated(captions: Sequence[str], **settings: Any) -> Samples:
            common = {"n": SEEDS, "seed": arguments.seed, "progress": True}
            return unclip.generate(captions, prior=prior, **common, **settings)  # type: ignore[arg-type]

        return generated
    px = unclip.config("clip").clip.resolution_px
    true = unclip.embed_images(list(arguments.images(px, closeup)))

    def decoded(captions: Sequence[str], **settings: Any) -> Samples:
        seeds = [arguments.seed + i for _ in captions for i in range(SEEDS)]
        repeated = [caption for caption in captions for _ in range(SEEDS)]
        z = np.repeat(true, SEEDS, 0)
        return unclip.decode(z, repeated, seed=seeds, progress=True, **settings)

    return decoded


if __name__ == "__main__":
    with exit_on_user_error():
        main()
