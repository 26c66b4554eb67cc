"""The built book as a reader sees it: opened in Chromium, wide and light, then narrow and dark, with no way out."""

import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from built import HTML
from playwright.sync_api import sync_playwright

PAGES = sorted(str(page.relative_to(HTML)) for page in HTML.rglob("*.html") if "_static" not in page.parts)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
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
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
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
