"""A trained CLIP: scores images against captions, guides sampling, and embeds both for unCLIP."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Int32, UInt8

from glide_jax.config import Config
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.data.transforms import to_float
from glide_jax.models.build import build_network
from glide_jax.models.network import Network
from glide_jax.models.platform import Platform
from glide_jax.parallel.sharding import infer, local_mesh
from glide_jax.runs.folder import Run
from glide_jax.sampling.buckets import bucket
from glide_jax.sampling.user_images import Fit, square_image
from glide_jax.shapes import Params, TextStates

MAX_BATCH = 64
"""Images or captions per call of a tower."""


class ClipScorer:
    """A trained CLIP: parameters on devices, tokenizer and compiled towers.

    Args:
        config: of the run.
        params: usually the EMA parameters.
        tokenizer: of the run.
        fsdp: as for `Stage`.

    Raises:
        UserError: fsdp does not divide the number of devices.
    """

    def __init__(self, config: Config, params: Params, tokenizer: Tokenizer, fsdp: int = 1) -> None:
        self.config = config.clip
        self.diffusion = config.diffusion
        self.network = build_network(self.config)
        mesh = local_mesh(fsdp)
        stored = self.network.stored(params, Platform.of(mesh, None, training=False))
        self.params = jax.device_put(stored, infer(stored, mesh))
        self.tokenizer = tokenizer
        self._embed_text, self._embed_image, self._embed_noised = _towers(self.network)

    @classmethod
    def load(cls, run: Run, fsdp: int = 1) -> "ClipScorer":
        """Loads a run's EMA parameters and tokenizer.

        Args:
            run: of a CLIP.
            fsdp: as of the class.

        Raises:
            UserError: the run is not a CLIP's, its weights do not match its config, or fsdp does
                not divide the devices.
        """
        _ = run.config.clip  # before the weights, which may be large
        params = run.weights(infer(run.network.shapes, local_mesh(fsdp)))
        return cls(run.config, params, run.tokenizer, fsdp)

    def tokenize(
        self, captions: Sequence[str]
    ) -> tuple[Int32[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
        """Tokens of captions and their mask."""
        return self.tokenizer.encode(list(captions), self.config.text.length)

    def encode_text(self, captions: Sequence[str]) -> Float[np.ndarray, "b d"]:
        """Unit-length embeddings of captions."""
        return _unit(np.asarray(self.embed_text(captions).embedding))

    def encode_images(
        self, images: Float[np.ndarray, "b h w 3"], t: int
    ) -> Float[np.ndarray, "b d"]:
        """Unit-length embeddings of images.

        Args:
            images: x_t at this CLIP's resolution.
            t: the step of x_t; 0 for images without noise.
        """
        if t == 0:
            return _unit(self._in_buckets(self._embed_image, images))
        steps = np.full(len(images), t, np.int32)
        return self._in_buckets(self._embed_noised, images, steps)

    def embed_text(self, captions: Sequence[str]) -> TextStates:
        """Captions as unCLIP's models see them; arrays on the host."""
        return self._in_buckets(self._embed_text, *self.tokenize(captions))

    def embed_images(
        self,
        images: Sequence[UInt8[np.ndarray, "h w 3"]] | UInt8[np.ndarray, "b h w 3"],
        fit: Fit = "stretch",
    ) -> Float[np.ndarray, "b d"]:
        """Embeddings of images as unCLIP's models see them: OpenAI's are not normalized.

        Args:
            images: of any sizes.
            fit: how they become square; Karlo stretches them.
        """
        px = self.config.resolution_px
        squares = to_float(np.stack([square_image(image, px, fit) for image in images]))
        return self._in_buckets(self._embed_image, squares)

    def scores(
        self,
        images: Sequence[UInt8[np.ndarray, "h w 3"]] | UInt8[np.ndarray, "b h w 3"],
        captions: Sequence[str],
    ) -> Float[np.ndarray, "b"]:
        """Cosine similarity of each image and its caption.

        Args:
            images: of any sizes; center-cropped to squares.
            captions: one per image.
        """
        unique, which = np.unique(captions, return_inverse=True)
        text = self.encode_text(unique.tolist())[which]
        return np.sum(text * _unit(self.embed_images(images, "crop")), -1)

    def _in_buckets(self, encode: Callable[..., Any], *rows: np.ndarray) -> Any:
        """Embeddings of any number of rows, by one program for each `bucket` up to MAX_BATCH."""
        count = len(rows[0])
        size = min(bucket(count), MAX_BATCH)
        parts = []
        for start in range(0, count, size):
            # The last batch repeats the last row, to fill the bucket.
            which = np.minimum(np.arange(start, start + size), count - 1)
            # One program at a time: several with collectives might deadlock on CPU devices.
            parts.append(jax.device_get(encode(self.params, *(x[which] for x in rows))))
        return jax.tree.map(lambda *part: np.concatenate(part)[:count], *parts)


def _unit(embeddings: Float[np.ndarray, "b d"]) -> Float[np.ndarray, "b d"]:
    """Embeddings of length 1."""
    return embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)


def best_first(scores: Float[np.ndarray, "*b n"]) -> Int[np.ndarray, "*b n"]:
    """Places of the scores of each row, the highest first; of equal ones, the first."""
    return np.argsort(-scores, axis=-1, kind="stable")


@cache
def _towers(clip: Network[Any]) -> tuple[Callable[..., Any], ...]:
    """`embed_text`, `embed_image` and `encode_image` of `(params, *inputs)`, compiled once."""

    def compiled(name: str) -> Callable[..., Any]:
        return jax.jit(lambda params, *inputs: getattr(clip.bind(params), name)(*inputs))

    return compiled("embed_text"), compiled("embed_image"), compiled("encode_image")
