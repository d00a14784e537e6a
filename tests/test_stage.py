"""How often a stage compiles, how many rows its network sees, and in which order it works.

The network is a stand-in that costs nothing and records both.
"""

from types import SimpleNamespace
from unittest.mock import create_autospec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from helpers.one_device import one_device_mesh

from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.models.clip import Clip
from glide_jax.models.glide import GlideModel, TextFeatures
from glide_jax.models.network import Network
from glide_jax.parallel.sharding import local_mesh
from glide_jax.sampling import batches as batches_module
from glide_jax.sampling.clip import ClipScorer
from glide_jax.sampling.conditions import Conditions
from glide_jax.sampling.programs import Programs
from glide_jax.sampling.settings import changed_settings
from glide_jax.sampling.stage import Stage


class Recorder:
    """A network. `traced` has the rows of each compiled call; `rows`, of each call made."""

    def __init__(self):
        self.traced, self.rows, self.texts = [], [], []

    def bind(self, params, platform):
        model = create_autospec(GlideModel, instance=True)
        model.condition.return_value = None
        model.encode_text.side_effect = self.encode_text
        model.denoiser.side_effect = self.denoiser
        return model

    def encode_text(self, tokens, mask, low_res_t):
        self.texts.append(len(tokens))
        return TextFeatures(jnp.float32(tokens), ())

    def denoiser(self, text, condition):
        def denoise(x_t, t):
            n = len(x_t)
            assert len(text.embedding) == n
            self.traced.append(n)
            jax.debug.callback(lambda: self.rows.append(n))
            return jnp.concatenate([jnp.sin(x_t), x_t], -1)

        return denoise


def guide():
    """A CLIP whose embedding of an image is its mean color."""
    clip = create_autospec(Clip, instance=True)
    clip.logit_scale = np.zeros(())
    clip.encode_image.side_effect = lambda x_t, t: jnp.mean(x_t, (1, 2))
    scorer = create_autospec(ClipScorer, instance=True)
    scorer.params, scorer.network = {}, create_autospec(Network, instance=True)
    scorer.network.bind.return_value = clip
    scorer.encode_text.side_effect = lambda prompts: np.ones((len(prompts), 3), np.float32)
    return scorer


GUIDE = guide()


@pytest.fixture(scope="module")
def recorded():
    """A stage with a recorder in place of its network."""
    config, recorder = tiny.get_config(), Recorder()
    stage = Stage(config, {}, Tokenizer.train(["all red"], 300))
    stage._mesh = one_device_mesh()
    stage.programs = Programs(stage.model, config.diffusion, stage._mesh)
    stage.programs.network = recorder
    stage._require_sampleable = lambda *arguments: None
    return stage, recorder


def images(stage, count, conditions=Conditions(), strength=1.0, **settings):  # noqa: B008
    settings = changed_settings(stage.config.sample, **settings)
    prompts, clip = ["all red"] * count, GUIDE if settings.clip_guidance_scale else None
    return stage.sample(prompts, range(count), settings, conditions, strength=strength, clip=clip)


def rows_of(recorder, sample):
    """Rows of every call that the network makes in `sample`."""
    recorder.rows.clear()
    sample()
    jax.effects_barrier()
    return recorder.rows


CUT = {"sampler": "ddim", "steps": 20, "guidance_scale": 3.0, "guidance_interval": (100, 800)}


def test_values_steps_and_numbers_of_prompts_do_not_recompile(recorded):
    stage, recorder = recorded
    start = Conditions(start=np.zeros((11, 8, 8, 3), np.uint8))
    images(stage, 11, **CUT)
    images(stage, 11, **CUT, dynamic_threshold=0.9)
    images(stage, 11, start, **CUT)
    # One program at a time: guided and unguided, clipped and with a dynamic threshold.
    compiled = list(recorder.traced), list(recorder.texts)
    assert len(compiled[0]) == 4 and sorted(set(compiled[0])) == [12, 24]
    assert compiled[1] == [24, 24]  # with and without images to start from
    for change in (
        {"guidance_scale": 5.0},
        {"guidance_scale": 1.0},
        {"temperature": 0.9},
        {"guidance_interval": (333, 444)},
        {"guidance_rescale": 0.7},
        {"dynamic_threshold": 0.8},
        {"dynamic_threshold": 0.99, "guidance_rescale": 0.2},
        {"steps": 7},
        {"steps": "karras33"},
    ):
        images(stage, 11, **CUT | change)
    images(stage, 9, **CUT)
    images(stage, 11, start, strength=0.4, **CUT)
    images(stage, 11, start, strength=0.9, **CUT)
    unguided_text = [12]
    assert (recorder.traced, recorder.texts) == (compiled[0], compiled[1] + unguided_text)


@pytest.mark.parametrize("clip_guidance_scale", [0.0, 2.0])
def test_the_unconditional_half_is_computed_inside_the_guidance_interval_only(
    recorded, clip_guidance_scale
):
    stage, recorder = recorded
    settings = CUT | {"clip_guidance_scale": clip_guidance_scale}
    rows = rows_of(recorder, lambda: images(stage, 12, **settings))
    t = stage.programs.plan(changed_settings(stage.config.sample, **CUT)).schedule.timestep_map
    inside = (t >= 100) & (t <= 800)
    assert rows == [24 if inside_now else 12 for inside_now in inside[::-1]]
    assert 0 < inside.sum() < len(inside)


@pytest.mark.parametrize(
    ("count", "batch_size", "size"),
    [
        (16, None, 16),
        (17, None, 12),
        (33, None, 12),
        (24, 16, 12),
        (5, 16, 16),
        (11, 5, 4),
        (3, 1, 1),
    ],
)
def test_batches_are_equal(recorded, count, batch_size, size):
    stage, _ = recorded
    assert stage._batch_size(["x"] * count, range(count), batch_size) == size


def test_all_chunks_on_several_devices_share_a_program(recorded, monkeypatch):
    """Their states have one sharding: jax.jit would compile for another one, without tracing."""
    stage, recorder = recorded
    mesh, shardings = local_mesh(fsdp=2), []
    programs = Programs(stage.model, stage.config.diffusion, mesh)
    programs.network = recorder
    advance = programs.advance

    def recording(*arguments, **static):
        shardings.append({x.sharding for x in jax.tree.leaves(arguments[3:5])})
        return advance(*arguments, **static)

    programs.advance = recording
    monkeypatch.setattr(stage, "programs", programs)
    monkeypatch.setattr(stage, "_mesh", mesh)
    images(stage, 8, sampler="plms", steps=2)
    assert shardings == [{programs.placement(8)}] * 2


@pytest.mark.parametrize(
    ("queued", "order"),
    [(0, "d0 f0 d1 f1 d2 f2"), (1, "d0 d1 f0 d2 f1 f2")],
)
def test_accelerators_get_the_next_batch_before_the_last_is_read(
    recorded, monkeypatch, queued, order
):
    stage, _ = recorded
    events = []

    def dispatch(programs, params, batch, task):
        events.append(f"d{int(batch.seeds[0]) // 8}")
        return batch.seeds, 0

    def on_host(seeds):
        events.append(f"f{int(seeds[0]) // 8}")
        return np.zeros((len(seeds), 8, 8, 3), np.float32)

    assert stage._batches._queued == 0  # on a CPU
    monkeypatch.setattr(stage._batches, "_queued", queued)
    monkeypatch.setattr(stage._batches, "_dispatch", dispatch)
    monkeypatch.setattr(batches_module, "_on_host", on_host)
    found = stage.sample(["x"] * 20, range(20), stage.config.sample, batch_size=8)
    assert events == order.split() and found.shape == (20, 8, 8, 3)


def test_the_bar_is_one_chunk_behind_the_queue(recorded, monkeypatch):
    stage, _ = recorded
    events = []

    def advance(*arguments, **static):
        events.append("queued")
        return SimpleNamespace(x_t=arguments[4].x_t)

    monkeypatch.setattr(stage.programs, "advance", advance)
    monkeypatch.setattr(jax, "block_until_ready", lambda state: events.append("waited"))
    settings = changed_settings(stage.config.sample, steps=20)
    stage.sample(["x"], [0], settings, progress=True)
    assert events == ["queued", "waited"] * 10
    events.clear()
    stage.sample(["x"], [0], settings)
    assert events == ["queued"] * 10
