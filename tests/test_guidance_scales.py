"""Plots over guidance scales: labels of close points."""

from itertools import combinations

from glide_jax.evaluation.guidance_scales import Curve, draw_curves, label_scales
from glide_jax.images import new_figure


def test_labels_of_close_scales_cover_nothing():
    figure = new_figure(5.5, 4.5)
    axes = figure.add_subplot()
    curves = [
        Curve("one", (0, 0.3, 1, 3, 10), (10, 10.5, 15, 12, 14), (7.8, 7.8, 7.8, 7.4, 6.6)),
        Curve("two", (1, 1.5, 2), (30, 40, 40.5), (16, 17, 17.2), (1, 1, 1), (2, 2, 2)),
    ]
    draw_curves(axes, curves)
    axes.legend()
    label_scales(axes, curves)
    figure.draw_without_rendering()
    scales = [f"{scale:g}" for curve in curves for scale in curve.scales]
    assert [label.get_text() for label in axes.texts] == scales
    boxes = [label.get_window_extent() for label in axes.texts]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    points = [point for curve in curves for point in zip(curve.x, curve.y, strict=True)]
    for box, own in zip(boxes, points, strict=True):
        assert not any(box.contains(*axes.transData.transform(point)) for point in points)
        center = ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
        squares = [sum((axes.transData.transform(point) - center) ** 2) for point in points]
        assert points[squares.index(min(squares))] == own  # no other point is nearer
