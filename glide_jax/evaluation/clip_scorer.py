"""Embeddings of images and captions by OpenAI's CLIP or a CLIP of this project, for CLIP score."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, UInt8

from glide_jax.data.tokenizers.clip_bpe import ClipTokenizer
from glide_jax.data.transforms import to_float
from glide_jax.errors import UserError
from glide_jax.evaluation.features import BATCH_SIZE, load_extractor
from glide_jax.evaluation.image_sets import EvaluatedImage
from glide_jax.hub import fetched
from glide_jax.models.openai_clip import RELEASED, openai_clip
from glide_jax.runs.folder import Run
from glide_jax.sampling.clip import ClipScorer
from glide_jax.sampling.user_images import square_image
from glide_jax.shapes import Params, Tokens
from glide_jax.storage import expand_home

OPENAI_TOKENIZER = "openai/clip-vit-base-patch32"
"""Name on the Hugging Face hub."""

Pixels = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class PairScorer:
    """Embeds images and captions. Embeddings are of any length."""

    title: str
    """In the names of metrics."""
    settings: dict[str, str]
    """What must be equal for scores to compare."""
    embed_images: Callable[[Sequence[Pixels]], Float[np.ndarray, "n d"]]
    embed_texts: Callable[[Sequence[str]], Float[np.ndarray, "n d"]]
    batch_size: int

    def embed_pairs(
        self, images: Iterable[EvaluatedImage]
    ) -> tuple[Float[np.ndarray, "n d"], list[str]]:
        """Embeddings of images, and the first caption of each.

        Raises:
            UserError: an image has no caption.
        """
        embeddings, captions = [], []
        iterator = iter(images)
        while batch := list(islice(iterator, self.batch_size)):
            captions += [first_caption(image) for image in batch]
            embeddings.append(self.embed_images([image.pixels for image in batch]))
        return np.concatenate(embeddings), captions

    def embed_captions(self, captions: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Embeddings of captions; equal ones are embedded once."""
        distinct = list(dict.fromkeys(captions))
        starts = range(0, len(distinct), self.batch_size)
        parts = [self.embed_texts(distinct[i : i + self.batch_size]) for i in starts]
        rows = {caption: row for row, caption in enumerate(distinct)}
        return np.concatenate(parts)[[rows[caption] for caption in captions]]


def first_caption(image: EvaluatedImage) -> str:
    """An image's first caption. Raises UserError if it has none."""
    captions = image.captions
    if not captions:
        raise UserError(
            f"{image.name} has no caption: it needs the prompt in its PNG metadata, as sample.py "
            "writes it, or in a .txt file beside it"
        )
    return captions[0]


def load_pair_scorer(
    clip: str | Path, network: str, tokenizer: str, batch_size: int = BATCH_SIZE
) -> PairScorer:
    """A CLIP for scoring.

    Args:
        clip: OpenAI's file of weights, local or hf://ORG/REPO/FILE, or the run folder of a CLIP of
            this project, which scores images without noise.
        network: a key of RELEASED, for OpenAI's file.
        tokenizer: folder or name on the hub of OpenAI's vocabulary.
        batch_size: images per call.

    Raises:
        UserError: the weights or the tokenizer cannot be read.
    """
    place = fetched(clip)
    path = Path(expand_home(place))
    if path.is_file():
        return _openai(path, network, tokenizer, batch_size)
    try:
        run = Run.open(clip)
    except UserError as error:
        raise UserError(
            f"--clip {clip} is neither a file of OpenAI's CLIP nor a CLIP's run folder: {error}"
        ) from None
    scorer = ClipScorer.load(run)
    px = scorer.config.resolution_px

    def embed_images(images: Sequence[Pixels]) -> Float[np.ndarray, "n d"]:
        squares = np.stack([square_image(image, px, "crop") for image in images])
        return scorer.encode_images(to_float(squares), 0)

    settings = {"network": path.name, "weights": run.fingerprint}
    return PairScorer(path.name, settings, embed_images, scorer.encode_text, batch_size)


def _openai(path: Path, network: str, tokenizer: str, batch_size: int) -> PairScorer:
    if network not in RELEASED:
        raise UserError(f"--clip-network {network}: choose one of {', '.join(RELEASED)}")
    extractor = load_extractor(network, path, batch_size=batch_size)
    config = RELEASED[network]
    folder = Path(expand_home(tokenizer))
    words = ClipTokenizer.load(folder) if folder.exists() else ClipTokenizer.from_hub(tokenizer)
    if words.vocab_size != config.text.vocab_size:
        raise UserError(
            f"{tokenizer}: {words.vocab_size:,} tokens, but {network} has "
            f"{config.text.vocab_size:,}: give OpenAI's vocabulary"
        )
    clip = openai_clip(config)

    def encode_text(params: Params, tokens: Tokens) -> jax.Array:
        with jax.default_matmul_precision("highest"):  # as for images
            return clip.bind(params).encode_text(tokens)

    encode = jax.jit(encode_text)

    def embed_images(images: Sequence[Pixels]) -> Float[np.ndarray, "n d"]:
        parts = extractor.stream(image[None] for image in images)
        return np.concatenate([part["pool"] for part in parts])

    def embed_texts(captions: Sequence[str]) -> Float[np.ndarray, "n d"]:
        tokens, _ = words.encode(list(captions), config.text.length)
        padded = np.concatenate([tokens, tokens[-1:].repeat(batch_size - len(tokens), 0)])
        return np.asarray(encode(extractor.params, padded))[: len(captions)]

    return PairScorer(extractor.title, extractor.settings, embed_images, embed_texts, batch_size)
