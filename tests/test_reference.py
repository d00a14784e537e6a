"""References: sizes of their images, and which of a file's statistics and images are used."""

import numpy as np
from PIL import Image

from glide_jax.evaluation.image_sets import Preparation, open_images
from glide_jax.evaluation.reference import open_reference, warn_of_other_sizes


def test_images_and_references_of_other_sizes_are_warned_of(caplog, tmp_path):
    """Unless their ranges overlap, or --px prepares both."""
    for name, sides in (("samples", (24,)), ("large", (40, 64)), ("mixed", (20, 30))):
        (tmp_path / name).mkdir()
        for side in sides:
            Image.new("RGB", (side, side)).save(tmp_path / name / f"{side}.png")
    samples = open_images([tmp_path / "samples"])
    for name in ("mixed", "large"):
        warn_of_other_sizes(samples, open_images([tmp_path / name]))
    (record,) = caplog.records
    assert record.message.startswith(f"{tmp_path / 'samples'} has images of 24 px, the reference ")
    assert "large of 40 to 64 px: the numbers compare resizing filters too; give --px 24" in (
        record.message
    )
    prepared = [open_images([tmp_path / name], "", Preparation(8)) for name in ("mixed", "large")]
    warn_of_other_sizes(*prepared)
    assert len(caplog.records) == 1


def test_images_beside_statistics_of_another_network_are_the_reference(tmp_path):
    path, statistics = tmp_path / "adm.npz", {"mu": np.zeros(3), "sigma": np.eye(3)}
    np.savez(path, **statistics, arr_0=np.zeros((3, 8, 8, 3), np.uint8))
    for network, known in (("inception", True), ("dinov2-vit-s-14", False)):
        found, measured = open_reference([path], "", Preparation(), None, network)
        assert len(list(found)) == 3
        assert (measured.statistics is not None) == known
