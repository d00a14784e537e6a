"""Parameterizations: the meaning of a network's input and output.

A network maps its input and t to [prediction | variance fraction]. The prediction is one of

    Noise        eps, as in GLIDE
    Velocity     v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0
    Correction   the velocity of an image's difference from a guess of it

Training regresses the prediction on `target(x_0, t, eps)`. `eps` and `x_0` invert the target, given
x_t. Training and sampling share one object. It holds all T steps of the schedule, so t is always
the original step index.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from glide_jax.config import DiffusionConfig
from glide_jax.diffusion.process import q_sample, split_output, table_at, x_0_from_eps
from glide_jax.diffusion.schedule import Schedule, Table
from glide_jax.shapes import Denoiser


@dataclass(frozen=True, eq=False)
class Parameterization(ABC):
    """Conversions between a network's prediction and (eps, x_0).

    In all methods x_t, x_0, eps and predictions are (b, h, w, c) float32; t is (b,), in [0, T).
    """

    schedule: Schedule
    """All T steps."""

    @staticmethod
    def of(
        config: DiffusionConfig, guess: Float[Array, "b h w c"] | None = None
    ) -> "Parameterization":
        """The parameterization of a run.

        Args:
            config: the noise process.
            guess: the upsampled low-resolution images, where `config.low_res_std` is set.
        """
        schedule = Schedule.of(config)
        if config.prediction == "eps":
            return Noise(schedule)
        if not config.low_res_std:
            return Velocity(schedule)
        assert guess is not None
        return Correction(schedule, guess, config.low_res_std)

    def network_input(
        self, x_t: Float[Array, "b h w c"], t: Int[Array, "b"]
    ) -> Float[Array, "b h w c"]:
        """The network's view of x_t; x_t itself unless a subclass preconditions it."""
        return x_t

    @abstractmethod
    def target(
        self, x_0: Float[Array, "b h w c"], t: Int[Array, "b"], eps: Float[Array, "b h w c"]
    ) -> Float[Array, "b h w c"]:
        """The prediction of a perfect network."""

    @abstractmethod
    def eps(
        self, predicted: Float[Array, "b h w c"], x_t: Float[Array, "b h w c"], t: Int[Array, "b"]
    ) -> Float[Array, "b h w c"]:
        """The noise in x_t, from the network's prediction."""

    @abstractmethod
    def x_0(
        self, predicted: Float[Array, "b h w c"], x_t: Float[Array, "b h w c"], t: Int[Array, "b"]
    ) -> Float[Array, "b h w c"]:
        """The image, from the network's prediction; not clipped."""

    @property
    @abstractmethod
    def weights(self) -> Table:
        """(T,): squared error of the prediction, for a squared error of 1 in eps.

        As weights of eps's squared error they give every t the loss |target - predicted|^2.
        """

    def denoiser(self, network: Denoiser) -> Denoiser:
        """A network as a denoiser that predicts eps, the form that guidance and samplers take.

        Args:
            network: `(input, t) -> [prediction | variance fraction]`.

        Returns:
            `(x_t, t) -> [eps | variance fraction]`, float32.
        """

        def denoise(x_t: jax.Array, t: jax.Array) -> jax.Array:
            out = network(self.network_input(x_t, t), t)
            predicted, variance_fraction = split_output(out)
            return jnp.concatenate([self.eps(predicted, x_t, t), variance_fraction], axis=-1)

        return denoise


@dataclass(frozen=True, eq=False)
class Noise(Parameterization):
    """The network predicts eps. Sec. 3.2, arXiv 2006.11239."""

    def target(self, x_0: jax.Array, t: jax.Array, eps: jax.Array) -> jax.Array:
        """Eps itself."""
        return eps

    def eps(self, predicted: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
        """The prediction itself."""
        return predicted

    def x_0(self, predicted: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
        """See `x_0_from_eps`."""
        return x_0_from_eps(self.schedule, x_t, t, predicted)

    @property
    def weights(self) -> Table:
        """All 1."""
        return np.ones(self.schedule.steps)


@dataclass(frozen=True, eq=False)
class Velocity(Parameterization):
    """The network predicts v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0.

    App. D, arXiv 2202.00512. Its inverses are rotations by the same angle:

        eps = sqrt(alpha_bar_t) v + sqrt(1 - alpha_bar_t) x_t
        x_0 = sqrt(alpha_bar_t) x_t - sqrt(1 - alpha_bar_t) v

    An error in v is at most as large in x_0 at every t. A network that predicts eps must be right
    to 1 in 20,000 at the noisiest steps for that.
    """

    # All three are sums of q_sample's form, sqrt(alpha_bar) a + sqrt(1 - alpha_bar) b.

    def target(self, x_0: jax.Array, t: jax.Array, eps: jax.Array) -> jax.Array:
        """The velocity v."""
        return q_sample(self.schedule, eps, t, -x_0)

    def eps(self, predicted: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
        """sqrt(alpha_bar_t) v + sqrt(1 - alpha_bar_t) x_t."""
        return q_sample(self.schedule, predicted, t, x_t)

    def x_0(self, predicted: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
        """sqrt(alpha_bar_t) x_t - sqrt(1 - alpha_bar_t) v."""
        return q_sample(self.schedule, x_t, t, -predicted)

    @property
    def weights(self) -> Table:
        """1 / alpha_bar_t.

        The weights of x_0's squared error are 1 / (1 - alpha_bar_t), "SNR + 1" (sec. 4, arXiv
        2202.00512). The noisiest steps, where the caption decides everything, keep their weight.
        """
        return 1 / self.schedule.alpha_bar


@dataclass(frozen=True, eq=False)
class Correction(Parameterization):
    """The network corrects a guess of the image, such as its upsampled low-resolution version.

    Images are modeled as `guess + std rho`, with rho of mean 0 and variance 1. Then

        z = (x_t - sqrt(alpha_bar_t) guess) / total,
        total^2 = alpha_bar_t std^2 + 1 - alpha_bar_t

    has variance 1. For normal rho, the expected velocity given x_t is

        v_guess = -sqrt(1 - alpha_bar_t) guess
                  + sqrt(alpha_bar_t (1 - alpha_bar_t)) (1 - std^2) z / total

    The network sees z in place of x_t, and v = v_guess + std / total * prediction. It never has to
    copy the guess. Its input and its target, the velocity of rho, have variance 1 at every t: the
    preconditioning of sec. 5, arXiv 2206.00364, around a guess.
    """

    guess: Float[Array, "b h w c"]
    std: float
    """Root-mean-square difference between images and their guesses, above 0."""

    @property
    def _variance(self) -> Table:
        alpha_bar = self.schedule.alpha_bar
        return alpha_bar * self.std**2 + 1 - alpha_bar

    @property
    def _total(self) -> Table:
        return np.sqrt(self._variance)

    def network_input(self, x_t: jax.Array, t: jax.Array) -> jax.Array:
        """Computes z: x_t's difference from the noised guess, scaled to variance 1."""
        image = table_at(np.sqrt(self.schedule.alpha_bar), t)
        return (x_t - image * self.guess) / table_at(self._total, t)

    def target(self, x_0: jax.Array, t: jax.Array, eps: jax.Array) -> jax.Array:
        """(sqrt(alpha_bar_t) std eps - sqrt(1 - alpha_bar_t) rho) / total."""
        image, noise = np.sqrt(self.schedule.alpha_bar), np.sqrt(1 - self.schedule.alpha_bar)
        of_eps, of_rho = image * self.std / self._total, noise / self._total
        rho = (x_0 - self.guess) / self.std
        return table_at(of_eps, t) * eps - table_at(of_rho, t) * rho

    def eps(self, predicted: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
        """The noise of the corrected velocity."""
        return self._velocity.eps(self.velocity(predicted, x_t, t), x_t, t)

    def x_0(self, predicted: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
        """The image of the corrected velocity."""
        return self._velocity.x_0(self.velocity(predicted, x_t, t), x_t, t)

    def velocity(self, predicted: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
        """v = v_guess + std / total * prediction."""
        image, noise = np.sqrt(self.schedule.alpha_bar), np.sqrt(1 - self.schedule.alpha_bar)
        z = self.network_input(x_t, t)
        v_guess = (
            table_at(image * noise * (1 - self.std**2) / self._total, t) * z
            - table_at(noise, t) * self.guess
        )
        return v_guess + table_at(self.std / self._total, t) * predicted

    @property
    def _velocity(self) -> Velocity:
        return Velocity(self.schedule)

    @property
    def weights(self) -> Table:
        """total^2 / (alpha_bar_t std^2).

        An error of 1 in the prediction is one of std / total in v, and of sqrt(alpha_bar_t) times
        that in eps. Every step counts the same, as in sec. 5, arXiv 2206.00364.
        """
        return self._variance / (self.schedule.alpha_bar * self.std**2)
