"""The PyTorch twin that benchmarks measure against, where PyTorch is installed (`make bench`)."""

import pytest

pytest.importorskip("torch")


def test_the_twin_equals_this_project_in_outputs_loss_and_gradient():
    from benchmarks.pairs import check

    assert set(check()) == {"base", "upsampler", "loss", "gradient norm"}
