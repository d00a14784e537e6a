"""Curves and sample strips of small runs with known values."""

import json
import sys

import numpy as np
import pytest
from helpers import tiny
from helpers.model_set import inpaint_config
from PIL import Image

from glide_jax.errors import UserError
from glide_jax.images import draw_grid, save_png
from glide_jax.plot.__main__ import main
from glide_jax.plot.curves import COLORS, bucket_panels, plot_curves, read_curves, smoothed
from glide_jax.plot.sample_strip import sample_strip

BUCKETS = ("t000-199", "t200-399", "t400-599", "t600-799", "t800-999")


def write_metrics(folder, lines):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def denoiser_lines(last_step, scale=1.0):
    for step in range(10, last_step + 1, 10):
        loss = scale * (0.05 + np.exp(-step / 50))
        yield {
            "step": step, "loss": loss, "mse": loss, "vb": 0.0, "grad_norm": 1 / step,
            "images_per_s": 100.0, "loader_wait_fraction": 0.0, "skipped": 0.0,
        }  # fmt: skip
        if step % 50 == 0:
            losses = {"validation_loss": loss, "validation_loss_raw": 1.1 * loss}
            of_t = {f"validation_mse_{name}": loss / (1 + i) for i, name in enumerate(BUCKETS)}
            raw = {f"{name}_raw": value for name, value in of_t.items()}
            yield {"step": step} | losses | of_t | raw


def clip_lines(last_step):
    for step in range(10, last_step + 1, 10):
        yield {
            "step": step, "loss": 3.0, "accuracy": 0.5, "temperature": 0.07, "grad_norm": 1.0,
            "images_per_s": 100.0,
        }  # fmt: skip
        if step % 50 == 0:
            of_t = {f"validation_accuracy_{name}": 0.1 * i for i, name in enumerate(BUCKETS)}
            yield {"step": step, "validation_loss": 3.1, "validation_accuracy": 0.4} | of_t


@pytest.fixture
def runs(tmp_path):
    write_metrics(tmp_path / "long", denoiser_lines(400))
    write_metrics(tmp_path / "short", denoiser_lines(200, scale=0.5))
    write_metrics(tmp_path / "clip", clip_lines(300))
    return tmp_path


def figure_of(folder, *names):
    return plot_curves({name: read_curves(folder / name) for name in names})


def titles(figure):
    return [axes.get_title() for axes in figure.axes]


def panel(figure, title):
    return figure.axes[titles(figure).index(title)]


def test_one_run_has_a_panel_for_each_logged_metric(runs):
    figure = figure_of(runs, "long")
    assert titles(figure) == [
        "Training loss", "Validation loss", "Validation error by timestep", "Gradient", "Speed",
    ]  # fmt: skip
    assert all(axes.get_xlabel() == "step" and axes.get_ylabel() for axes in figure.axes)
    assert panel(figure, "Speed").get_ylabel() == "images / s"
    assert figure.texts[0].get_text() == "long"
    by_timestep = panel(figure, "Validation error by timestep")
    assert len({line.get_color() for line in by_timestep.lines}) == 5
    assert [text.get_text() for text in by_timestep.get_legend().get_texts()] == [
        "t 0–199", "t 200–399", "t 400–599", "t 600–799", "t 800–999",
    ]  # fmt: skip
    curves = read_curves(runs / "long")
    for line, name in zip(by_timestep.lines, BUCKETS, strict=True):
        np.testing.assert_array_equal(
            line.get_xydata(), np.stack(curves[f"validation_mse_{name}"]).T
        )
    # Only the first windows, before the first validation.
    write_metrics(runs / "new", list(denoiser_lines(40)))
    assert titles(figure_of(runs, "new")) == ["Training loss", "Gradient", "Speed"]


def test_the_loss_is_plotted_raw_and_smoothed_on_a_logarithmic_axis(runs):
    figure = figure_of(runs, "long")
    axes, curve = panel(figure, "Training loss"), read_curves(runs / "long")["loss"]
    raw, smooth = axes.lines
    np.testing.assert_array_equal(raw.get_xydata(), np.stack(curve).T)
    np.testing.assert_array_equal(smooth.get_ydata(), smoothed(curve.values))
    assert raw.get_alpha() < 0.5 and smooth.get_alpha() is None
    assert axes.get_yscale() == panel(figure, "Gradient").get_yscale() == "log"
    assert panel(figure, "Speed").get_yscale() == "linear"
    ema, of_raw = panel(figure, "Validation loss").lines
    assert (ema.get_linestyle(), of_raw.get_linestyle()) == ("-", "--")
    np.testing.assert_allclose(of_raw.get_ydata(), 1.1 * ema.get_ydata())


def test_several_runs_share_panels_in_a_color_each(runs):
    figure = figure_of(runs, "long", "short")
    assert titles(figure) == [
        "Training loss", "Validation loss",
        *(f"Validation error, t {200 * i}–{200 * i + 199}" for i in range(5)),
        "Gradient", "Speed",
    ]  # fmt: skip
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["long", "short"]
    assert [line.get_color() for line in legend.get_lines()] == list(COLORS[:2])
    for axes in figure.axes:
        for color, last in zip(COLORS, (400, 200), strict=False):
            ends = {line.get_xdata()[-1] for line in axes.lines if line.get_color() == color}
            assert ends == {last}
        assert axes.get_xlim() == (0, 1.02 * 400)


def test_a_clips_accuracy_is_in_percent(runs):
    figure = figure_of(runs, "clip")
    assert titles(figure) == [
        "Training loss", "Validation loss", "Accuracy", "Validation accuracy by timestep",
        "Temperature", "Gradient", "Speed",
    ]  # fmt: skip
    accuracy = panel(figure, "Accuracy")
    assert "%" in accuracy.get_ylabel()
    assert {float(line.get_ydata()[0]) for line in accuracy.lines} == {40.0, 50.0}
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == [
        "validation, EMA parameters", "training",
    ]  # fmt: skip
    mixed = titles(figure_of(runs, "clip", "long"))
    assert "Accuracy" in mixed and "Validation error, t 0–199" in mixed


def test_timestep_buckets_are_in_ascending_order():
    logged = {"validation_mse_t1600-1999", "validation_mse_t400-799", "validation_mse_t000-399"}
    (error, accuracy) = bucket_panels(logged | {"validation_mse_t000-399_raw"}, together=True)
    assert [line.label for line in error.lines] == ["t 0–399", "t 400–799", "t 1600–1999"]
    assert not accuracy.lines


def test_smoothing_preserves_lines_and_reduces_noise():
    line = np.arange(200.0)
    # At the end there are fewer points after than before: an average of 3 lies half a step back.
    np.testing.assert_allclose(smoothed(line)[:-2], line[:-2])
    noise = np.random.default_rng(0).standard_normal(4000)
    assert np.std(smoothed(noise)[50:]) < 0.15  # of 101 points: 1 / sqrt(101), about 0.1
    for count in (1, 2, 3):
        assert len(smoothed(line[:count])) == count and smoothed(line[:count])[0] == 0


def test_non_finite_values_and_a_truncated_last_line_are_skipped(tmp_path):
    run = write_metrics(
        tmp_path / "run", [{"step": s, "loss": v} for s, v in ((1, 0.5), (2, np.nan), (3, np.inf))]
    )
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    curve = read_curves(run)["loss"]
    assert curve.steps.tolist() == [1] and curve.values.tolist() == [0.5]
    plot_curves({"run": {"loss": curve}})
    good = '{"step": 1, "loss": 1}\n'
    deep, digits = "[" * 10**5, "1" * 400
    for bad in ("[3]", "3", deep, f'{{"step": {digits}}}', '{"step": 1e999}', '{"step": "x"}'):
        (run / "metrics.jsonl").write_text(f"{good}{bad}\n{good}")
        with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 is not a line of metrics"):
            read_curves(run)


def test_the_command_writes_curves_and_refuses_unusable_input(runs, capsys, monkeypatch):
    out = runs / "new" / "curves.png"
    main([str(runs / "long"), str(runs / "short"), "--out", str(out)])
    assert str(out) in capsys.readouterr().out
    with Image.open(out) as image:
        assert image.width > 1500 and len(image.getcolors(2**20)) > 100
    # Folders of the same name are labeled with their paths.
    write_metrics(runs / "other" / "long", denoiser_lines(100))
    main([str(runs / "long"), str(runs / "other" / "long"), "--out", str(runs / "two.svg")])
    assert (runs / "two.svg").is_file()
    (runs / "empty").mkdir()
    for message, arguments in {
        "at least one run folder": [],
        "nothing is not the folder of a training run": [runs / "nothing"],
        r"empty is not the folder of a training run: it has no metrics\.jsonl": [runs / "empty"],
        "--out .*curves.what: the name must": [runs / "long", "--out", runs / "curves.what"],
        "long/metrics.jsonl is a file": [runs / "long", "--out", runs / "long/metrics.jsonl/x.png"],
        "9 runs: give at most 8": [write_metrics(runs / str(i), denoiser_lines(20))
                                        for i in range(9)],
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=message):
            main(list(map(str, arguments)))
    (runs / "empty" / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match=r"metrics\.jsonl is empty: nothing is logged yet"):
        main([str(runs / "empty")])
    with pytest.raises(UserError, match="nothing to plot for run"):
        plot_curves({"run": {"bad_records": read_curves(runs / "long")["skipped"]}})
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"needs matplotlib: pip install -e '\.\[plot\]'"):
        main([str(runs / "long")])


# Sample strips ------------------------------------------------------------------------------------

CAPTIONS = ["a red star", "a blue ring with a long description that takes some lines", "", "moon"]


def write_run(folder, config, steps, grid):
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text(config.to_json())
    for step in steps:
        save_png(folder / "samples" / f"{step:07d}.png", grid(step))
    return folder


def flat(level):
    return np.full((8, 8, 3), level, np.uint8)


def tile_levels(strip, rows):
    """The level in the middle of each tile after the captions, by row."""
    side, margin = 192, 12
    middles = range(margin + side // 2, strip.shape[1], side + margin)
    tops = range(margin + 24 + side // 2, strip.shape[0], side + margin)
    return [[int(strip[y, x, 0]) for x in middles][1:] for y in tops][:rows]


def test_a_strip_shows_the_same_prompts_at_several_steps(tmp_path):
    def grid(step):
        images = np.stack([flat(20 * i + step // 1000) for i in range(8)])
        return draw_grid(images, CAPTIONS * 2, columns=4)

    run = write_run(tmp_path / "run", tiny.get_config(), range(1000, 16000, 1000), grid)
    # A grid of another size, of other prompts, is left out.
    save_png(run / "samples" / "0000500.png", draw_grid(flat(9)[None], ["x"], columns=1))
    strip = sample_strip([run])
    # Of 15 grids, 8 are shown: evenly spaced, from the first to the last.
    shown = [1, 3, 5, 7, 9, 11, 13, 15]
    assert tile_levels(strip, 4) == [[20 * i + s for s in shown] for i in range(4)]
    captions = strip[36:, :204, 0]
    written = [(captions[204 * i : 204 * i + 150] < 100).any() for i in range(4)]
    assert written == [True, True, False, True]
    labels = strip[:36, 204:, 0]
    assert all((labels[:, 204 * i : 204 * (i + 1)] < 100).any() for i in range(8))
    # Two runs: one strip below the other.
    both = sample_strip([run, run])
    assert both.shape[0] > 2 * strip.shape[0] and both.shape[1] == strip.shape[1]


def test_a_strip_of_an_inpainting_model_shows_its_inputs_once(tmp_path):
    def grid(step):
        rows = [x for i in range(4) for x in (flat(50 + i), flat(100 + i + step), flat(200 + i))]
        captions = [c for i in range(4) for c in (f"given: {CAPTIONS[i]}", "sample", "original")]
        return draw_grid(np.stack(rows), captions, columns=6)

    run = write_run(tmp_path / "run", inpaint_config(), (10, 20), grid)
    assert tile_levels(sample_strip([run]), 2) == [[50, 110, 120, 200], [51, 111, 121, 201]]


def test_a_run_without_samples_is_refused(tmp_path):
    run = write_run(tmp_path / "run", tiny.get_config(), (), None)
    with pytest.raises(UserError, match=r"run has no samples/STEP\.png: it has no samples yet"):
        sample_strip([run])
    (run / "samples").mkdir()
    (run / "samples" / "0000010.png").write_text("not an image")
    with pytest.raises(UserError, match=r"cannot read the grids in .*samples"):
        sample_strip([run])
    with pytest.raises(UserError, match="is not a run folder"):
        sample_strip([run / "samples"])
