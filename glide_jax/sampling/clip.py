"""A trained CLIP: scores images against captions, and guides sampling."""

from collections.abc import Callable, Sequence
from functools import cache

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Int32, UInt8

from glide_jax.config import Config
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.data.transforms import to_float
from glide_jax.models.clip import Clip, clip_network
from glide_jax.models.network import Network
from glide_jax.models.platform import Platform
from glide_jax.parallel.sharding import infer, local_mesh
from glide_jax.runs.folder import Run
from glide_jax.sampling.buckets import bucket
from glide_jax.sampling.user_images import square_image
from glide_jax.shapes import Params

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
        self.network = clip_network(self.config)
        mesh = local_mesh(fsdp)
        stored = self.network.stored(params, Platform.of(mesh, None, training=False))
        self.params = jax.device_put(stored, infer(stored, mesh))
        self.tokenizer = tokenizer
        self._encode_text, self._encode_image = _encoders(self.network)

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
        return self._in_buckets(self._encode_text, *self.tokenize(captions))

    def encode_images(
        self, images: Float[np.ndarray, "b h w 3"], t: int
    ) -> Float[np.ndarray, "b d"]:
        """Unit-length embeddings of images.

        Args:
            images: x_t at this CLIP's resolution.
            t: the step of x_t; 0 for images without noise.
        """
        steps = np.full(len(images), t, np.int32)
        return self._in_buckets(self._encode_image, images, steps)

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
        px = self.config.resolution_px
        squares = to_float(np.stack([square_image(image, px, "crop") for image in images]))
        return np.sum(text * self.encode_images(squares, 0), -1)

    def _in_buckets(
        self, encode: Callable[..., jax.Array], *rows: np.ndarray
    ) -> Float[np.ndarray, "b d"]:
        """Embeddings of any number of rows, by one program for each `bucket` up to MAX_BATCH."""
        count = len(rows[0])
        size = min(bucket(count), MAX_BATCH)
        parts = []
        for start in range(0, count, size):
            # The last batch repeats the last row, to fill the bucket.
            which = np.minimum(np.arange(start, start + size), count - 1)
            # One program at a time: several with collectives might deadlock on CPU devices.
            parts.append(np.asarray(encode(self.params, *(x[which] for x in rows))))
        return np.concatenate(parts)[:count]


def best_first(scores: Float[np.ndarray, "*b n"]) -> Int[np.ndarray, "*b n"]:
    """Places of the scores of each row, the highest first; of equal ones, the first."""
    return np.argsort(-scores, axis=-1, kind="stable")


@cache
def _encoders(clip: Network[Clip]) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
    """`encode_text` and `encode_image` of `(params, *inputs)`, compiled once for each CLIP."""
    return (
        jax.jit(lambda params, *text: clip.bind(params).encode_text(*text)),
        jax.jit(lambda params, *image: clip.bind(params).encode_image(*image)),
    )
