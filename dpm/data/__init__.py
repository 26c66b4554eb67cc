"""Data: `synthetic` distributions, `images` and their scaling, the `sets` of pictures, and how to `download` them."""
