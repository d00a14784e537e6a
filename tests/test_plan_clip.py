"""Plans of runs that learn from a CLIP, whose weights are not there."""

import jax
import pytest
from helpers.one_device import one_device_mesh
from helpers.tiny_prior import changed, prior_config, write_clip

from glide_jax.cli import load_config
from glide_jax.errors import UserError
from glide_jax.models.openai_clip import RELEASED
from glide_jax.plan.clip import clip_config_of, with_planned_clip
from glide_jax.plan.training import _bytes_by_part, saved_activations
from glide_jax.training.build import make_objective
from glide_jax.training.flops import abstract_batch
from glide_jax.training.step import Trainer


def test_the_sizes_of_a_clip_are_found_without_its_run():
    paper, karlo = (load_config(name) for name in ("unclip_prior", "unclip_karlo_prior"))
    assert clip_config_of(paper) == load_config("unclip_clip").clip
    assert clip_config_of(karlo) == RELEASED["clip-vit-l-14"]
    assert with_planned_clip(load_config("scenes_tiny"))[1] is None
    with pytest.raises(UserError, match=r"train\.clip_run 'x': the sizes of this CLIP"):
        with_planned_clip(changed(prior_config(), "train", clip_run="x"))


def test_a_priors_step_is_lowered_from_shapes(tmp_path):
    config = changed(prior_config(), "train", clip_run=str(write_clip(tmp_path / "clip")))
    config, clip = with_planned_clip(config)
    trainer = Trainer(config, make_objective(config, clip), one_device_mesh())
    assert (
        "dot_general"
        in trainer.lower(abstract_batch(config, clip.config if clip else None)).as_text()
    )
    assert _bytes_by_part(trainer, trainer._objective)["clip"] > 4 * 600 * 32  # the embeddings
    assert saved_activations(config, jax.devices()[:1]) > 0
