"""A trained CLIP, ready to compare images with captions and to guide a model that draws."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, UInt8

from glide_jax.config import Config
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.data.transforms import to_float
from glide_jax.models.clip import clip_network
from glide_jax.parallel.sharding import infer, local_mesh
from glide_jax.runs.folder import Run
from glide_jax.sampling.user_images import square_image
from glide_jax.shapes import Params

MAX_BATCH = 64
"""Images that are compared at a time."""


class ClipStage:
    """A trained CLIP.

    Args:
        config: of the run.
        params: usually the moving average.
        tokenizer: the run's own.
        fsdp: as of `Stage`.

    Raises:
        UserError: fsdp does not divide the devices.
    """

    def __init__(self, config: Config, params: Params, tokenizer: Tokenizer, fsdp: int = 1) -> None:
        self.config = config.clip
        self.network = clip_network(self.config)
        self.params = jax.device_put(params, infer(params, local_mesh(fsdp)))
        self.tokenizer = tokenizer
        bind = self.network.bind
        self._encode_text = jax.jit(lambda params, *text: bind(params).encode_text(*text))
        self._encode_image = jax.jit(lambda params, *image: bind(params).encode_image(*image))

    @classmethod
    def load(cls, run: Run, fsdp: int = 1) -> "ClipStage":
        """Loads a run's EMA parameters and tokenizer.

        Args:
            run: of a CLIP.
            fsdp: as of the class.

        Raises:
            UserError: the run is not a CLIP's, its weights do not match its config, or fsdp does
                not divide the devices.
        """
        params = run.weights(infer(run.network.shapes, local_mesh(fsdp)))
        return cls(run.config, params, run.tokenizer, fsdp)

    def tokenize(
        self, captions: Sequence[str]
    ) -> tuple[Int32[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
        """Tokens of captions and their mask, as this CLIP reads them."""
        return self.tokenizer.encode(list(captions), self.config.text.length)

    def encode_text(self, captions: Sequence[str]) -> Float[Array, "b d"]:
        """Embeddings of captions, of length 1."""
        return self._encode_text(self.params, *self.tokenize(captions))

    def encode_images(
        self, images: Float[np.ndarray, "b h w 3"], t: int
    ) -> Float[np.ndarray, "b d"]:
        """Embeddings of images, of length 1.

        Args:
            images: in [-1, 1] but for their noise, of this CLIP's resolution.
            t: step whose noise they hold; 0 for none.
        """
        parts = (images[start : start + MAX_BATCH] for start in range(0, len(images), MAX_BATCH))
        return np.concatenate(
            [
                self._encode_image(self.params, part, np.full(len(part), t, np.int32))
                for part in parts
            ]
        )

    def scores(
        self,
        images: Sequence[UInt8[np.ndarray, "h w 3"]] | UInt8[np.ndarray, "b h w 3"],
        captions: Sequence[str],
    ) -> Float[np.ndarray, "b"]:
        """Cosine of each image's and its caption's embedding.

        Args:
            images: of any sizes; the largest square from the middle is looked at.
            captions: one an image.
        """
        different, which = np.unique(captions, return_inverse=True)
        text = self.encode_text(different.tolist())[which]
        px = self.config.resolution_px
        small = to_float(np.stack([square_image(image, px, "crop") for image in images]))
        return np.sum(np.asarray(text) * self.encode_images(small, 0), -1)
