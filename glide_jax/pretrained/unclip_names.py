"""Parameter names of unCLIP's published checkpoints: Karlo's own, diffusers' and transformers'.

A file of diffusers or transformers is FOLDER/NAME of a pipeline here FOLDER.NAME. They split the
projections to queries, keys and values, which are one matmul here: the tables are about tensors
that `projections.fused` has joined.
"""

from glide_jax.pretrained.names import (
    DENOISER,
    KERNELS,
    LEAF,
    NONE,
    TABLES,
    Patterns,
    Rules,
    prefixed,
)

_LEAF = r"(?P<leaf>\w+)"
_N = r"(?P<n>\d+)"

CLIP_STATISTICS = "clip_stats"
"""Before the two names, 0 and 1, of Karlo's file of mean and standard deviation."""


def _layers(names: dict[str, str]) -> Patterns:
    """Patterns of layers with kernel or scale, and bias, by our name."""
    return tuple((rf"{ours}\.{_LEAF}", f"{theirs}.{{leaf}}") for ours, theirs in names.items())


KARLO_PRIOR = Rules((
    (r"mean", f"{CLIP_STATISTICS}.0"),
    (r"std", f"{CLIP_STATISTICS}.1"),
    *prefixed((
        (r"position_embedding", "positional_embedding"),
        (r"query", "prd_emb"),
        *_layers({
            "time_emb1": "time_embed.0",
            "time_emb2": "time_embed.2",
            "text_states": "text_enc_proj",
            "text_embedding": "text_emb_proj",
            "image_embedding": "clip_img_proj",
            "norm_out": "final_ln",
            "out": "out_proj",
        }),
        (rf"blocks\.{_N}\.(?P<text>.+)\.{_LEAF}", "transformer.resblocks.{n}.{text}.{leaf}"),
    ), "", "model"),
), TABLES)  # fmt: skip
"""Names in Karlo's prior-ckpt, and in ViT-L-14_stats.th after CLIP_STATISTICS."""

KARLO_DECODER = Rules(prefixed((
    (r"image_null", "cf_param"),
    *_layers({
        "image_emb": "clip_emb",
        "image_tokens": "clip_tok_proj",
        "text_emb": "text_feat_proj",
        "text_states": "text_seq_proj.0",
        "text_norm": "text_seq_proj.1",
    }),
    *DENOISER.patterns,
), "", "model"), TABLES)  # fmt: skip
"""Names in Karlo's decoder-ckpt."""

SR_PARTS = {"first": "model_first_steps", "last": "model_last_step"}
"""Karlo's words for our two networks of an upsampler."""
KARLO_SR = Rules(
    tuple(
        pattern
        for ours, theirs in SR_PARTS.items()
        for pattern in prefixed(DENOISER.patterns, ours, theirs)
    ),
    TABLES,
)
"""Names in Karlo's improved-sr-ckpt."""

_DIFFUSERS_RES = {
    "norm1": "norm1",
    "conv1": "conv1",
    "emb": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "skip": "conv_shortcut",
}
_DIFFUSERS_ATTENTION = {
    "norm": "group_norm",
    "qkv": "to_qkv",
    "text_kv": "add_kv_proj",
    "out": "to_out.0",
}
_DIFFUSERS_BLOCK = {
    "norm1": "norm1",
    "attention.qkv": "attn1.to_qkv",
    "attention.out": "attn1.to_out.0",
    "norm2": "norm3",
    "mlp_in": "ff.net.0.proj",
    "mlp_out": "ff.net.2",
}
_TRANSFORMERS_BLOCK = {
    "norm1": "layer_norm1",
    "qkv": "self_attn.qkv_proj",
    "out": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}
_DIFFUSERS_TABLES = {
    "res": _DIFFUSERS_RES,
    "attention": _DIFFUSERS_ATTENTION,
    "block": _DIFFUSERS_BLOCK,
    "clip": _TRANSFORMERS_BLOCK,
    "leaf": LEAF,
}

_RES, _ATTENTION = rf"res\.(?P<res>\w+)\.{_LEAF}", rf"attention\.(?P<attention>\w+)\.{_LEAF}"
_DIFFUSERS_UNET: Patterns = (
    *_layers({
        "time_emb1": "time_embedding.linear_1",
        "time_emb2": "time_embedding.linear_2",
        r"unet\.conv_in": "conv_in",
        r"unet\.norm_out": "conv_norm_out",
        r"unet\.conv_out": "conv_out",
    }),
    (rf"unet\.down\.{_N}\.{_RES}", "down_blocks.{level}.{down}.{res}.{leaf}"),
    (rf"unet\.down\.{_N}\.{_ATTENTION}",
     "down_blocks.{level}.attentions.{index}.{attention}.{leaf}"),
    (rf"unet\.middle\.(?P<middle_n>\d)\.{_RES}", "mid_block.resnets.{middle_n}.{res}.{leaf}"),
    (rf"unet\.middle\.0\.{_ATTENTION}", "mid_block.attentions.0.{attention}.{leaf}"),
    (rf"unet\.up\.{_N}\.{_RES}", "up_blocks.{level}.resnets.{index}.{res}.{leaf}"),
    (rf"unet\.up\.{_N}\.{_ATTENTION}", "up_blocks.{level}.attentions.{index}.{attention}.{leaf}"),
    (rf"unet\.up\.{_N}\.up\.(?P<res>\w+)\.{_LEAF}",
     "up_blocks.{level}.upsamplers.0.{res}.{leaf}"),
)  # fmt: skip

DIFFUSERS_PRIOR = Rules(prefixed((
    (r"mean", "clip_mean"),
    (r"std", "clip_std"),
    (r"position_embedding", "positional_embedding"),
    (r"query", "prd_embedding"),
    *_layers({
        "time_emb1": "time_embedding.linear_1",
        "time_emb2": "time_embedding.linear_2",
        "text_states": "encoder_hidden_states_proj",
        "text_embedding": "embedding_proj",
        "image_embedding": "proj_in",
        "norm_out": "norm_out",
        "out": "proj_to_clip_embeddings",
    }),
    (rf"blocks\.{_N}\.(?P<block>.+)\.{_LEAF}", "transformer_blocks.{n}.{block}.{leaf}"),
), "", "prior"), _DIFFUSERS_TABLES)  # fmt: skip
"""Names in the folder prior/; its clip_mean and clip_std have an axis of size 1 before."""

DIFFUSERS_DECODER = Rules((
    *prefixed((
        (r"image_null", "learned_classifier_free_guidance_embeddings"),
        *_layers({
            "image_emb": "clip_image_embeddings_project_to_time_embeddings",
            "image_tokens": "clip_extra_context_tokens_proj",
            "text_emb": "embedding_proj",
            "text_states": "encoder_hidden_states_proj",
            "text_norm": "text_encoder_hidden_states_norm",
        }),
    ), "", "text_proj"),
    *prefixed(_DIFFUSERS_UNET, "", "decoder"),
), _DIFFUSERS_TABLES, conv_1d=NONE)  # fmt: skip
"""Names in the folders decoder/ and text_proj/."""

DIFFUSERS_SR = Rules((
    *prefixed(_DIFFUSERS_UNET, "first", "super_res_first"),
    *prefixed(_DIFFUSERS_UNET, "last", "super_res_last"),
), _DIFFUSERS_TABLES)  # fmt: skip
"""Names in the folders super_res_first/ and super_res_last/."""

TRANSFORMERS_CLIP = Rules((
    (r"text\.token_embedding", "text_model.embeddings.token_embedding.weight"),
    (r"text\.position_embedding", "text_model.embeddings.position_embedding.weight"),
    (r"text\.projection", "text_projection.weight"),
    (r"image\.class_embedding", "vision_model.embeddings.class_embedding"),
    (r"image\.position_embedding", "vision_model.embeddings.position_embedding.weight"),
    (r"image\.projection", "visual_projection.weight"),
    *_layers({
        r"text\.norm_out": "text_model.final_layer_norm",
        r"image\.patches": "vision_model.embeddings.patch_embedding",
        r"image\.norm_in": "vision_model.pre_layrnorm",  # as it is spelled there
        r"image\.norm_out": "vision_model.post_layernorm",
    }),
    (rf"text\.blocks\.{_N}\.(?P<clip>\w+)\.{_LEAF}",
     "text_model.encoder.layers.{n}.{clip}.{leaf}"),
    (rf"image\.blocks\.{_N}\.(?P<clip>\w+)\.{_LEAF}",
     "vision_model.encoder.layers.{n}.{clip}.{leaf}"),
    (r"logit_scale", "logit_scale"),
), _DIFFUSERS_TABLES, transposed=rf"{KERNELS}|.*\.projection")  # fmt: skip
"""Names in transformers' CLIP models; those in text_encoder/ and image_encoder/ are parts of
them, without logit_scale."""
