"""Embeddings of images and captions by OpenAI's CLIP or a CLIP of this project, for CLIP score."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, UInt8

from glide_jax.data.tokenizers.clip_bpe import ClipTokenizer
from glide_jax.data.transforms import to_float
from glide_jax.errors import UserError
from glide_jax.evaluation.features import load_extractor
from glide_jax.evaluation.image_sets import EvaluatedImage
from glide_jax.hub import local_file
from glide_jax.models.openai_clip import RELEASED, openai_clip
from glide_jax.runs.folder import Run
from glide_jax.sampling.clip import ClipScorer
from glide_jax.sampling.user_images import square_image
from glide_jax.storage import expand_home

OPENAI_TOKENIZER = "openai/clip-vit-base-patch32"
"""Name on the Hugging Face hub."""

Pixels = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class PairScorer:
    """Embeds images and captions."""

    title: str
    """In the names of metrics."""
    settings: dict[str, str]
    embed_images: Callable[[Sequence[Pixels]], Float[np.ndarray, "n d"]]
    embed_texts: Callable[[Sequence[str]], Float[np.ndarray, "n d"]]
    batch_size: int

    def embed_pairs(
        self, images: Iterable[EvaluatedImage]
    ) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n d"]]:
        """Embeddings of images and of the first caption of each.

        Raises:
            UserError: an image has no caption.
        """
        of_images, of_texts = [], []
        for batch in _batches(images, self.batch_size):
            captions = [image.captions for image in batch]
            for image, texts in zip(batch, captions, strict=True):
                if not texts:
                    raise UserError(
                        f"{image.name} has no caption for the CLIP score: it needs the prompt in "
                        "its PNG metadata, as sample.py writes it, or in a .txt file beside it"
                    )
            of_images.append(self.embed_images([image.pixels for image in batch]))
            of_texts.append(self.embed_texts([texts[0] for texts in captions]))
        return np.concatenate(of_images), np.concatenate(of_texts)


def _batches(images: Iterable[EvaluatedImage], size: int) -> Iterator[list[EvaluatedImage]]:
    iterator = iter(images)
    while batch := list(islice(iterator, size)):
        yield batch


def load_pair_scorer(
    clip: str | Path, network: str, tokenizer: str, batch_size: int = 32
) -> PairScorer:
    """A CLIP for scoring.

    Args:
        clip: OpenAI's file of weights, or the run folder of a CLIP of this project, which scores
            images without noise.
        network: a key of RELEASED, for OpenAI's file.
        tokenizer: folder or name on the hub of OpenAI's vocabulary.
        batch_size: images per call.

    Raises:
        UserError: the weights or the tokenizer cannot be read.
    """
    path = local_file(clip)
    if path.is_file():
        return _openai(path, network, tokenizer, batch_size)
    scorer = ClipScorer.load(Run.open(clip))
    px = scorer.config.resolution_px

    def embed_images(images: Sequence[Pixels]) -> Float[np.ndarray, "n d"]:
        squares = np.stack([square_image(image, px, "crop") for image in images])
        return scorer.encode_images(to_float(squares), 0)

    settings = {"clip": str(clip)}
    return PairScorer(path.name, settings, embed_images, scorer.encode_text, batch_size)


def _openai(path: Path, network: str, tokenizer: str, batch_size: int) -> PairScorer:
    if network not in RELEASED:
        raise UserError(f"--clip-network {network}: choose one of {', '.join(RELEASED)}")
    extractor = load_extractor(network, path, batch_size=batch_size)
    config = RELEASED[network]
    folder = Path(expand_home(tokenizer))
    words = ClipTokenizer.load(folder) if folder.exists() else ClipTokenizer.from_hub(tokenizer)
    clip = openai_clip(config)
    encode = jax.jit(lambda params, tokens: clip.bind(params).encode_text(tokens))

    def embed_images(images: Sequence[Pixels]) -> Float[np.ndarray, "n d"]:
        parts = extractor.stream(image[None] for image in images)
        return np.concatenate([part["pool"] for part in parts])

    def embed_texts(captions: Sequence[str]) -> Float[np.ndarray, "n d"]:
        tokens, _ = words.encode(list(captions), config.text.length)
        padded = np.concatenate([tokens, tokens[-1:].repeat(batch_size - len(tokens), 0)])
        return np.asarray(encode(extractor.params, padded))[: len(captions)]

    return PairScorer(extractor.title, extractor.settings, embed_images, embed_texts, batch_size)
