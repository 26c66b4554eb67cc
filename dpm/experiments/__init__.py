"""The rows of Tables 1 and 2: a file for each experiment (`swiss_roll`, …), and the `registry` that finds them."""
