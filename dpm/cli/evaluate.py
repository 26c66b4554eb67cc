"""`dpm evaluate`."""

import argparse

from dpm.cli.choose import choose_trained
from dpm.cli.output import print_result
from dpm.evaluation import evaluate_experiment
from dpm.provenance import provenance


def evaluate(args: argparse.Namespace) -> None:
    """`dpm evaluate`: a row of Table 1, measured; of a user's own data, K beside two yardsticks on the same split."""
    experiment, setting, model = choose_trained(args)
    result = evaluate_experiment(experiment, model, args.seed) | {"setting": setting}
    print_result(result | {"provenance": provenance(args.seed, model.forward_process().beta.device)}, args.json)
