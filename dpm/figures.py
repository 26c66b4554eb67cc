"""Figures 1 to 5 and the other figures of the book: arrays in, a matplotlib Figure out."""

import io
import itertools
import math
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
import seaborn
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter
from PIL import Image
from torch import Tensor

PALETTE = seaborn.color_palette("colorblind")
BLUE, ORANGE, GREEN = PALETTE[:3]
WIDTH = 6.0  # inches of a whole figure: on a telephone its smallest type is then still nine pixels high
SPIRAL = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.9, 12)))  # few shades, or a frame is heavy
BITS = ListedColormap(["white", BLUE, ORANGE])


class NotebookFigure(Figure):
    """A figure that shows itself in a notebook, free of pyplot's global state."""

    def _repr_png_(self) -> bytes:
        return to_png(self)


def set_style() -> None:
    """One look for the whole book: white face (so that dark pages keep the axes), large type, colour-blind colours."""
    seaborn.set_theme(context="notebook", style="ticks", palette="colorblind")
    matplotlib.rcParams.update({"figure.facecolor": "white", "savefig.facecolor": "white", "figure.dpi": 100})


def panels(rows: int, columns: int, size: float = 2.6, **options) -> tuple[Figure, np.ndarray]:
    """A grid of square panels as (figure, axes [rows, columns])."""
    figure = NotebookFigure(figsize=(size * columns, size * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def open_panel(height: float = 3.6) -> tuple[Figure, Axes]:
    """One panel as wide as the page, open above and on the right, as (figure, axes)."""
    figure = NotebookFigure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    seaborn.despine(figure)
    return figure, axes


def draw_points(axes: Axes, x: Tensor, title: str = "", colour=BLUE, reach: float = 3.2) -> None:
    """Points of the plane, [n, 2], in units of the data's standard deviation."""
    axes.plot(x[:, 0], x[:, 1], ".", ms=2, alpha=0.5, color=colour)
    axes.set(title=title, xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")


def plot_figure_1(
    forward: Sequence[Tensor], reverse: Sequence[Tensor], grid: Tensor, drift: Sequence[Tensor]
) -> Figure:
    """Figure 1: q forward at t = 0, T/2, T; below it the model p in reverse; below that its drift f_μ(x^t,t) − x^t.

    forward, reverse: three [n, 2] each; grid [m, 2] and drift, three [m, 2].
    """
    figure, axes = panels(3, 3, size=WIDTH / 3, sharex=True, sharey=True)
    for column, when in enumerate(("t = 0", "t = T/2", "t = T")):
        draw_points(axes[0, column], forward[column], f"forward q, {when}")
        draw_points(axes[1, column], reverse[column], f"reverse p, {when}", ORANGE)
        draw_vector_field(axes[2, column], grid, drift[column], f"drift, {when.replace('= 0', '= 2')}")
    for axis in axes[:, 0]:
        axis.set_ylabel("$x_2$")
    for axis in axes[-1]:
        axis.set_xlabel("$x_1$")
    return figure


def draw_vector_field(axes: Axes, grid: Tensor, drift: Tensor, title: str) -> None:
    """Arrows of one reverse step, each panel to its own scale."""
    axes.quiver(grid[:, 0], grid[:, 1], drift[:, 0], drift[:, 1], color=GREEN, angles="xy", width=0.006)
    axes.set(title=title, aspect="equal")


def point_panels(count: int) -> tuple[Figure, np.ndarray]:
    """`count` panels for points of the plane, side by side, as (figure, axes [count])."""
    figure, axes = panels(1, count, size=WIDTH / count, sharey=True)
    figure.set_figheight(WIDTH / count + 0.5)  # for titles and labels
    for axis in axes[0]:
        axis.set_xlabel("$x_1$")
    axes[0, 0].set_ylabel("$x_2$")
    return figure, axes[0]


def plot_point_sets(points: Sequence[Tensor], titles: Sequence[str]) -> Figure:
    """Sets of points of the plane, each [n, 2], side by side."""
    figure, axes = point_panels(len(points))
    for axis, x, title in zip(axes, points, titles, strict=True):
        draw_points(axis, x, title, BLUE if title == "data" else ORANGE, reach=2.6)
    return figure


def plot_coloured_points(clouds: Sequence[Tensor], place: Tensor, titles: Sequence[str]) -> Figure:
    """Sets of the same n points of the plane, each [n, 2], side by side; a point's colour, by `place` [n], stays."""
    figure, axes = point_panels(len(clouds))
    for axis, x, title in zip(axes, clouds, titles, strict=True):
        axis.scatter(x[:, 0], x[:, 1], c=place, s=4, cmap="viridis", vmin=-2, vmax=2)
        axis.set(title=title, xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), aspect="equal")
    return figure


def plot_figure_2(left: Tensor, right: Tensor, titles: tuple[str, str]) -> Figure:
    """Figure 2: two sets of binary sequences [n, length], one a row; a 1 is dark."""
    figure, axes = panels(1, 2, size=WIDTH / 2, sharey=True)
    for axis, bits, title in zip(axes[0], (left, right), titles, strict=True):
        draw_bits(axis, bits, title)
    axes[0, 0].set_ylabel("sequence")
    return figure


def draw_bits(axes: Axes, bits: Tensor, title: str) -> None:
    """Binary sequences [n, length], one a row; a 1 is dark."""
    axes.imshow(bits.numpy(), cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.set(title=title, xlabel="bin")


def plot_point_samples(x: Tensor, scale: Tensor | None = None) -> Figure:
    """Samples of points [n, D]: their first two coordinates, or a histogram where there is one.

    The axes are those of data of standard deviation 1. Points in the data's own units come with the standard deviation
    of each coordinate, `scale` [D], which has the same length on both axes; these are as long as the points need.
    """
    figure, axes = panels(1, 1, size=5)
    title, unit = f"{len(x)} samples of p(x⁰)", "" if scale is None else ", in the data's own units"
    if x.shape[1] == 1:
        axes[0, 0].hist(x[:, 0].numpy(), bins="auto", density=True, color=ORANGE)
        axes[0, 0].set(title=title, xlabel=f"$x_1${unit}", ylabel="density")
    else:
        draw_points(axes[0, 0], x, title, ORANGE)
        axes[0, 0].set(xlabel=f"$x_1${unit}", ylabel=f"$x_2${unit}")
        if scale is not None:
            axes[0, 0].set_aspect(float(scale[0] / scale[1]))
            axes[0, 0].autoscale()
    return figure


def plot_bit_samples(x: Tensor) -> Figure:
    """Samples of bits [n, length], one a row, the first 100 shown."""
    figure, axes = panels(1, 1, size=5)
    draw_bits(axes[0, 0], x[:100], f"{min(len(x), 100)} samples of p(x⁰)")
    axes[0, 0].set_ylabel("sequence")
    return figure


def draw_image(axes: Axes, image: Tensor, low: float, high: float) -> None:
    """One picture [C, H, W], grey or in colour, from black at `low` to white at `high`."""
    shades = ((image - low) / (high - low)).clamp(0, 1).permute(1, 2, 0).numpy()
    axes.imshow(shades if len(image) == 3 else shades[:, :, 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()


def plot_image_grid(x: Tensor) -> Figure:
    """Figures 4 and App.1: samples [n, C, H, W], not means; black and white are the 1st and 99th percentile of all."""
    columns = math.ceil(math.sqrt(len(x)))
    figure, axes = panels(math.ceil(len(x) / columns), columns, size=max(1.0, 6 / columns))
    low, high = np.quantile(x.numpy(), (0.01, 0.99))
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, image in zip(axes.flat, x, strict=False):
        draw_image(axis, image, low, high)
    return figure


def plot_restorations(x0: Tensor, seen: Tensor, restored: Tensor) -> Figure:
    """Figures 3 and 5: held-out pictures, what was seen of them, samples given that; [n, C, H, W] each.

    A row for each of the three, or a column where there are too few pictures for a row.
    """
    few = len(x0) < 3
    shape = (len(x0), 3) if few else (3, len(x0))
    figure, axes = panels(*shape, size=WIDTH / shape[1])
    figure.set_figheight(shape[0] * WIDTH / shape[1] + (0.3 if few else 0.9))  # for titles
    low, high = np.quantile(x0.numpy(), (0.01, 0.99))
    sets = zip(axes.T if few else axes, (x0, seen, restored), ("held out", "seen", "restored"), strict=True)
    for places, images, name in sets:
        places[0].set_title(name, loc="left", fontsize="medium")
        for axis, image in zip(places, images, strict=True):
            draw_image(axis, image, low, high)
    return figure


def plot_images(images: dict[str, Tensor]) -> Figure:
    """Named pictures [C, H, W] of any sizes, three a row; in each, black is its least number and white its greatest."""
    columns = min(3, len(images))
    figure, axes = panels(math.ceil(len(images) / columns), columns, size=WIDTH / columns)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (title, image) in zip(axes.flat, images.items(), strict=False):
        draw_image(axis, image, float(image.min()), float(image.max()))
        axis.set_title(title)
    return figure


def plot_images_to_scale(pictures: dict[str, Tensor]) -> Figure:
    """Figures 4 and 5: named pictures [C, H, W]; black and white are the 1st and 99th percentile of the first."""
    figure, axes = panels(1, len(pictures), size=WIDTH / len(pictures))
    figure.set_figheight(WIDTH / len(pictures) + 0.3)  # for titles
    low, high = np.quantile(next(iter(pictures.values())).numpy(), (0.01, 0.99))
    for axis, (title, image) in zip(axes[0], pictures.items(), strict=True):
        axis.set_title(title)
        draw_image(axis, image, low, high)
    return figure


#: how samples of a kind of data are drawn
SAMPLE_PLOTS: dict[str, Callable[[Tensor], Figure]] = {
    "points": plot_point_samples,
    "bits": plot_bit_samples,
    "pictures": plot_image_grid,
}


def plot_curves(
    x: Sequence[float] | Tensor, lines: dict[str, Tensor], xlabel: str, ylabel: str, **axes_options
) -> Figure:
    """Lines over one axis, named in a legend."""
    figure, axes = open_panel()
    for (name, y), dash in zip(lines.items(), itertools.cycle(("-", "--", "-.", ":")), strict=False):
        axes.plot(x, y, dash, label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel, **axes_options)
    if len(lines) > 1:
        axes.legend()
    return figure


def plot_learning_curves(runs: Sequence[dict], unit: str) -> Figure:
    """K over the steps of training, a line a run; K as evaluated at the end as a cross, K* as a dotted line.

    A run has "folder", "step" and "K_bits", lists of one length, "K_final_bits" and "K_optimum_bits", a number or None.
    K of training is of the weights as they are, K at the end that of their average.
    """
    figure, axes = open_panel()
    for run, colour in zip(runs, itertools.cycle(PALETTE), strict=False):
        axes.plot(run["step"], run["K_bits"], color=colour, lw=1.2, label=run["folder"])
        if run["K_final_bits"] is not None and run["step"]:
            axes.plot(run["step"][-1], run["K_final_bits"], "X", color=colour, ms=9, mec="white", clip_on=False)
        if run["K_optimum_bits"] is not None:
            axes.axhline(run["K_optimum_bits"], color=colour, ls=":")
    lines, names = axes.get_legend_handles_labels()
    cross, dots = Line2D([], [], ls="", marker="X", color="grey", ms=8), Line2D([], [], ls=":", color="grey")
    for mark, name, key in ((cross, "evaluated", "K_final_bits"), (dots, "K*", "K_optimum_bits")):
        if any(run[key] is not None for run in runs):
            lines, names = [*lines, mark], [*names, name]
    axes.set(xlabel="step", ylabel=f"K ({unit})")
    axes.legend(lines, names, loc="lower right")
    return figure


def plot_lost_bits(rows: dict[str, dict[str, float]], xlabel: str) -> Figure:
    """What K lacks of the truth, a bar a model: lost by the edge step, by kernel and schedule, in training."""
    figure, axes = open_panel(1.2 + 0.5 * len(rows))
    left = np.zeros(len(rows))
    for part, colour in zip(("edge", "kernel_and_schedule", "training"), PALETTE, strict=False):
        width = np.array([row[part] for row in rows.values()])
        axes.barh(list(rows), width, left=left, color=colour, label=part.replace("_", " "))
        left += width
    axes.set(xlabel=xlabel)
    axes.invert_yaxis()
    axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    return figure


def plot_paired_bars(rows: dict[str, tuple[float, float]], names: tuple[str, str], xlabel: str) -> Figure:
    """Tables 1 and 2 as bars: two values a row, each written at its end."""
    figure, axes = open_panel(1 + 0.7 * len(rows))
    for k, (name, colour) in enumerate(zip(names, PALETTE, strict=False)):
        places = np.arange(len(rows)) + 0.4 * k - 0.2
        bars = axes.barh(places, [row[k] for row in rows.values()], height=0.38, color=colour, label=name)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize="small")
    axes.set(xlabel=xlabel, yticks=range(len(rows)), yticklabels=list(rows))
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.legend()
    return figure


def plot_schedules(levels: Sequence[Tensor], costs: Sequence[Tensor], titles: Sequence[str]) -> list[Figure]:
    """One picture a schedule: its noise variance at t = 1…T, on a scale of odds, and beside each of the steps 2…T, at
    the same height, what it costs, in bits."""
    figures: list[Figure] = []
    for level, cost, title in zip(levels, costs, titles, strict=True):
        figure = NotebookFigure(figsize=(5.8, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        left.plot(np.arange(1, len(level) + 1), level, ".-", color=BLUE)
        left.set(yscale="logit", xlabel="timestep t", ylabel="noise variance", ylim=(5e-5, 0.9995))
        left.yaxis.set_minor_formatter(NullFormatter())
        right.hlines(level[1:], 0, cost, color=ORANGE, lw=1.2)
        right.set(xlabel="cost of the step (bits)", xlim=(0, 1.05 * max(float(cost.max()) for cost in costs)))
        figure.suptitle(title)
        seaborn.despine(figure)
        figures.append(figure)
    return figures


def plot_step_costs(level: Tensor, restored: Tensor, lost: Tensor, title: str, top: float) -> Figure:
    """What each step of (14) costs: a bar from one noise level, as log odds, to the next, so that areas are bits.

    level [T] at t = 1…T; bits that step t = 2…T must restore, and above them those it loses, [T−1] each; y up to `top`.
    """
    figure, axes = open_panel(3.4)
    width = level.diff()
    heights, bottom = (restored / width, lost / width), 0 * lost
    for height, colour, name in zip(heights, (BLUE, ORANGE), ("restored", "lost"), strict=True):
        axes.bar(level[:-1], height, width, bottom, align="edge", color=colour, edgecolor="white", lw=0.3, label=name)
        bottom = bottom + height
    axes.set(xlabel="log odds of the noise", ylabel="bits per unit of log odds", ylim=(0, top), title=title)
    axes.legend()
    return figure


def plot_histograms(samples: dict[str, Tensor], xlabel: str, mark: float) -> Figure:
    """Log densities of several samples [n] over the same bins, named in a legend; a dotted line at `mark`."""
    figure, axes = open_panel()
    bins = np.histogram_bin_edges(np.concatenate([values.numpy() for values in samples.values()]), 60)
    for name, values in samples.items():
        axes.hist(values.numpy(), bins.tolist(), density=True, histtype="step", log=True, lw=1.5, label=name)
    axes.axvline(mark, color="black", ls=":")
    axes.set(xlabel=xlabel, ylabel="density")
    axes.legend()
    return figure


def plot_point_frames(frames: Sequence[Tensor], label: Callable[[int], str]) -> list[Figure]:
    """One picture a time step of points [n, 2]: a complex distribution dissolving into a simple one."""
    figures = []
    for k, x in enumerate(frames):
        figure, axes = panels(1, 1, size=4)
        draw_points(axes[0, 0], x, label(k))
        axes[0, 0].set(xlabel="$x_1$", ylabel="$x_2$")
        figures.append(figure)
    return figures


def timestep_panels(t: int, lines: dict[str, Tensor], ylabel: str, **axes_options) -> tuple[Figure, Axes]:
    """One timestep of a process: a square panel to draw in; below it lines over t = 0…T, [T+1] each, with dots at t."""
    figure = NotebookFigure(figsize=(4, 5.9))
    above, below = figure.add_axes((0.19, 0.421, 0.77, 0.522)), figure.add_axes((0.19, 0.095, 0.77, 0.18))
    for (name, y), dash in zip(lines.items(), itertools.cycle(("-", "--", ":")), strict=False):
        (line,) = below.plot(y, dash, color="black", lw=1, label=name)
        below.plot(t, y[t], "o", color=line.get_color())
    above.set(title=f"t = {t}")
    below.set(xlabel="timestep t", ylabel=ylabel, **axes_options)
    if len(lines) > 1:
        below.legend(ncols=len(lines), loc="lower right", bbox_to_anchor=(1, 0.95), frameon=False, columnspacing=1)
    seaborn.despine(ax=below)
    return figure, above


def plot_swiss_roll_at(
    x: Tensor, place: Tensor, t: int, lines: dict[str, Tensor], ylabel: str, drift: Tensor | None = None, **axes_options
) -> Figure:
    """Points of the plane [n, 2], each in the colour of its `place` in 0…1, [n]; lines over t as in `timestep_panels`.

    drift [m, m, 2, 2]: places on a square grid and the arrows there, scaled so that two in three fit their cell; longer
    ones are cut.
    """
    figure, axes = timestep_panels(t, lines, ylabel, **axes_options)
    if drift is not None:
        grid, arrows = drift.flatten(0, 1).unbind(1)
        length = arrows.norm(dim=1, keepdim=True)
        arrows = arrows / length.clamp(min=float(length.quantile(0.67))) * 0.9 * (grid[1] - grid[0]).norm()
        axes.quiver(*grid.T, *arrows.T, color="grey", angles="xy", scale_units="xy", scale=1, width=0.005)
    axes.scatter(x[:, 0], x[:, 1], s=4, c=place, cmap=SPIRAL, vmin=0, vmax=1, linewidths=0)
    axes.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), xlabel="$x_1$", ylabel="$x_2$")
    return figure


def plot_heartbeat_at(x: Tensor, data: Tensor, t: int, lines: dict[str, Tensor], ylabel: str, **axes_options) -> Figure:
    """Binary sequences [n, length], one a row: a 1 is blue where `data`, of the same shape, has it too, else orange."""
    figure, axes = timestep_panels(t, lines, ylabel, **axes_options)
    axes.imshow((x * (2 - data)).numpy(), cmap=BITS, vmin=0, vmax=2, aspect="auto", interpolation="nearest")
    axes.set(xlabel="bin", ylabel="sequence")
    return figure


def plot_entropy_bounds(panels: dict[str, tuple[Tensor, Tensor, Tensor]]) -> Figure:
    """A column for each title: a lower bound, an exact value and an upper bound in nats over t = 1…T, each [T].

    Above as they are, below less the lower bound.
    """
    figure = NotebookFigure(figsize=(3.3 * len(panels), 5.6), layout="constrained")
    axes = figure.subplots(2, len(panels), sharex="col", squeeze=False)
    for column, (title, (low, value, high)) in zip(axes.T, panels.items(), strict=True):
        t = np.arange(1, len(value) + 1)
        for axis, base in zip(column, (0 * value, low), strict=True):
            axis.fill_between(t, low - base, high - base, color=BLUE, alpha=0.25, label="between the bounds")
            axis.plot(t, value - base, color=ORANGE, label="exact")
        column[0].set(title=title)
        column[1].set(xlabel="timestep t")
    axes[0, 0].set(ylabel="entropy of a step (nats)")
    axes[1, 0].set(ylabel="above the lower bound (nats)")
    axes[0, 0].legend(loc="upper left")
    seaborn.despine(figure)
    return figure


def plot_entropy_bounds_of_process(
    low: Tensor, value: Tensor, high: Tensor, title: str, reach: float, density: float
) -> Figure:
    """The entropy bounds (24) of one forward process and the exact value between them, nats, [T] each, against t/T.

    One stair per timestep. Left, the entropies themselves, from `reach` down to a 300th of it. Right, T times their
    excess over the lower bound, up to `density`: there an area is a sum over all timesteps.
    """
    figure = NotebookFigure(figsize=(5.8, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    edges = np.linspace(0, 1, len(value) + 1)
    for axes, base, times in ((left, 0, 1), (right, low, len(value))):
        below, exact, above = (times * (side - base).numpy() for side in (low, value, high))
        axes.stairs(above, edges, baseline=below, fill=True, color=BLUE, alpha=0.3, label="between the bounds")
        axes.stairs(exact, edges, baseline=None, color=ORANGE, lw=1.5, label="exact")
        axes.set(xlabel="t/T", xlim=(0, 1), xticks=(0, 0.5, 1), box_aspect=1)
    left.set(title="one step (nats)", yscale="log", ylim=(reach / 300, reach))
    right.set(title="T × above lower (nats)", ylim=(min(0.0, float(len(value) * (high - low).min())), density))
    right.legend()
    figure.suptitle(title)
    seaborn.despine(figure)
    return figure


def plot_posteriors(
    curve: Tensor, clouds: Sequence[Tensor], titles: Sequence[str], y: tuple[float, float | None]
) -> Figure:
    """Samples [n, 2] of posteriors on the roll, over its whole curve [m, 2]; a cross where y was seen, or a line where
    only its first coordinate is known. Two panels a row."""
    figure, axes = panels(math.ceil(len(clouds) / 2), min(2, len(clouds)), size=3.2, sharex=True, sharey=True)
    for axis, x, title in zip(axes.flat, clouds, titles, strict=True):
        axis.plot(curve[:, 0], curve[:, 1], color="lightgrey", lw=1)
        draw_points(axis, x, title, ORANGE, reach=2.6)
        if y[1] is None:
            axis.axvline(y[0], color="black", ls=":")
        else:
            axis.plot(*y, "x", color="black", ms=9, mew=2)
    for axis in axes[-1]:
        axis.set_xlabel("$x_1$")
    for axis in axes[:, 0]:
        axis.set_ylabel("$x_2$")
    return figure


def plot_posterior_along_curve(
    curve: Tensor, x: Tensor, y: tuple[float, float], s: float, shares: dict[str, Tensor], title: str
) -> Figure:
    """A posterior on the roll: left, samples [n, 2] over the curve [m, 2], y a cross in its circle of radius s; right,
    how much of it each part of the curve has, [parts], by two accounts, the exact one first, in units of its peak."""
    figure = NotebookFigure(figsize=(5.8, 3.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(curve[:, 0], curve[:, 1], color="lightgrey", lw=1)
    draw_points(left, x, title, ORANGE, reach=2.6)
    left.plot(*y, "x", color="black", ms=8, mew=2)
    turn = np.linspace(0, 2 * np.pi, 200)
    left.plot(y[0] + s * np.cos(turn), y[1] + s * np.sin(turn), color="black", ls=":")
    left.set(xlabel="$x_1$", ylabel="$x_2$")
    largest = next(iter(shares.values())).max()
    for (name, share), colour, filled in zip(shares.items(), (BLUE, ORANGE), (True, False), strict=True):
        edges = np.linspace(0, 1, len(share) + 1)
        right.stairs(share / largest, edges, color=colour, fill=filled, alpha=0.4 if filled else 1, lw=1.5, label=name)
    right.set(
        title="share, largest exact one 1", xlabel="place along the curve", yticks=(0, 1), ylim=(0, 2), box_aspect=1
    )
    right.legend(loc="upper right")
    return figure


def plot_reverse_distribution(
    u: Tensor, true: Tensor, best: Tensor, betas: Sequence[float], losses: Tensor, at: int, title: str
) -> Figure:
    """Section 2.2: the reverse distribution q(x^{t−1}|x^t) of one x^t and the nearest Gaussian, at the rate betas[at].

    Left, both densities over u, in standard deviations. Right, the KL between the two at every rate, nats, with a cross
    at this one; a dotted line of order three goes through the last.
    """
    figure = NotebookFigure(figsize=(5.8, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(u, true, color=BLUE, label="true reversal")
    left.plot(u, best, "--", color=ORANGE, label="best Gaussian")
    left.set(title=title, xlabel="standard deviations", ylabel="density", ylim=(0, 0.75))
    left.legend(loc="upper right", fontsize="small")
    third = float(losses[-1]) * (np.array(betas) / betas[-1]) ** 3
    right.plot(betas, third, ":", color="grey", label="order three")
    right.plot(betas, losses, color=BLUE)
    right.plot(betas[at], losses[at], "X", color=ORANGE, ms=10)
    right.set(title="KL between them (nats)", xlabel="β", xscale="log", yscale="log")
    right.set_ylim(float(losses.min()) / 3, 3 * float(losses.max()))
    right.legend(loc="lower right", fontsize="small")
    seaborn.despine(figure)
    return figure


def plot_in_two_units(
    values: dict[str, float], xlabel: str, top: str, there: Callable, back: Callable, mark: float, stray: Sequence[str]
) -> Figure:
    """One named number a row, read in two units: below as it is, above through `there`, whose inverse is `back`.

    A dotted line at `mark`; the rows named in `stray` are orange crosses.
    """
    figure = NotebookFigure(figsize=(WIDTH, 0.28 * len(values) + 1.6), layout="constrained")
    axes = figure.subplots()
    for row, (name, value) in enumerate(values.items()):
        sign, colour = ("x", ORANGE) if name in stray else ("o", BLUE)
        axes.plot(value, row, sign, color=colour, mew=2)
    axes.axvline(mark, color="black", ls=":")
    axes.set(xlabel=xlabel, yticks=range(len(values)), yticklabels=list(values))
    axes.invert_yaxis()
    axes.grid(axis="y", lw=0.5)
    axes.secondary_xaxis("top", functions=(there, back)).set_xlabel(top)
    return figure


def to_png(figure: Figure, colours: int | None = None) -> bytes:
    """A figure as PNG; with `colours`, on a palette of that many, a third of the size."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    if colours is None:
        return buffer.getvalue()
    small = io.BytesIO()
    picture = Image.open(buffer).convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    picture.save(small, "png", optimize=True)
    return small.getvalue()
