"""The built book as a reader sees it: opened in Chromium, wide and light, then narrow and dark, with no way out."""

import json
import math
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import pytest
from built import HTML
from chromium import CHROMIUM, launch
from playwright.sync_api import sync_playwright

from dpm.data.synthetic import heartbeat_sequences
from dpm.experiments.shipped import load_result, schedule_path
from dpm.forward import BIT_KERNELS
from dpm.ideal import IdealReverse, enumerate_ideal_K
from dpm.schedules import linear_alpha_bar
from dpm.units import to_bits

pytestmark = pytest.mark.book

PAGES = sorted(str(page.relative_to(HTML)) for page in HTML.rglob("*.html") if "_static" not in page.parts)
LOOKS = {
    "desktop, light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "phone, dark": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
}

if not CHROMIUM:
    pytest.skip("no Chromium here, so no page was opened; apt-get install chromium", allow_module_level=True)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        """The page that only leads to another names no icon; a browser that lingers on it asks for this one."""
        if self.path == "/favicon.ico":
            self.send_response(204)
            self.end_headers()
        else:
            super().do_GET()


class Server(ThreadingHTTPServer):
    def handle_error(self, *_):
        """A page that is left may hang up."""


@pytest.fixture(scope="module")
def site():
    """The address of the built book."""
    server = Server(("localhost", 0), partial(Quiet, directory=HTML))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture(params=LOOKS.values(), ids=list(LOOKS))
def window(request, browser):
    """A page that notes what goes wrong in it, and asks for no motion, so that a player moves when it is told to."""
    context = browser.new_context(**request.param, reduced_motion="reduce")
    page = context.new_page()
    page.wrong, page.asked = [], []
    page.on("console", lambda message: page.wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("requestfailed", lambda request: page.wrong.append(request.url))
    page.on("request", lambda request: page.asked.append(request.url))
    yield page
    context.close()


def undrawn(page):
    """Formulas that are not drawn, or are drawn red."""
    page.wait_for_function("!window.MathJax || window.MathJax.startup?.promise")  # a busy machine is slow to run it
    page.evaluate("window.MathJax && MathJax.startup.promise")
    return page.evaluate("""() => [...document.querySelectorAll(".math")].filter(
        formula => !formula.querySelector("mjx-container") || formula.querySelector("mjx-merror, [data-mjx-error]")
    ).map(formula => formula.textContent)""")


def unseen(page):
    """Pictures that show nothing, or say nothing to those who do not see them."""
    return page.evaluate("""() => [...document.querySelectorAll("main img")].filter(
        image => !image.alt.trim() || (image.loading !== "lazy" && !image.naturalWidth)).map(image => image.src)""")


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_whole(window, site, path):
    """No error, nothing asked of the outside, every formula drawn, every picture seen, nothing wider than the page."""
    window.goto(site + path, wait_until="networkidle")
    assert undrawn(window) == []
    assert unseen(window) == []
    assert window.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert window.wrong == []
    assert [url for url in window.asked if not url.startswith((site, "data:", "blob:"))] == []


@pytest.mark.parametrize("path", [path for path in PAGES if 'class="dpm-player"' in (HTML / path).read_text("utf8")])
def test_a_moving_figure_moves(window, site, path):
    """By its slider, by an arrow key, and by its button."""
    window.goto(site + path, wait_until="domcontentloaded")
    for player in window.locator(".dpm-player").all():
        slider, image, button = (player.locator(name) for name in ("input", "img", "button"))
        seen = [image.get_attribute("src")]
        slider.fill(slider.get_attribute("max"))
        seen.append(image.get_attribute("src"))
        slider.press("ArrowLeft")
        seen.append(image.get_attribute("src"))
        button.click()
        assert button.get_attribute("aria-label") == "pause"
        window.wait_for_function(
            "([image, before]) => image.src !== before", arg=[image.element_handle(), seen[-1]], timeout=5000
        )
        assert len(set(seen)) == 3 and player.locator("label").inner_text().strip()


def test_dark_pages_are_dark_and_their_figures_are_not(window, site):
    """Figures keep a white face, so that black axes stay visible."""
    window.goto(site + "chapters/entropy_bounds.html", wait_until="networkidle")
    dark = window.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert window.evaluate("document.documentElement.dataset.theme") == ("dark" if dark else "light")
    shades = window.evaluate("""() => {
        const image = document.querySelector("main img"), canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
        canvas.getContext("2d").drawImage(image, 0, 0);
        return [...canvas.getContext("2d").getImageData(1, 1, 1, 1).data];
    }""")
    assert shades == [255, 255, 255, 255]


LABORATORY = "chapters/laboratory.html"


def part(page, name):
    return page.locator(f"[data-lab={name}]")


def bits_of(page, row, column=0):
    """A mean and its standard error from the laboratory's table."""
    mean, stderr = part(page, f"row-{row}").locator("td").nth(column).inner_text().replace("−", "-").split(" ± ")
    return float(mean), float(stderr)


def wait_for_bits(page, row, stderr, seconds=100):
    """Until the standard error of a row is this small."""
    page.wait_for_function(
        """([row, stderr]) => {
            const cell = document.querySelector(`[data-lab=row-${row}] td`).textContent.split(" ± ");
            return cell.length === 2 && !document.querySelector(".waiting") && Number(cell[1]) < stderr;
        }""",
        arg=[row, stderr],
        timeout=1000 * seconds,
    )


@pytest.fixture
def laboratory(browser, site):
    """The laboratory at an address, in a desktop window that asks for no motion."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce", has_touch=True)
    page = context.new_page()
    page.wrong = []
    page.on("pageerror", lambda error: page.wrong.append(str(error)))

    def visit(settings="", address=site + LABORATORY):
        page.goto("about:blank")  # or a change of settings alone would load nothing
        page.goto(f"{address}#{settings}", wait_until="load")
        part(page, "play").scroll_into_view_if_needed()
        return page

    yield visit
    context.close()
    assert page.wrong == []


def test_the_laboratory_counts_what_the_module_counts(laboratory):
    """K* of the roll with the best schedule, sought in the page; and what the shipped network lacks of it."""
    page, shipped = (
        laboratory("data=roll&T=40&schedule=best_schedule"),
        json.loads(schedule_path("swiss_roll").read_text()),
    )
    wait_for_bits(page, "K", 0.06)
    K, stderr = bits_of(page, "K")
    assert abs(K - shipped["K_optimum_bits"]) < 4 * math.hypot(stderr, shipped["K_optimum_stderr_bits"])
    page, record = laboratory("data=roll&T=40&schedule=best_schedule&model=network"), load_result("swiss_roll", "best")
    wait_for_bits(page, "gap", 0.005)
    gap, stderr = bits_of(page, "gap")
    assert abs(gap - record["gap_bits"]) < 4 * math.hypot(stderr, record["gap_stderr_bits"]) + 5e-4  # a rounding
    parts = {row: bits_of(page, row)[0] for row in ("truth", "first", "steps", "stop", "K")}
    assert parts["truth"] - parts["first"] - parts["steps"] - parts["stop"] == pytest.approx(parts["K"], abs=0.003)


def test_the_laboratory_is_drawn_in_by_mouse_touch_and_keys(laboratory):
    """What is drawn stands in the address, and is there again when the address is opened."""
    page = laboratory("data=draw")
    assert "Draw two points" in part(page, "complaint").inner_text() and part(page, "numbers").is_hidden()
    pen = part(page, "forward")
    pen.scroll_into_view_if_needed()
    box = pen.bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 250, box["y"] + 180, steps=20)
    page.mouse.up()
    drawn = points_drawn(page)
    page.touchscreen.tap(box["x"] + 200, box["y"] + 300)
    assert points_drawn(page) == drawn + 1 >= 10
    pen.focus()
    for key in ("ArrowLeft", "Enter", "ArrowUp", " ", "Backspace"):
        page.keyboard.press(key)
    assert points_drawn(page) == drawn + 2
    settings = settings_in_address(page)
    wait_for_bits(page, "K", 1.0)
    laboratory(settings)
    page.locator("[name=T]").first.press("ArrowRight")  # what is changed is written anew
    assert points_drawn(page) == drawn + 2 and settings_in_address(page) != settings
    wait_for_bits(page, "K", 1.0)


def settings_in_address(page):
    """What stands behind # in the address; the page itself is asked, since news of it comes late."""
    return page.evaluate("location.hash").removeprefix("#")


def points_drawn(page):
    """Three bytes a point, four letters."""
    return len(parse_qs(settings_in_address(page))["points"][0]) // 4


def test_every_control_of_the_laboratory_is_understood(laboratory):
    """Each choice and both ends of each slider: numbers, or a sentence that says why there are none."""
    page = laboratory("data=grid&T=5&noise=0.1")
    for name in ("schedule", "model", "data"):
        for value in page.locator(f"[name={name}] option").evaluate_all("options => options.map(o => o.value)"):
            laboratory(f"{name}={value}&data=grid&T=5&noise=0.1")  # the first counts
            if part(page, "complaint").inner_text():
                assert part(page, "numbers").is_hidden()
            else:
                wait_for_bits(page, "K", 9.0)
                assert page.locator(f"[name={name}]").input_value() == value
    laboratory("data=ring&T=5&noise=0.1")
    for name in ("T", "beta_1", "noise"):
        slider = page.locator(f"[data-lab=settings] [name={name}]")
        for end in ("min", "max"):
            slider.fill(slider.get_attribute(end))
            wait_for_bits(page, "first", 99.0)
    for name in ("density", "paths", "drift"):
        part(page, f"show-{name}").click()


def test_the_laboratory_keeps_an_experiment_for_comparison(laboratory):
    page = laboratory("data=ring&T=5&noise=0.1")
    wait_for_bits(page, "K", 0.2)
    assert not part(page, "forget").is_visible()
    part(page, "keep").click()
    page.locator("[name=schedule]").select_option("linear_alpha_bar")
    page.wait_for_function(
        "document.querySelectorAll('[data-lab=row-K] td')[1].textContent && !document.querySelector('.waiting')"
    )
    assert bits_of(page, "K", 1)[0] > bits_of(page, "K")[0] and "beside=" in settings_in_address(page)
    assert part(page, "lost").locator("polyline.kept").count() == 1
    part(page, "forget").click()
    assert "beside=" not in settings_in_address(page) and not part(page, "forget").is_visible()


def test_the_laboratory_answers_its_questions(laboratory):
    page = laboratory()
    for name in ("beta", "steps"):
        before = part(page, "row-first").locator("td").all_inner_texts()
        page.locator(f"[data-question={name}]").click()
        assert page.locator(f"[data-answer={name}]").is_visible() and page.locator("[data-answer]:visible").count() == 1
        part(page, "row-K").scroll_into_view_if_needed()
        page.wait_for_function(  # for both numbers of this question: those of the one before stand until then
            """before => !document.querySelector('.waiting') && [0, 1].every(i => {
                const now = document.querySelectorAll('[data-lab=row-first] td')[i].textContent
                return now && now !== before[i]
            })""",
            arg=before,
        )
        (now, now_stderr), (kept, kept_stderr) = bits_of(page, "first"), bits_of(page, "first", 1)
        larger, smaller = (now, kept) if name == "beta" else (kept, now)
        assert larger - smaller > 3 * math.hypot(now_stderr, kept_stderr)
    page.locator("[data-question=condition]").click()
    verdict = part(page, "verdict")
    page.wait_for_function(
        "/Of [1-4][0-9]00 /.test(document.querySelector('[data-lab=verdict]').textContent)", timeout=100_000
    )
    product, exact, _ = (int(share.split()[0]) for share in verdict.locator("b").all_inner_texts())
    assert product > 2 * exact


@pytest.mark.parametrize("kernel", ["flipping", "masking"])
def test_the_laboratory_of_bits_counts_exactly(laboratory, kernel):
    page = laboratory()
    part(page, "bits-verdict").scroll_into_view_if_needed()
    page.locator("[name=kernel]").select_option(kernel)
    page.locator("[data-lab=bits-settings] [name=T]").select_option("5")
    page.wait_for_function(
        "/exactly/.test(document.querySelector('[data-lab=bits-verdict]').textContent)", timeout=60_000
    )
    K = enumerate_ideal_K(IdealReverse(heartbeat_sequences()), BIT_KERNELS[kernel](linear_alpha_bar(5), 0.2))
    assert f"{float(to_bits(K)):.3f}".replace("-", "−") in part(page, "bits-verdict").inner_text()
    part(page, "bits-t").fill("0")
    assert part(page, "beats").locator(".one").count() > 0 and part(page, "beats").locator(".mask").count() == 0


def test_the_laboratory_works_from_a_file_and_minds_a_wish_for_less_motion(browser):
    """With no network; nothing plays by itself; the weights of the network are read; words say what is seen."""
    context = browser.new_context(viewport={"width": 390, "height": 844}, reduced_motion="reduce", offline=True)
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(f"{(HTML / LABORATORY).as_uri()}#data=roll&T=10&model=network", wait_until="load")
    part(page, "row-K").scroll_into_view_if_needed()
    wait_for_bits(page, "gap", 9.0)
    assert part(page, "t").input_value() == "3" and part(page, "play").get_attribute("aria-label") == "play"
    assert "t = 3 of 10: 400 points, swiss roll" in part(page, "forward").get_attribute("aria-label")
    part(page, "play").click()
    page.wait_for_function("Number(document.querySelector('[data-lab=t]').value) > 5")
    page.locator("[name=schedule]").select_option("cosine_alpha_bar")
    assert "cosine_alpha_bar" in settings_in_address(page)
    assert 'dpm.load_model("swiss_roll"' in part(page, "python").text_content().replace("'", '"')
    assert wrong == []
    context.close()


@pytest.mark.parametrize(
    "settings", ["data=roll&T=5&noise=0.1", "data=moons&T=20&schedule=linear_beta&model=posterior"]
)
def test_the_laboratorys_lines_of_python_compute_the_same(laboratory, settings, capsys):
    page = laboratory(settings)
    wait_for_bits(page, "K", 0.15)
    exec(part(page, "python").text_content(), names := {})
    mean, stderr = names["units"].mean_and_stderr(names["units"].to_bits(names["K"]))
    K, page_stderr = bits_of(page, "K")
    assert abs(K - mean) < 4 * math.hypot(stderr, page_stderr) and names["samples"].isfinite().all()
    assert "K (" in capsys.readouterr().out
