"""Previews during training."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.model_set import CAPTIONS
from helpers.tiny import get_config

from glide_jax.config import Folder
from glide_jax.data.sources import open_source
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.models.glide import glide_network
from glide_jax.parallel import sharding
from glide_jax.sampling.stage import Stage
from glide_jax.training.preview import Preview


@pytest.mark.slow
def test_parameters_are_sharded_over_the_devices_of_this_process(color_folder, monkeypatch):
    monkeypatch.setattr(sharding, "FSDP_MIN_SIZE", 64)
    config = get_config()
    config = replace(
        config,
        data=replace(config.data, source=Folder(str(color_folder))),
        sample=replace(config.sample, steps="2"),
    )
    rng = np.random.default_rng(0)
    params = {
        name: 0.05 * rng.standard_normal(shape.shape, np.float32)
        for name, shape in glide_network(config.denoiser).shapes.items()
    }
    tokenizer = Tokenizer.train(CAPTIONS, 300)
    held_out = open_source(config.data, "all")
    parts, sample = [], Stage.sample

    def watched(stage, *arguments):
        kernel = stage.params["text.blocks.0.mlp_out.kernel"]
        parts.append(kernel.size // kernel.addressable_shards[0].data.size)
        return sample(stage, *arguments)

    monkeypatch.setattr(Stage, "sample", watched)
    grids = []
    for fsdp in (1, 64):  # more than this process has
        shared = replace(config, train=replace(config.train, fsdp=fsdp))
        grids.append(Preview(shared, tokenizer, held_out).sample(params).astype(int))
    assert parts == [1, 8]
    assert np.abs(grids[0] - grids[1]).max() <= 1
