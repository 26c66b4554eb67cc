"""Diffusion probabilistic models as Sohl-Dickstein, Weiss, Maheswaranathan and Ganguli introduced them (ICML 2015).

Read top to bottom the module is the paper: schedules, forward, networks, reverse, bound, optimum, train, datasets,
experiments, plots, and the command line.
"""
