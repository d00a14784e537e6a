"""Lines about the data at the start of training."""

import dataclasses
import io

import numpy as np
import pytest
from helpers import model_set, tiny
from PIL import Image

from glide_jax.config import DiffusionConfig
from glide_jax.data.records import Record
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.data.tokenizers.clip_bpe import ClipTokenizer
from glide_jax.training import data_report as module
from glide_jax.training.data_report import data_report, low_res_difference

WORDS = ["all red", "all green", "all blue"]
TOKENIZER = Tokenizer.train(WORDS * 2, 300)


class Source:
    """Images of given sides, each with one caption."""

    def __init__(self, sides_px, captions):
        self._sides_px, self._captions = sides_px, captions
        self.reads = 0

    def __len__(self):
        return len(self._sides_px)

    def __getitem__(self, index):
        self.reads += 1
        file = io.BytesIO()
        px = self._sides_px[index]
        levels = np.random.default_rng(index).integers(0, 256, (px, px + 2, 3), np.uint8)
        Image.fromarray(levels).save(file, "PNG")
        image = file.getvalue() if px > 1 else b"no image"
        return Record(image, (self._captions[index],), str(index))

    def captions(self, index):
        return (self._captions[index],)


def test_truncated_captions_and_small_images_are_reported():
    config = tiny.get_config()  # of 8 tokens and 8 px
    source = Source([4, 7, 8, 9, 100, 1], ["all red", *["all green blue red " * 4] * 2, *WORDS])
    captions, warning, sizes, small = data_report(config, source, TOKENIZER)
    counts = [len(TOKENIZER.encode([c], 999)[1].nonzero()[0]) for c in source._captions[:5]]
    words = [len(c.split()) for c in source._captions[:5]]
    per_word = sum(counts) / sum(words)
    assert captions == (
        f"captions: {per_word:.1f} tokens per word, 40% truncated at 8 tokens (of 5 read)"
    )
    assert warning.startswith("warning: the model does not see the end of 40% of the captions")
    assert sizes == "images: 40% smaller than 8 px, upsampled first (of 5 read)"
    assert small.startswith("warning: 40% of the images are upsampled")
    assert TOKENIZER.truncated == 0  # the log counts those of the training alone


def test_captions_that_fit_have_no_warning():
    report = data_report(tiny.get_config(), Source([8] * 3, WORDS), TOKENIZER)
    assert len(report) == 2 and " 0% truncated" in report[0] and " 0% smaller" in report[1]


def test_start_and_end_tokens_of_a_clip_count():
    tokenizer = ClipTokenizer.train(WORDS * 2, 600)
    caption = "all red all blue all red"
    assert tokenizer.count(caption) == 6
    for length, warned in ((8, False), (7, True)):
        config = model_set.clip_config()
        text = dataclasses.replace(config.model.text, length=length)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, text=text))
        assert tokenizer.encode([caption], length)[0].shape == (1, length)
        assert (len(data_report(config, Source([8], [caption]), tokenizer)) == 3) == warned
    assert tokenizer.truncated == 1


def test_reading_stops_after_some_time(monkeypatch):
    monkeypatch.setattr(module, "LIMIT_S", -1.0)
    source = Source([8] * 3, WORDS)
    assert "(of 1 read)" in data_report(tiny.get_config(), source, TOKENIZER)[0]
    assert source.reads == 1


@pytest.mark.parametrize("factor", [1.2, 3.0])
def test_low_res_std_is_compared_with_the_data(factor):
    config = model_set.upsampler_config(inpaint=False)  # 8 to 16 px
    source = Source([16] * 3, WORDS)
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(source[i].image))) for i in range(3)])
    images = pixels[:, :, 1:17].astype(np.float32) / 127.5 - 1
    measured = low_res_difference(images, 8)
    blocks = images.reshape(3, 8, 2, 8, 2, 3).mean((2, 4)).repeat(2, 1).repeat(2, 2)
    assert 0.9 < measured / np.sqrt(np.mean((images - blocks) ** 2)) < 1.1
    diffusion = DiffusionConfig(prediction="v", low_res_std=measured * factor)
    config = dataclasses.replace(config, diffusion=diffusion)
    lines = data_report(config, source, TOKENIZER)
    assert lines[2].startswith("low_res_std: 0.") and " in the data, diffusion." in lines[2]
    assert (len(lines) == 4) == (factor > 2)
    if factor > 2:
        value = float(lines[3].rpartition("--diffusion.low-res-std ")[2])
        assert abs(value / measured - 1) < 0.1
