"""What nbval compares: every number and word; not pictures, which another processor draws a shade otherwise."""


def pytest_collectstart(collector):
    """A moving picture is HTML made of PNGs, and nbval passes over PNGs already."""
    if collector.path.suffix == ".ipynb":
        collector.skip_compare += ("text/html",)
