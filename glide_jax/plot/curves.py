"""Training curves of one or several runs, from metrics.jsonl: a panel per logged metric."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from glide_jax.errors import UserError, first_line
from glide_jax.runs.paths import METRICS, name_of
from glide_jax.storage import AnyPath, storage_errors

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c564b")
"""Line colors of the runs: Okabe and Ito's color-blind-safe palette, and a brown."""
GRAY = "#555555"
COLUMNS = 3
PANEL_INCHES = (4.6, 3.1)
PIXELS_PER_INCH = 130
SMOOTHING_WINDOW = 1 / 40
"""Window of the moving average, as a fraction of the curve's points."""
MIN_LOG_RANGE = 4.0
"""Smallest ratio of the largest to the smallest value for a logarithmic axis."""
BUCKET = re.compile(r"validation_(?:mse|accuracy)_t(\d+)-(\d+)")

Figure = Any
"""matplotlib.figure.Figure; matplotlib is an optional dependency, imported when needed."""


class Curve(NamedTuple):
    """One metric of one run."""

    steps: Float[np.ndarray, "n"]
    values: Float[np.ndarray, "n"]


Curves = Mapping[str, Curve]
"""By metric."""


class Line(NamedTuple):
    """Style of a metric's line."""

    metric: str
    label: str = ""
    """Entry in the panel's legend."""
    smooth: bool = False
    """Plot the values faintly, and their moving average as a line."""
    style: str = "-"
    marker: str = ""


class Panel(NamedTuple):
    """One pair of axes."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    log: bool = False
    scale: float = 1.0
    """Factor from the metrics to `unit`."""
    buckets: bool = False
    """Whether line colors stand for timestep buckets instead of runs."""


PANELS = (
    Panel("Training loss", "loss", (Line("loss", smooth=True),), log=True),
    Panel(
        "Validation loss",
        "loss",
        (
            Line("validation_loss", "EMA parameters", marker="."),
            Line("validation_loss_raw", "raw parameters", style="--"),
            Line("validation_loss_shuffled_captions", "shuffled captions", style=":"),
            Line("validation_loss_no_captions", "no captions", style="-."),
        ),
        log=True,
    ),
    Panel(
        "Accuracy",
        "retrieved in the batch (%)",
        (
            Line("validation_accuracy", "validation, EMA parameters", marker="."),
            Line("validation_accuracy_raw", "validation, raw parameters", style="--"),
            Line("accuracy", "training", smooth=True, style=":"),
        ),
        scale=100,
    ),
    Panel("Samples: KID", "EfficientNet-Lite0", (Line("evaluation_kid", marker="."),)),
    Panel("Samples: Frechet distance", "EfficientNet-Lite0", (Line("evaluation_fd", marker="."),)),
    Panel(
        "Samples: coverage of the data",
        "EfficientNet-Lite0",
        tuple(
            Line(f"evaluation_{name}", name, marker=".", style=style)
            for name, style in zip(
                ("precision", "recall", "density", "coverage"), ("-", "--", ":", "-."), strict=True
            )
        ),
    ),
    Panel("Temperature", "1 / logit scale", (Line("temperature", smooth=True),), log=True),
    Panel("Gradient", "norm before clipping", (Line("grad_norm", smooth=True),), log=True),
    Panel("Learning rate", "learning rate", (Line("learning_rate"),)),
    Panel("Speed", "images / s", (Line("images_per_s", smooth=True),)),
)


def read_curves(run_dir: AnyPath) -> dict[str, Curve]:
    """The finite values of every metric that a run has logged.

    Raises:
        UserError: `run_dir` has no metrics.jsonl, or it is empty or malformed.
    """
    path = run_dir / METRICS
    with storage_errors("read", path):
        lines = path.read_bytes().splitlines() if path.is_file() else None
    if lines is None:
        raise UserError(
            f"{run_dir} is not the folder of a training run: it has no {METRICS} (give the folder "
            "that train.py wrote)"
        )
    points: dict[str, list[tuple[float, float]]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            step = float(values.pop("step"))
            if not math.isfinite(step):
                raise ValueError(f"step {step}")
            found = {name: float(v) for name, v in values.items() if v is not None}
        # Overflow and recursion: numbers of 400 digits, and JSON nested deeply.
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            RecursionError,
        ) as error:
            if number == len(lines):  # a killed process may leave half a line
                break
            why = first_line(error)
            raise UserError(f"{path}, line {number} is not a line of metrics: {why}") from None
        for name, value in found.items():
            if math.isfinite(value):
                points.setdefault(name, []).append((step, value))
    if not points:
        raise UserError(f"{path} is empty: nothing is logged yet")
    return {name: Curve(*np.array(sorted(pairs), np.float64).T) for name, pairs in points.items()}


def plot_curves(runs: Mapping[str, Curves]) -> Figure:
    """A matplotlib figure of the curves of all runs.

    For a single run, one panel has a color per timestep bucket. For several runs, each bucket has
    its own panel, and colors stand for runs.

    Args:
        runs: curves by the run's name.

    Raises:
        UserError: matplotlib is not installed, there are more runs than colors, or no logged metric
            has a panel.
    """
    try:
        import matplotlib.figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError:
        raise UserError("plotting needs matplotlib: pip install -e '.[plot]'") from None
    if len(runs) > len(COLORS):
        raise UserError(f"{len(runs)} runs: give at most {len(COLORS)}, one per color")
    logged = {name for curves in runs.values() for name in curves}
    panels = [
        panel
        for panel in (*PANELS[:3], *bucket_panels(logged, together=len(runs) == 1), *PANELS[3:])
        if any(line.metric in logged for line in panel.lines)
    ]
    if not panels:
        raise UserError(f"nothing to plot for {', '.join(runs)}: no loss is logged yet")

    columns = 2 if len(panels) == 4 else min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    title_inches = 0.6
    size = columns * PANEL_INCHES[0], rows * PANEL_INCHES[1] + title_inches
    top = 1 - title_inches / size[1]
    layout = ConstrainedLayoutEngine(rect=(0.005, 0.005, 0.99, top), hspace=0.06, wspace=0.04)
    figure = matplotlib.figure.Figure(size, layout=layout)
    last_step = max(curve.steps[-1] for curves in runs.values() for curve in curves.values())
    for number, panel in enumerate(panels, start=1):
        _plot_panel(figure.add_subplot(rows, columns, number), panel, runs, last_step)
    middle = (1 + top) / 2
    if len(runs) == 1:
        figure.text(0.5, middle, next(iter(runs)), ha="center", va="center", fontsize=14)
    else:
        handles = [_handle(color=color, linewidth=2.5) for color in COLORS[: len(runs)]]
        figure.legend(
            handles,
            list(runs),
            loc="center",
            bbox_to_anchor=(0.5, middle),
            ncols=min(4, len(runs)),
            frameon=False,
            fontsize=11,
        )
    return figure


def bucket_panels(logged: set[str], together: bool) -> list[Panel]:
    """The panels of validation metrics by timestep bucket.

    Args:
        logged: names of metrics.
        together: make one panel with a line per bucket, instead of one panel per bucket.
    """
    found = sorted(
        (int(match[1]), int(match[2]), name)
        for name in logged
        if (match := BUCKET.fullmatch(name)) is not None
    )
    panels = []
    for kind, title, unit, scale in (
        ("mse", "Validation error", "mean squared error", 1),
        ("accuracy", "Validation accuracy", "retrieved in the batch (%)", 100),
    ):
        lines = [
            Line(name, f"t {low}–{high}", marker=".")
            for low, high, name in found
            if f"_{kind}_" in name
        ]
        panel = Panel(f"{title} by timestep", unit, tuple(lines), kind == "mse", scale, True)
        if together:
            panels.append(panel)
        else:
            panels += [
                panel._replace(
                    title=f"{title}, {line.label}",
                    lines=(line._replace(label=""),),
                    buckets=False,
                )
                for line in lines
            ]
    return panels


def _plot_panel(axes: Any, panel: Panel, runs: Mapping[str, Curves], last_step: float) -> None:
    import matplotlib
    from matplotlib.ticker import EngFormatter

    styles: dict[str, Any] = {}
    plotted = []
    for line_number, line in enumerate(panel.lines):
        for color, curves in zip(COLORS, runs.values(), strict=False):
            if line.metric not in curves:
                continue
            steps, values = curves[line.metric]
            values = values * panel.scale
            plotted.append(values)
            line_color: Any = color
            if panel.buckets:  # from small to large t
                position = line_number / max(len(panel.lines) - 1, 1)
                line_color = matplotlib.colormaps["viridis_r"](0.15 + 0.85 * position)
            style = {"linestyle": line.style, "marker": line.marker, "color": line_color}
            if line.smooth:
                axes.plot(steps, values, linewidth=0.8, alpha=0.25, color=line_color)
                values = smoothed(values)
            axes.plot(steps, values, linewidth=1.6, **style)
            styles[line.label] = style if panel.buckets else style | {"color": GRAY}
    all_values = np.concatenate(plotted)
    if panel.log and all_values.min() > 0:
        _log_scale(axes, all_values)
    axes.set_title(panel.title, fontsize=11)
    axes.set_xlabel("step", fontsize=9)
    axes.set_ylabel(panel.unit, fontsize=9)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(labelsize=8)
    axes.set_xlim(0, 1.02 * last_step)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(panel.lines) > 1:
        beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "frameon": False}
        handles = [_handle(**style) for style in styles.values()]
        axes.legend(handles, list(styles), fontsize=8, **(beside if panel.buckets else {}))


def _handle(**style: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], **style)


def _log_scale(axes: Any, values: np.ndarray) -> None:
    """A logarithmic axis with plain tick labels, if the values span MIN_LOG_RANGE."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    if values.max() < MIN_LOG_RANGE * values.min():
        return
    decades = math.log10(values.max() / values.min())
    subs = (1, 2, 3, 5, 7) if decades < 1 else (1, 2, 5) if decades < 3 else (1,)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def smoothed(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Centered moving average. Its window shrinks towards the start, where curves are steep."""
    index = np.arange(len(values))
    half = np.minimum(max(1, round(len(values) * SMOOTHING_WINDOW / 2)), index)
    first, end = index - half, np.minimum(index + half + 1, len(values))
    total = np.concatenate([[0.0], np.cumsum(values)])
    return (total[end] - total[first]) / (end - first)


def run_names(runs: Sequence[AnyPath]) -> list[str]:
    """The names of run folders, or their paths if two names are equal."""
    names = [name_of(run) for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]
