"""Moving pictures need nothing but themselves; sliders recompute in a live kernel."""

import pytest
import torch
from torch import Generator

from dpm import figures, player


@pytest.fixture
def points():
    return torch.randn(50, 2, generator=Generator().manual_seed(0), dtype=torch.float64)


def frames(points, count):
    return figures.plot_point_frames([points * (k + 1) / count for k in range(count)], lambda k: f"t = {k}")


def test_player_holds_every_frame_and_nothing_from_outside(points):
    page = player.player(frames(points, 5), "t < T", "points <spread>", milliseconds=40).data
    assert page.count("data:image/png;base64,") == 6  # five, and the first once more, shown before any script runs
    assert 'alt="points &lt;spread&gt;"' in page and "<label>t &lt; T <input" in page and 'max="4"' in page
    assert "setInterval(next, 40)" in page and "<output>0</output>" in page
    assert "http" not in page


def test_player_gives_the_same_bytes_twice(points):
    first, second = (player.player(frames(points, 3), "t", "points").data for _ in range(2))
    assert first == second
    assert first != player.player(frames(2 * points, 3), "t", "points").data


def test_a_moving_player_minds_a_wish_for_less_motion(points):
    still, moving = (player.player(frames(points, 2), "t", "points", moving=m).data for m in (False, True))
    assert "if (false &&" in still and "if (true && !matchMedia" in moving
    assert player.player(frames(points, 2), "t", "points").data == still


def test_players_that_begin_alike_have_names_of_their_own(points):
    """A script finds its own pictures by that name."""
    first, second = (player.player([*frames(points, 1), *frames(k * points, 1)], "t", "").data for k in (2, 3))
    assert first.split('"')[1].startswith("player") and first.split('"')[1] != second.split('"')[1]


def test_controls_recompute_the_figure():
    def line(height: float, over: int):
        return figures.plot_curves([0, 1], {"": torch.tensor([0.0, height])}, "x", str(over))

    box = player.controls(line, height=(1, 2, 3), over=(4, 5))
    height, over, image = box.children
    assert (height.value, over.value) == (2, 5) and bytes(image.value) == figures.to_png(line(2, 5))
    over.value = 4
    height.value = 3
    assert bytes(image.value) == figures.to_png(line(3, 4))


def test_controls_refuse_a_slider_that_changes_nothing():
    def line(height: float, idle: int):
        return figures.plot_curves([0, 1], {"": torch.tensor([0.0, height])}, "x", "y")

    with pytest.raises(ValueError, match="idle"):
        player.controls(line, height=(1, 2), idle=(1, 2))


def test_controls_compare_the_two_ends_and_not_the_middle():
    def line(height: int):
        return figures.plot_curves([0, 1], {"": torch.tensor([0.0, height**2])}, "x", "y")

    with pytest.raises(ValueError, match="both ends of the slider 'height'"):
        player.controls(line, height=(-1, 0, 1))
    player.controls(line, height=(1, -1, 2))  # its middle looks like its first, its last does not
