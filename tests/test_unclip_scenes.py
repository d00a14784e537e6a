"""Accuracy of unCLIP's images of scenes."""

from helpers.unclip_set import write_unclip

from glide_jax.evaluation.scenes import unclip


def test_accuracy_by_guidance_scale(tmp_path, capsys):
    models, out = write_unclip(tmp_path / "models"), tmp_path / "plot.png"
    flags = ["--n", "2", "--steps", "2", "--scales", "1", "--no-glide", "--out", str(out)]
    folders = [
        flag for role in ("clip", "decoder") for flag in ("--checkpoint", str(models / role))
    ]
    unclip.main([*folders, "--embeddings", "true", *flags])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "unCLIP, true embedding"
    assert lines[2].split()[1].endswith("%")
    assert out.exists()
