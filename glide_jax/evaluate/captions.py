"""Metrics of images with captions: CLIP score, CLIP retrieval and LPIPS diversity."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from jaxtyping import Float

from glide_jax.errors import UserError
from glide_jax.evaluation.clip_scorer import (
    OPENAI_TOKENIZER,
    PairScorer,
    first_caption,
    load_pair_scorer,
)
from glide_jax.evaluation.features import BATCH_SIZE
from glide_jax.evaluation.image_sets import ImageSet
from glide_jax.evaluation.metrics.clip_score import PROMPT_PREFIX, ClipScore, clip_score
from glide_jax.evaluation.metrics.estimate import mean_estimate
from glide_jax.evaluation.metrics.retrieval import retrieval_hits
from glide_jax.evaluation.perceptual import (
    PAIRS,
    LpipsFlags,
    PerceptualDistance,
    Pixels,
    load_lpips,
    lpips_diversity,
)
from glide_jax.evaluation.reference import with_progress
from glide_jax.evaluation.suite import Result

RETRIEVAL_AMONG = 64
"""Captions to choose from, as in glide_jax.evaluation.retrieval."""

SCORES: dict[str, tuple[str, ClipScore]] = {
    "clip_score": ("CLIP score", "glide"),
    "clip_score_torchmetrics": ("CLIP score of torchmetrics", "torchmetrics"),
    "clip_score_hessel": ("CLIP score of Hessel et al.", "hessel"),
}
"""Title and rule of each CLIP score."""


@dataclass(frozen=True, kw_only=True)
class CaptionFlags(LpipsFlags):
    """Networks of the metrics on captions."""

    clip: str = ""
    """For clip_score and clip_retrieval: file of OpenAI's CLIP, local or hf://ORG/REPO/FILE, or run
    folder of a CLIP of this project."""
    clip_network: str = "clip-vit-b-16"
    """Which of OpenAI's: clip-vit-b-32, clip-vit-b-16 or clip-vit-l-14."""
    clip_tokenizer: str = OPENAI_TOKENIZER
    """Folder, or name on the Hugging Face hub, of OpenAI's vocabulary."""


def require_caption_flags(names: Sequence[str], flags: CaptionFlags) -> None:
    """Raises UserError if the flags lack a network that these metrics need."""
    for name in names:
        if "lpips" in name and not flags.lpips:
            raise UserError(f"{name} needs --lpips: torchvision's file of AlexNet or VGG-16")
        if "clip" in name and not flags.clip:
            raise UserError(f"{name} needs --clip: a file of OpenAI's CLIP, or a CLIP's run folder")


@dataclass(frozen=True)
class CaptionMetrics:
    """Metrics with their networks.

    Args:
        names: keys of SCORES, `clip_retrieval` or `lpips_diversity`.
        clip: for all but LPIPS.
        lpips: for LPIPS.
    """

    names: Sequence[str]
    clip: PairScorer | None
    lpips: PerceptualDistance | None

    @classmethod
    def load(cls, names: Sequence[str], flags: CaptionFlags) -> "CaptionMetrics":
        """Loads the networks that the metrics need. Raises UserError."""
        clip = lpips = None
        if any(name != "lpips_diversity" for name in names):
            size = flags.batch_size or BATCH_SIZE
            clip = load_pair_scorer(flags.clip, flags.clip_network, flags.clip_tokenizer, size)
        if "lpips_diversity" in names:
            lpips = load_lpips(flags.lpips_trunk, flags.lpips, flags.batch_size or PAIRS)
        return cls(names, clip, lpips)

    @property
    def settings(self) -> dict[str, str]:
        """What must be equal for numbers to compare."""
        networks = {"clip": self.clip, "lpips": self.lpips}
        return {
            f"{kind}.{name}": value
            for kind, network in networks.items()
            if network is not None
            for name, value in network.settings.items()
        }

    def __call__(self, images: ImageSet) -> tuple[list[Result], int]:
        """The results, and the number of images.

        Raises:
            UserError: an image has no caption, or the captions are too few or too different.
        """
        results, count = [], 0
        if self.clip is not None:
            pairs, captions = self.clip.embed_pairs(with_progress(images, images.name))
            count = len(captions)
            results += [
                self._of_clip(name, pairs, captions)
                for name in self.names
                if name != "lpips_diversity"
            ]
        if self.lpips is not None:
            sizes: list[int] = []

            def seeds() -> Iterator[list[Pixels]]:
                """Neighbors with one caption: memory does not grow with the number of images."""
                of_caption = groupby(with_progress(images, images.name), first_caption)
                for _, some in of_caption:
                    pixels = [image.pixels for image in some]
                    sizes.append(len(pixels))
                    yield pixels

            diversity = lpips_diversity(seeds(), self.lpips)
            name = f"LPIPS diversity ({self.lpips.title})"
            results.append(Result(name, *diversity))
            count = sum(sizes)
        return results, count

    def _of_clip(
        self, name: str, images: Float[np.ndarray, "n d"], captions: Sequence[str]
    ) -> Result:
        assert self.clip is not None
        if name in SCORES:
            title, rule = SCORES[name]
            prefix = PROMPT_PREFIX if rule == "hessel" else ""
            texts = self.clip.embed_captions([prefix + caption for caption in captions])
            found = clip_score(images, texts, rule)
        else:
            rows: dict[str, int] = {}  # with two images of a caption, retrieval is ambiguous
            for i, caption in enumerate(captions):
                rows.setdefault(caption, i)
            first = list(rows.values())
            among = min(RETRIEVAL_AMONG, len(first))
            if among < 2:
                raise UserError("clip_retrieval needs images of at least two different captions")
            texts = self.clip.embed_captions(list(rows))
            unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images[first], texts)]
            found = mean_estimate(retrieval_hits(unit[0], unit[1], among))
            title = f"CLIP retrieval among {among}"
        return Result(f"{title} ({self.clip.title})", *found)
