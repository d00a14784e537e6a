"""The measures of upsamplers and CLIPs, and their commands on small random models."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from glide_jax import UserError
from glide_jax.evaluation import retrieval, upsampling


def test_psnr_is_in_decibels():
    whole = np.full((2, 4, 4, 3), 100, np.uint8)
    off = whole.copy()
    off[0] += 10
    np.testing.assert_allclose(upsampling.psnr(off, whole), [20 * np.log10(25.5), np.inf])


def test_top_1_counts_own_captions_within_groups():
    text = np.eye(5)
    assert retrieval.top_1(text, text, 2) == 1  # the fifth fills no group
    swapped = text[[1, 0, 2, 3, 4]]
    assert retrieval.top_1(swapped, text, 2) == 0.5
    assert retrieval.top_1(swapped, text, 5) == 3 / 5


@pytest.fixture
def on_colours(models, colour_folder, monkeypatch):
    """The models' data set is the eight colours."""
    real = upsampling.open_source

    def opened(config, split):
        return real(replace(config, source="folder", path=str(colour_folder)), "all")

    for module in (upsampling, retrieval):
        monkeypatch.setattr(module, "open_source", opened)
    return models


def test_upsampling_is_compared_with_bicubic(on_colours, tmp_path, capsys):
    out = tmp_path / "grid.png"
    upsampling.main(upsampling.Arguments(on_colours, n=3, steps="2", batch_size=2, out=out))
    said = capsys.readouterr().out
    assert "upsampler" in said and "bicubic" in said and "3 pictures, 8 to 16 px" in said
    assert Image.open(out).size[0] > 8 * 192
    with pytest.raises(UserError, match="--n 0"):
        upsampling.main(upsampling.Arguments(on_colours, n=0))


def test_retrieval_prints_a_share_for_each_noise_level(on_colours, tmp_path, capsys):
    out = tmp_path / "curve.png"
    clip = on_colours / "clip"
    retrieval.main(retrieval.Arguments(clip, n=8, among=4, caption_index=0, t=(0, 500), out=out))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["t =   0", "t = 500"]
    assert Image.open(out).size[0] > 500
    with pytest.raises(UserError, match="--caption-index 1: some records have 1 captions"):
        retrieval.main(retrieval.Arguments(clip, n=8, among=4))
    with pytest.raises(UserError, match="there are 8 records"):
        retrieval.main(retrieval.Arguments(clip, n=9, among=9))
    with pytest.raises(UserError, match="--among 9"):
        retrieval.main(retrieval.Arguments(clip, n=8, among=9))
    with pytest.raises(UserError, match="a CLIP is needed"):
        retrieval.main(retrieval.Arguments(on_colours / "base", n=8, among=4))
