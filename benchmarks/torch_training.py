"""A train step of the PyTorch twin: hybrid loss, clipping, AdamW, EMA."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from benchmarks.torch_twin import Twin
from glide_jax.config import Config
from glide_jax.diffusion.schedule import Schedule

Network = Callable[[Tensor, Tensor], Tensor]


def tables(schedule: Schedule, device: str) -> dict[str, Tensor]:
    """The schedule's tables that the loss reads, (T,) float32."""
    arrays = {
        "image": np.sqrt(schedule.alpha_bar),
        "noise": np.sqrt(1 - schedule.alpha_bar),
        "recip": schedule.sqrt_recip_alpha_bar,
        "recipm1": schedule.sqrt_recipm1_alpha_bar,
        "mean_x_0": schedule.posterior_mean_x_0,
        "mean_x_t": schedule.posterior_mean_x_t,
        "log_beta": np.log(schedule.betas),
        "log_variance": schedule.posterior_log_variance_clipped,
    }
    return {
        name: torch.tensor(table, dtype=torch.float32, device=device)
        for name, table in arrays.items()
    }


def hybrid_loss(
    tables: Mapping[str, Tensor], x_0: Tensor, t: Tensor, eps: Tensor, network: Network
) -> Tensor:
    """L_simple + 0.001 L_vlb, the mean over the batch. Eq. 16, arXiv 2102.09672.

    Args:
        tables: of all T steps.
        x_0: (b, h, w, 3) images in [-1, 1].
        t: (b,) rows of the tables.
        eps: (b, h, w, 3) noise.
        network: `(x_t, t) -> [eps | variance fraction]`.
    """
    at = {name: table[t][:, None, None, None] for name, table in tables.items()}
    x_t = at["image"] * x_0 + at["noise"] * eps
    eps_hat, fraction = network(x_t, t).chunk(2, -1)
    mse = torch.square(eps - eps_hat).mean((1, 2, 3))

    x_0_hat = at["recip"] * x_t - at["recipm1"] * eps_hat.detach()
    q_mean = at["mean_x_0"] * x_0 + at["mean_x_t"] * x_t
    p_mean = at["mean_x_0"] * x_0_hat + at["mean_x_t"] * x_t
    f = (fraction + 1) / 2
    p_log_variance = f * at["log_beta"] + (1 - f) * at["log_variance"]
    difference = at["log_variance"] - p_log_variance
    square = torch.square(q_mean - p_mean) * torch.exp(-p_log_variance)
    kl = 0.5 * (torch.expm1(difference) - difference + square)

    centered, inv_sigma = x_0 - p_mean, torch.exp(-0.5 * p_log_variance)
    upper = _normal_cdf(inv_sigma * (centered + 1 / 255))
    lower = _normal_cdf(inv_sigma * (centered - 1 / 255))
    inner = torch.where(x_0 > 0.999, 1 - lower, upper - lower)
    probability = torch.where(x_0 < -0.999, upper, inner)
    nll = -torch.log(torch.clamp(probability, min=1e-12))
    vb = torch.where(t == 0, nll.mean((1, 2, 3)), kl.mean((1, 2, 3))) / math.log(2)
    return torch.mean(mse + len(tables["image"]) / 1000 * vb)


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class TorchTrainer:
    """The twin's counterpart of `training.step.Trainer`, for base models that predict eps.

    Args:
        config: the run.
        params: initial parameters by our names, float32.
        device: "cpu" or "cuda".
        compiled: whether torch.compile compiles loss and gradient.
    """

    def __init__(
        self, config: Config, params: Mapping[str, Any], device: str, compiled: bool = False
    ) -> None:
        self.twin = Twin.of(config.denoiser, params, device)
        self._params = list(self.twin.parameters())
        self._ema = [p.detach().clone() for p in self._params]
        self._tables = tables(Schedule.of(config.diffusion), device)
        optim = config.optim
        self._clip_norm = optim.clip_norm
        self._optimizer = torch.optim.AdamW(
            self._params,
            optim.learning_rate,
            (optim.b1, optim.b2),
            optim.eps,
            optim.weight_decay,
            fused=True,
        )
        self._update_ema = get_ema_multi_avg_fn(optim.ema_decay)
        self._loss: Callable[..., Tensor] = torch.compile(self.loss) if compiled else self.loss

    def loss(self, image: Tensor, tokens: Tensor, mask: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Mean loss of a batch with its noise; images are 8-bit levels."""
        image = image.float() / 127.5 - 1
        text = self.twin.encode_text(tokens, mask)
        return hybrid_loss(self._tables, image, t, eps, lambda x_t, t: self.twin(x_t, t, text))

    def gradient(
        self, image: Tensor, tokens: Tensor, mask: Tensor, t: Tensor, eps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss, and global norm of the gradient, which is left in the parameters, clipped."""
        self._optimizer.zero_grad()
        loss = self._loss(image, tokens, mask, t, eps)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._params, self._clip_norm, foreach=True)
        return loss.detach(), norm

    def step(self, image: Tensor, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """One step with new noise: loss and gradient norm."""
        t = torch.randint(len(self._tables["image"]), image.shape[:1], device=image.device)
        eps = torch.randn(image.shape, device=image.device)
        found = self.gradient(image, tokens, mask, t, eps)
        self._optimizer.step()
        with torch.no_grad():
            self._update_ema(self._ema, self._params, 0)
        return found
