"""Figures that move: a player that needs no kernel, and sliders that recompute in a live one."""

import base64
import html
from collections.abc import Callable, Sequence
from hashlib import sha1

from IPython.display import HTML
from ipywidgets import Image as LiveImage
from ipywidgets import SelectionSlider, VBox
from matplotlib.figure import Figure

from dpm.figures import to_png


def controls(draw: Callable[..., Figure], **choices: Sequence) -> VBox:
    """Sliders that recompute a figure, in a live kernel: `draw` of the values chosen, each starting in its middle.

    Both ends of every slider are drawn once, before anyone moves it; ValueError where they look the same.
    """
    middle = {name: values[len(values) // 2] for name, values in choices.items()}
    for name, values in choices.items():
        if to_png(draw(**middle | {name: values[0]})) == to_png(draw(**middle | {name: values[-1]})):
            raise ValueError(f"the figure is the same at both ends of the slider {name!r}")
    image = LiveImage(value=to_png(draw(**middle)), layout={"align_self": "flex-start"})  # its own size, not the page's
    sliders = {
        name: SelectionSlider(options=values, value=middle[name], description=name, continuous_update=False)
        for name, values in choices.items()
    }

    def redraw(_: object) -> None:
        image.value = to_png(draw(**{name: slider.value for name, slider in sliders.items()}))

    for slider in sliders.values():
        slider.observe(redraw, "value")
    return VBox([*sliders.values(), image])


def player(figures: Sequence[Figure], label: str, alt: str, milliseconds: int = 100, moving: bool = False) -> HTML:
    """A moving picture with slider, arrow keys and a play button that needs no kernel, library or network.

    label names the slider, alt tells what there is to see. It opens on its first frame; with `moving` it plays by
    itself, over and over, unless the reader's system asks for less motion.
    """
    frames = [base64.b64encode(to_png(figure, colours=32)).decode() for figure in figures]
    name = "player" + sha1("".join(frames).encode()).hexdigest()[:8]
    sources = ",".join(f'"data:image/png;base64,{frame}"' for frame in frames)
    return HTML(
        PLAYER.format(
            name=name,
            label=html.escape(label),
            alt=html.escape(alt),
            last=len(frames) - 1,
            first=frames[0],
            sources=sources,
            milliseconds=milliseconds,
            moving=str(moving).lower(),
        )
    )


PLAYER = """<div id="{name}" class="dpm-player">
<img alt="{alt}" src="data:image/png;base64,{first}" style="max-width:100%"><br>
<button type="button" aria-label="play">&#9654;</button>
<label>{label} <input type="range" min="0" max="{last}" value="0"></label> <output>0</output></div>
<script>(function () {{
  var box = document.getElementById("{name}"), frames = [{sources}], timer = null,
      slider = box.querySelector("input"), image = box.querySelector("img"),
      value = box.querySelector("output"), button = box.querySelector("button");
  function face(sign, name) {{ button.innerHTML = sign; button.setAttribute("aria-label", name); }}
  function show() {{ image.src = frames[slider.value]; value.value = slider.value; }}
  function stop() {{ clearInterval(timer); timer = null; face("&#9654;", "play"); }}
  function next() {{
    if (+slider.value === {last}) return {moving} ? rest() : stop();
    slider.value = +slider.value + 1; show();
  }}
  function rest() {{ stop(); timer = setTimeout(function () {{ slider.value = 0; play(); }}, 2000); }}
  function play() {{
    if (+slider.value === {last}) slider.value = 0;
    show(); face("&#10074;&#10074;", "pause");
    timer = setInterval(next, {milliseconds});
  }}
  slider.oninput = function () {{ stop(); show(); }};
  button.onclick = function () {{ if (timer) stop(); else play(); }};
  if ({moving} && !matchMedia("(prefers-reduced-motion: reduce)").matches) play();
}})();</script>"""
