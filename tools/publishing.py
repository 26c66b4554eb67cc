"""What a published book has and a folder on a disk has not, all from one address: `repository: url` in _config.yml.

Where that is empty, nothing here does anything. Where it is set, pages get buttons to the repository, Colab and Binder,
a canonical address and a preview for those who share them; and the site gets a map, a page for what is not there, and
pages at the numbered names that chapters once had.
"""

from html import escape
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
OLD_NAMES = {
    "01_claims": "claims",
    "02_forward": "forward_process",
    "03_reverse": "reverse_process",
    "04_bound": "evidence_lower_bound",
    "05_swiss_roll": "swiss_roll",
    "06_heartbeat": "heartbeat",
    "07_weigh": "importance_sampling",
    "08_entropy": "entropy_bounds",
    "09_posterior": "posteriors",
    "10_line_by_line": "deriving_the_bound",
    "11_rate": "noise_schedule",
    "12_feller": "small_steps",
    "13_digits": "digits",
    "14_mnist": "mnist",
    "15_dead_leaves": "dead_leaves",
    "16_bark": "bark",
    "17_cifar10": "cifar10",
    "18_results": "results",
    "19_bits": "bits",
    "20_errata": "errata",
    "21_after": "after_2015",
}
BUTTONS = ("use_repository_button", "use_issues_button", "use_edit_page_button")
LAUNCHERS = {"colab_url": "https://colab.research.google.com", "binderhub_url": "https://mybinder.org"}


def repository_address(root: Path = ROOT) -> str:
    """The one address, https://github.com/OWNER/NAME, or nothing."""
    return yaml.safe_load((root / "_config.yml").read_text(encoding="utf8"))["repository"]["url"].rstrip("/")


def site_address(repository: str) -> str:
    """Where GitHub Pages shows the book of this repository."""
    owner, name = repository.split("/")[-2:]
    return f"https://{owner.lower()}.github.io/{name}/"


def leading_page(target: str) -> str:
    """A page that leads on to another, beside it."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Moved</title>'
        f'<link rel="canonical" href="{target}"><meta http-equiv="refresh" content="0; url={target}">'
        f'<p>This chapter is now <a href="{target}">here</a>.</p>\n'
    )


def missing_page(site: str, title: str) -> str:
    """The page for an address that leads nowhere. It may be shown at any depth, so its link is a whole address."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>No such page</title>'
        f'<p>There is no page here. The book begins at <a href="{site}">{escape(title)}</a>.</p>\n'
    )


def use_address(app, config):
    """Buttons and the canonical address, before the theme reads its options."""
    address = config.html_theme_options.get("repository_url", "").rstrip("/")
    if not address:
        return
    config.html_theme_options |= dict.fromkeys(BUTTONS, True) | {"repository_branch": "main", "path_to_docs": ""}
    config.html_theme_options["launch_buttons"] = config.html_theme_options.get("launch_buttons", {}) | LAUNCHERS
    config.html_baseurl = site_address(address)


def add_preview(app, name, template, context, doctree):
    """Open Graph tags: what is shown where a page is shared."""
    if app.config.html_baseurl:
        properties = {
            "title": context.get("title", app.config.html_title),
            "site_name": app.config.html_title,
            "type": "article",
            "url": f"{app.config.html_baseurl}{name}.html",
            "image": f"{app.config.html_baseurl}_static/swiss_roll.png",
            "image:alt": "A thin spiral of orange points",
        }
        tags = (f'<meta property="og:{key}" content="{escape(text)}">' for key, text in properties.items())
        context["metatags"] = context.get("metatags", "") + "\n".join(tags)


def add_files(app, exception):
    """The map of the site, the page for what is not there, and the old names of chapters."""
    site, out = app.config.html_baseurl, Path(app.outdir)
    if exception or not site:
        return
    pages = sorted(app.env.found_docs)
    urls = "".join(f"<url><loc>{site}{page}.html</loc></url>" for page in pages)
    sitemap = (
        f'<?xml version="1.0" encoding="utf-8"?><urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{urls}'
    )
    (out / "sitemap.xml").write_text(f"{sitemap}</urlset>\n", encoding="utf8")
    (out / "404.html").write_text(missing_page(site, app.config.html_title), encoding="utf8")
    for old, new in OLD_NAMES.items():
        (out / "chapters" / f"{old}.html").write_text(leading_page(f"{new}.html"), encoding="utf8")


def setup(app):
    app.connect("config-inited", use_address)
    app.connect("html-page-context", add_preview)
    app.connect("build-finished", add_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
