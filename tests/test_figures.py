"""Figures show what they were given."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator

from dpm import figures


@pytest.fixture
def points():
    return torch.randn(50, 2, generator=Generator().manual_seed(0), dtype=torch.float64)


def test_a_figure_shows_itself_in_a_notebook(points):
    picture = Image.open(io.BytesIO(figures.plot_point_samples(points)._repr_png_()))
    assert picture.format == "PNG" and picture.getextrema() != ((255, 255),) * 4


def test_every_axis_has_a_label_and_the_points_it_was_given(points):
    figure = figures.plot_point_sets([points, points[:10]], ["data", "samples"])
    for axes, count in zip(figure.axes, (50, 10), strict=True):
        assert axes.get_xlabel() and axes.get_title()
        assert len(axes.lines[0].get_xdata()) == count
    assert figure.axes[0].get_ylabel()


def test_coloured_points_keep_their_colour_from_set_to_set(points):
    place = torch.linspace(-2, 2, 50)
    figure = figures.plot_coloured_points([points, -points], place, ["before", "after"])
    for axes, x in zip(figure.axes, (points, -points), strict=True):
        assert np.array_equal(axes.collections[0].get_offsets(), x)
        assert np.array_equal(axes.collections[0].get_array(), place)
        assert axes.collections[0].get_clim() == (-2, 2)


def test_figure_1_is_three_rows_of_three(points):
    figure = figures.plot_figure_1([points] * 3, [points] * 3, points, [-points] * 3)
    assert len(figure.axes) == 9
    assert [axes.get_title() for axes in figure.axes[:3]] == [f"forward q, t = {t}" for t in ("0", "T/2", "T")]
    assert [axes.get_title() for axes in figure.axes[6:]] == [f"drift, t = {t}" for t in ("2", "T/2", "T")]


def test_bits_are_drawn_one_sequence_a_row():
    """Figure 2."""
    bits = torch.eye(4, 6, dtype=torch.float64)
    figure = figures.plot_figure_2(bits, 1 - bits, ("left", "right"))
    for axes, shown, title in zip(figure.axes, (bits, 1 - bits), ("left", "right"), strict=True):
        assert np.array_equal(axes.images[0].get_array(), shown) and axes.get_title() == title


def test_images_to_scale_share_the_greys_of_the_first():
    """Figures 4 and 5."""
    ramp = torch.linspace(-1, 1, 101, dtype=torch.float64).expand(1, 101, 101)
    figure = figures.plot_images_to_scale({"one": ramp, "half": ramp / 2})
    assert [axes.get_title() for axes in figure.axes] == ["one", "half"] and not any(a.axison for a in figure.axes)
    one, half = (torch.as_tensor(axes.images[0].get_array()) for axes in figure.axes)
    assert (float(one.min()), float(one.max())) == (0, 1)
    assert torch.allclose(half, 0.5 + ramp[0] / 2 / (2 * 0.98))  # 0.98: the 99th percentile


def test_fewer_colours_make_a_smaller_file(points):
    figure = figures.plot_point_samples(points)
    assert len(figures.to_png(figure, colours=32)) < len(figures.to_png(figure))


def test_two_units_have_a_row_per_number_and_a_second_axis():
    figure = figures.plot_in_two_units(
        {"a": 1.0, "b": 3.0}, "here", "there", lambda x: 2 * x, lambda x: x / 2, 2.0, stray=["b"]
    )
    axes = figure.axes[0]
    assert [float(line.get_xdata()[0]) for line in axes.lines] == [1.0, 3.0, 2.0]
    assert [line.get_marker() for line in axes.lines[:2]] == ["o", "x"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    figures.to_png(figure)
    low, high = axes.get_xlim()
    assert axes.child_axes[0].get_xlim() == (2 * low, 2 * high) and axes.child_axes[0].get_xlabel() == "there"


def shades(axes):
    """What a picture's panel shows, from 0 to 1."""
    return np.asarray(axes.images[0].get_array(), dtype=float)


def test_image_grid_shows_every_picture_on_one_scale():
    """Figure App.1."""
    x = torch.linspace(-1, 3, 5 * 4).view(5, 1, 2, 2)
    figure = figures.plot_image_grid(x)
    drawn = [axes for axes in figure.axes if axes.images]
    low, high = np.quantile(x.numpy(), (0.01, 0.99))
    assert len(drawn) == 5
    for axes, image in zip(drawn, x, strict=True):
        assert np.allclose(shades(axes), np.clip((image[0].numpy() - low) / (high - low), 0, 1), atol=1e-6)


@pytest.mark.parametrize(("n", "channels"), [(1, 1), (4, 3)])
def test_restorations_put_each_set_in_its_row_or_column(n, channels):
    """Figure 3."""
    sets = [torch.rand(n, channels, 3, 3, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    figure = figures.plot_restorations(*sets)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert [title for title in titles if title] == ["held out", "seen", "restored"]
    low, high = np.quantile(sets[0].numpy(), (0.01, 0.99))
    for k, axes in enumerate(figure.axes):
        which, one = (k % 3, k // 3) if n < 3 else (k // n, k % n)
        image = ((sets[which][one] - low) / (high - low)).clamp(0, 1).permute(1, 2, 0).squeeze(-1)
        assert np.allclose(shades(axes), image, atol=1e-6)


def test_lost_bits_are_stacked():
    row = {"edge": 0.2, "kernel_and_schedule": 0.1, "training": 0.4}
    figure = figures.plot_lost_bits({"one": row}, "bits")
    bars = [(bar.get_x(), bar.get_width()) for bar in figure.axes[0].patches]
    assert np.allclose(bars, [(0, 0.2), (0.2, 0.1), (0.3, 0.4)])
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [
        "edge",
        "kernel and schedule",
        "training",
    ]


def test_schedules_draw_noise_variances_and_costs_of_steps():
    level, cost = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.3, 0.2])
    (figure,) = figures.plot_schedules([level], [cost], ["one"])
    left, right = figure.axes
    assert np.allclose(left.lines[0].get_ydata(), level) and left.get_yscale() == "logit"
    ends = np.array(right.collections[0].get_segments())  # each from (0, level) to (cost, level)
    assert np.allclose(ends, [[(0, 0.5), (0.3, 0.5)], [(0, 0.9), (0.2, 0.9)]])
    assert right.get_ylim() == left.get_ylim()


def test_costs_of_several_schedules_are_drawn_to_one_scale():
    level, costs = torch.tensor([0.1, 0.5, 0.9]), [torch.tensor([0.3, 0.2]), torch.tensor([0.1, 0.8])]
    drawn = figures.plot_schedules([level] * 2, costs, ["one", "two"])
    assert [figure.axes[1].get_xlim()[1] for figure in drawn] == pytest.approx([1.05 * 0.8] * 2)


def area(stairs):
    values, edges, baseline = stairs.get_data()
    return float(((values - (0 if baseline is None else baseline)) * np.diff(edges)).sum())


def test_entropy_bounds_of_process_keep_sums_over_timesteps_as_areas():
    """(24): on the right T times nats over t/T."""
    low, value, high = (torch.tensor(side) for side in ([0.0, 1.0, 2.0], [0.5, 1.5, 2.5], [1.0, 3.0, 2.5]))
    left, right = figures.plot_entropy_bounds_of_process(low, value, high, "T = 3", reach=10, density=8).axes
    assert np.isclose(area(right.patches[0]), (high - low).sum())
    assert np.isclose(area(right.patches[1]), (value - low).sum())
    (band, exact), (_, top) = left.patches, left.get_ylim()
    assert np.allclose(band.get_data().values, high) and np.allclose(band.get_data().baseline, low)
    assert np.allclose(exact.get_data().values, value) and top == 10


def test_entropy_bounds_that_fail_show_the_upper_bound_below():
    low, value, high = torch.tensor([0.0, 2.0]), torch.tensor([0.5, 2.2]), torch.tensor([1.0, 1.9])
    bottom, _ = figures.plot_entropy_bounds_of_process(low, value, high, "", reach=10, density=8).axes[1].get_ylim()
    assert np.isclose(bottom, -0.2)


def test_posterior_along_curve_is_in_units_of_the_first_account(points):
    exact, counted = torch.tensor([0.1, 0.5, 0.4]), torch.tensor([0.2, 0.25, 0.55])
    figure = figures.plot_posterior_along_curve(
        points, points[:10], (0.0, 0.5), 0.6, {"exact": exact, "samples": counted}, "s"
    )
    left, right = figure.axes
    circle = left.lines[-1]
    assert np.allclose(np.hypot(circle.get_xdata(), circle.get_ydata() - 0.5), 0.6)
    assert len(left.lines[1].get_xdata()) == 10
    assert np.allclose([stairs.get_data().values for stairs in right.patches], [exact / 0.5, counted / 0.5])
    assert all(np.allclose(stairs.get_data().edges, [0, 1 / 3, 2 / 3, 1]) for stairs in right.patches)


def test_posteriors_stand_two_in_a_row(points):
    figure = figures.plot_posteriors(points, [points] * 4, list("abcd"), (0.0, None))
    rows = {axes.get_subplotspec().rowspan.start for axes in figure.axes}
    assert rows == {0, 1} and [axes.get_title() for axes in figure.axes] == list("abcd")


def test_reverse_distribution_has_its_beta_marked():
    u = torch.linspace(-1, 1, 5)
    betas, losses = [0.1, 0.01], torch.tensor([1e-2, 1e-5])
    left, right = figures.plot_reverse_distribution(u, u.square(), u.abs(), betas, losses, 1, "β").axes
    assert np.allclose(left.lines[0].get_ydata(), u.square()) and np.allclose(left.lines[1].get_ydata(), u.abs())
    third, line, mark = right.lines
    assert np.allclose(third.get_ydata(), losses) and np.allclose(line.get_ydata(), losses)
    assert (float(mark.get_xdata()[0]), float(mark.get_ydata()[0])) == (0.01, float(losses[1]))


def test_pairs_of_bars_are_as_long_as_their_values():
    figure = figures.plot_paired_bars({"one": (1.0, 2.0), "two": (3.0, 4.0)}, ("paper", "best"), "bits")
    bars = figure.axes[0].patches
    assert [bar.get_width() for bar in bars] == [1, 3, 2, 4]
    assert np.allclose([bar.get_y() + bar.get_height() / 2 for bar in bars], [-0.2, 0.8, 0.2, 1.2])  # the first above
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["one", "two"]


def test_images_are_shown_each_at_its_own_size_and_scale():
    """Figure D.1: pictures pooled to several scales."""
    large, small = torch.arange(16.0).view(1, 4, 4), torch.tensor([[[1.0, 2.0], [4.0, 5.0]]])
    figure = figures.plot_images({"large": large, "small": small})
    assert [axes.get_title() for axes in figure.axes] == ["large", "small"]
    for axes, image in zip(figure.axes, (large / 15, (small - 1) / 4), strict=True):
        shown = torch.as_tensor(axes.images[0].get_array().data)
        assert torch.allclose(shown, image[0]) and not axes.axison
    four = figures.plot_images({str(k): large for k in range(4)})
    assert [axes.get_subplotspec().rowspan.start for axes in four.axes] == [0, 0, 0, 1, 1, 1]
    assert [bool(axes.images) for axes in four.axes] == [True] * 4 + [False] * 2


def lines_below(figure):
    """Lines over t and their dots, in the lower panel."""
    lines = figure.axes[1].lines
    return [line.get_ydata() for line in lines[::2]], [tuple(dot.get_xydata()[0]) for dot in lines[1::2]]


def test_swiss_roll_at_t_has_its_points_colours_and_dots(points):
    place, level = torch.linspace(0, 1, 50), torch.tensor([1.0, 0.6, 0.1])
    figure = figures.plot_swiss_roll_at(points, place, 1, {"signal": level, "noise": 1 - level}, "share")
    (dots,) = figure.axes[0].collections
    assert np.allclose(dots.get_offsets(), points) and np.allclose(dots.get_array(), place)
    assert figure.axes[0].get_title() == "t = 1" and figure.axes[1].get_ylabel() == "share"
    lines, marks = lines_below(figure)
    assert np.allclose(lines, [level, 1 - level]) and np.allclose(marks, [(1, 0.6), (1, 0.4)])
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == ["signal", "noise"]


def test_arrows_of_a_vector_field_keep_their_direction_and_fit_their_cells(points):
    axis = torch.linspace(-3, 3, 7)  # a cell is 1 wide
    grid = torch.cartesian_prod(axis, axis)
    drift = -0.01 * grid
    field = torch.stack([grid, drift], 1).view(7, 7, 2, 2)
    figure = figures.plot_swiss_roll_at(points, torch.zeros(50), 0, {"": torch.zeros(2)}, "", drift=field)
    arrows, _ = figure.axes[0].collections
    u, v = torch.tensor(arrows.U), torch.tensor(arrows.V)
    assert np.allclose(arrows.XY, grid) and torch.allclose(u * drift[:, 1], v * drift[:, 0], atol=1e-6)
    assert ((u * drift[:, 0] + v * drift[:, 1]) >= 0).all()
    length = torch.hypot(u, v)
    cut = length > 0.899
    assert length.max() < 0.901 and 0.3 < cut.double().mean() < 0.5  # a third, and those that tie with them
    assert drift.norm(dim=1)[cut].min() >= drift.norm(dim=1)[~cut].max()


def test_heartbeat_at_t_tells_ones_of_the_data_from_others():
    bits, data = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    figure = figures.plot_heartbeat_at(bits, data, 2, {"": torch.tensor([0.0, 0.5, 1.0])}, "share")
    (image,) = figure.axes[0].images
    assert image.cmap.colors[1:] == [figures.BLUE, figures.ORANGE]
    assert np.array_equal(image.get_array(), [[0, 1], [2, 0]]) and image.get_clim() == (0, 2)
    assert lines_below(figure)[1] == [(2, 1)] and figure.axes[1].get_legend() is None


def test_type_can_be_read_on_a_telephone(points):
    """There a figure is 360 pixels wide; its smallest type is then still nine pixels high."""
    figures.set_style()
    line = torch.linspace(0, 1, 5)
    for figure in (
        figures.plot_curves(line, {"one": line, "two": line**2}, "x", "y"),
        figures.plot_point_sets([points] * 3, ["data", "one", "two"]),
        figures.plot_figure_1([points] * 3, [points] * 3, points, [points] * 3),
        figures.plot_histograms({"one": points[:, 0]}, "x", 0.0),
        figures.plot_images_to_scale({str(k): torch.eye(4)[None] for k in range(3)}),
        figures.plot_images({str(k): torch.eye(4)[None] for k in range(6)}),
    ):
        shown = 360 / (figure.get_figwidth() * figure.dpi)
        for axes in figure.axes:
            for text in (axes.title, axes.xaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels()):
                assert text.get_fontsize() * figure.dpi / 72 * shown >= 9


def test_areas_of_step_costs_are_bits():
    """Bars touch, their widths are steps of the level, and what is lost stands upon what is restored."""
    level, restored, lost = torch.tensor([-2.0, 0.0, 3.0]), torch.tensor([4.0, 6.0]), torch.tensor([1.0, 3.0])
    (axes,) = figures.plot_step_costs(level, restored, lost, "T = 3", 4.0).axes
    below, above = ([bar for bar in group] for group in axes.containers)
    assert [bar.get_x() for bar in below] == [-2, 0] and [bar.get_width() for bar in below] == [2, 3]
    assert [bar.get_width() * bar.get_height() for bar in below] == [4, 6]
    assert [bar.get_y() for bar in above] == [2, 2] and [bar.get_height() for bar in above] == [0.5, 1]
    assert axes.get_xlabel() and axes.get_ylabel() and axes.get_title() == "T = 3"


def test_figure_1_shows_each_panel_its_own(points):
    forward, reverse = ([k * points for k in range(s, s + 3)] for s in (1, 4))
    drift = [k * points.flip(0) for k in (1, 2, 3)]
    axes = np.reshape(figures.plot_figure_1(forward, reverse, points, drift).axes, (3, 3))
    for column in range(3):
        for row, x in ((0, forward[column]), (1, reverse[column])):
            assert np.allclose(axes[row, column].lines[0].get_xydata(), x)
        (arrows,) = axes[2, column].collections
        assert np.allclose(arrows.XY, points) and np.allclose(np.column_stack([arrows.U, arrows.V]), drift[column])


def test_a_one_is_dark_and_a_zero_light():
    image = figures.plot_bit_samples(torch.tensor([[0.0, 1.0]])).axes[0].images[0]
    zero, one = (sum(image.cmap(image.norm(v))[:3]) for v in (0.0, 1.0))
    assert zero > 2.9 and one < 0.1


def test_of_many_samples_of_bits_a_hundred_are_shown():
    """The first, in their order."""
    x = (torch.arange(150)[:, None] < torch.tensor([10, 100, 120])).double()
    (axes,) = figures.plot_bit_samples(x).axes
    assert np.array_equal(axes.images[0].get_array(), x[:100]) and axes.get_title().startswith("100 samples")


def test_values_stand_at_the_ends_of_paired_bars_with_two_digits():
    (axes,) = figures.plot_paired_bars({"one": (1.234, -2.0)}, ("paper", "best"), "bits").axes
    assert [text.get_text() for text in axes.texts] == ["1.23", "-2.00"]
    assert axes.yaxis_inverted()


def test_posteriors_mark_what_was_seen(points):
    (axes,) = figures.plot_posteriors(points, [points], ["a"], (0.5, -1.0)).axes
    assert axes.lines[-1].get_xydata().tolist() == [[0.5, -1.0]]
    (axes,) = figures.plot_posteriors(points, [points], ["a"], (0.5, None)).axes
    assert axes.lines[-1].get_xdata() == [0.5, 0.5] and axes.lines[-1].get_ydata() == [0, 1]


def test_histograms_are_densities():
    (axes,) = figures.plot_histograms({"a": torch.randn(500, generator=Generator().manual_seed(0))}, "x", 0.7).axes
    assert axes.lines[0].get_xdata() == [0.7, 0.7]
    outline = axes.patches[0].get_xy()
    assert float((np.diff(np.unique(outline[:, 0])) * outline[1::2, 1][:60]).sum()) == pytest.approx(1, abs=1e-6)


def test_histograms_hold_every_sample_whole():
    """Bins reach over all of them: the density of the wider sample has the area 1 as well."""
    narrow = torch.linspace(0, 1, 500)
    (axes,) = figures.plot_histograms({"a": narrow, "b": 4 * narrow - 1}, "x", 0.7).axes
    for patch in axes.patches:
        outline = patch.get_xy()
        edges = np.unique(outline[:, 0])
        assert (edges[0], edges[-1]) == (-1, 3)
        assert float((np.diff(edges) * outline[1::2, 1][:60]).sum()) == pytest.approx(1, abs=1e-6)


def test_the_first_row_of_lost_bits_is_above():
    row = {"edge": 0.2, "kernel_and_schedule": 0.1, "training": 0.4}
    assert figures.plot_lost_bits({"one": row, "two": row}, "bits").axes[0].yaxis_inverted()


def test_noise_variances_are_drawn_from_t_1():
    (figure,) = figures.plot_schedules([torch.tensor([0.1, 0.5, 0.9])], [torch.tensor([0.3, 0.2])], ["one"])
    assert figure.axes[0].lines[0].get_xdata().tolist() == [1, 2, 3]


def test_curves_are_drawn_as_they_are_and_told_apart_without_colour():
    x, lines = [1, 2, 4], {"a": torch.tensor([1.0, 3.0, -2.0]), "b": torch.tensor([0.0, 5.0, 7.0])}
    (axes,) = figures.plot_curves(x, lines, "t", "bits", xscale="log").axes
    for line, (name, y) in zip(axes.lines, lines.items(), strict=True):
        assert line.get_label() == name and np.allclose(line.get_xydata(), np.column_stack([x, y]))
    assert axes.lines[0].get_linestyle() != axes.lines[1].get_linestyle()
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_xscale()) == ("t", "bits", "log") and axes.get_legend()
    assert figures.plot_curves(x, {"a": lines["a"]}, "t", "bits").axes[0].get_legend() is None
    nine = {str(k): lines["a"] for k in range(9)}
    assert len(figures.plot_curves(x, nine, "t", "bits").axes[0].lines) == 9


def test_entropy_bounds_stand_above_as_they_are_and_below_over_the_lower_one():
    """(24)"""
    low, value, high = (torch.tensor(side) for side in ([0.5, 1.0], [0.75, 2.0], [1.5, 4.0]))
    panels = {"one": (low, value, high), "two": (2 * low, 2 * value, 2 * high)}
    above, below = np.reshape(figures.plot_entropy_bounds(panels).axes, (2, 2))
    assert [axes.get_title() for axes in above] == ["one", "two"]
    for row, base in ((above, 0 * low), (below, low)):
        for axes, times in zip(row, (1, 2), strict=True):
            assert np.allclose(axes.lines[0].get_xydata(), np.column_stack([[1, 2], times * (value - base)]))
            corners = {tuple(corner) for corner in axes.collections[0].get_paths()[0].vertices.tolist()}
            sides = [(t + 1.0, times * float((side - base)[t])) for side in (low, high) for t in (0, 1)]
            assert corners == set(sides)


def test_each_frame_has_its_own_points_and_label(points):
    frames = figures.plot_point_frames([points, -points], lambda k: f"t = {k}")
    for k, figure in enumerate(frames):
        (axes,) = figure.axes
        assert axes.get_title() == f"t = {k}" and np.allclose(axes.lines[0].get_xydata(), (points, -points)[k])
