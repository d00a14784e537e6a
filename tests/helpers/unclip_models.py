"""unCLIP's golden models: configurations, and weights under our names."""

from helpers.unclip_golden import unclip_golden

from glide_jax.config import (
    ClipConfig,
    ClipImageConfig,
    ClipStatesConfig,
    ClipTextConfig,
    ModelConfig,
    PriorConfig,
    TextConfig,
    UNetConfig,
)
from glide_jax.models.build import build_network
from glide_jax.pretrained.names import from_original
from glide_jax.pretrained.unclip_names import (
    CLIP_STATISTICS,
    KARLO_DECODER,
    KARLO_PRIOR,
    KARLO_SR,
)
from glide_jax.pretrained.vision_names import OPENAI_CLIP


def clip_config():
    meta, _, _ = unclip_golden("clip")
    return ClipConfig(
        architecture="openai",
        text=ClipTextConfig(
            vocab_size=meta["vocab_size"],
            length=meta["context_length"],
            width=meta["transformer_width"],
            layers=meta["transformer_layers"],
            heads=meta["transformer_heads"],
        ),
        image=ClipImageConfig(
            resolution_px=meta["image_resolution"],
            patch_px=meta["vision_patch_size"],
            width=meta["vision_width"],
            layers=meta["vision_layers"],
            heads=meta["vision_heads"],
        ),
        embedding_width=meta["embed_dim"],
        steps=1,
        dtype="float32",
    )


def prior_config():
    meta, _, _ = unclip_golden("prior")
    return PriorConfig(
        text=ClipStatesConfig(clip_config().text.vocab_size, meta["text_ctx"], meta["clip_dim"]),
        embedding_width=meta["clip_dim"],
        width=meta["xf_width"],
        layers=meta["xf_layers"],
        heads=meta["xf_heads"],
        resolution_px=clip_config().image.resolution_px,
        dtype="float32",
    )


def decoder_config():
    meta, _, _ = unclip_golden("decoder")
    return ModelConfig(
        text=TextConfig(
            encoder="clip",
            vocab_size=clip_config().text.vocab_size,
            length=meta["text_ctx"],
            width=meta["xf_width"],
            clip_width=meta["clip_dim"],
        ),
        unet=UNetConfig(
            resolution_px=meta["image_size"],
            channels=meta["num_channels"],
            channel_mult=_numbers(meta["channel_mult"]),
            res_blocks=meta["num_res_blocks"],
            attention_px=_numbers(meta["attention_resolutions"]),
            middle_attention=meta["middle_attention"],
            head_width=meta["num_head_channels"],
            embedding="scale-shift" if meta["use_scale_shift_norm"] else "add",
        ),
        image_embedding_width=meta["clip_dim"],
        image_tokens=meta["clip_emb_mult"],
        learned_variance=meta["out_channels"] == 6,
        dtype="float32",
    )


def sr_config(file="sr"):
    """The upsampler, at the resolution of a file: of single passes or of trajectories."""
    meta, _, _ = unclip_golden("sr")
    _, _, arrays = unclip_golden(file)
    resolution_px = arrays["low_res"].shape[1]
    return ModelConfig(
        text=TextConfig(encoder="none"),
        unet=UNetConfig(
            resolution_px=resolution_px,
            channels=meta["channels"],
            channel_mult=tuple(meta["channels_multiple"]),
            res_blocks=meta["depth"],
            attention_px=(),
            middle_attention=False,
            embedding="scale-shift" if meta["use_scale_shift_norm"] else "add",
        ),
        low_res_px=arrays["small"].shape[1] if "small" in arrays else resolution_px // 4,
        low_res_resize="bicubic",
        learned_variance=meta["out_channels"] == 6,
        last_step_network=True,
        dtype="float32",
    )


def converted(config, weights):
    """Parameters of a model, from weights under the published names."""
    if isinstance(config, ClipConfig):
        rules = OPENAI_CLIP
    elif isinstance(config, PriorConfig):
        rules = KARLO_PRIOR
        _, _, arrays = unclip_golden("prior")
        statistics = {"0": arrays["clip_mean"], "1": arrays["clip_std"]}
        weights = weights | {f"{CLIP_STATISTICS}.{k}": x for k, x in statistics.items()}
    else:
        rules = KARLO_SR if config.last_step_network else KARLO_DECODER
    return from_original(weights, build_network(config).shapes, rules)


def _numbers(text):
    return tuple(map(int, text.split(",")))
