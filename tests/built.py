"""The built pages, read once for the tests of the book and of its reference part."""

from functools import cache
from html.parser import HTMLParser
from pathlib import Path

HTML = Path(__file__).parent.parent / "_build" / "html"
LEADING = {"canonical", "index", "search", "next", "prev"}  # relations of a <link> that loads nothing


class Page(HTMLParser):
    """What a page loads by itself, where its links lead, where links may lead in it, and pictures that say nothing."""

    def __init__(self, path):
        super().__init__()
        self.loads, self.links, self.places, self.mute = [], [], set(), []
        self.feed(path.read_text(encoding="utf8"))

    def handle_starttag(self, tag, attrs):
        attributes = {name: value or "" for name, value in attrs}
        if tag in ("script", "img", "iframe", "source", "video", "audio", "embed"):
            self.loads.append(attributes.get("src", ""))
        elif tag == "link" and not LEADING & set(attributes.get("rel", "").split()):
            self.loads.append(attributes.get("href", ""))
        elif tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        if tag == "img" and not attributes.get("alt", "").strip():
            self.mute.append(attributes.get("src", ""))
        self.places |= {attributes[name] for name in ("id", "name") if name in attributes}


@cache
def built():
    """Every page of the book, from its path."""
    pages = {path: Page(path) for path in sorted(HTML.rglob("*.html")) if "_static" not in path.parts}
    assert HTML / "chapters" / "api" / "bound.html" in pages, "build the book first: make book"
    return pages
