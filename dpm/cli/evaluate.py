"""`dpm evaluate`."""

import argparse

from dpm.cli.output import print_result
from dpm.distributed import choose_device, use_device
from dpm.evaluation import evaluate_experiment
from dpm.experiments.registry import get_experiment, load_model
from dpm.provenance import provenance


def evaluate(args: argparse.Namespace) -> None:
    """`dpm evaluate`: a row of Table 1, measured."""
    experiment, _ = get_experiment(args.name, args.setting)
    device = choose_device(args.device)
    use_device(device)
    model = load_model(args.name, args.setting, args.checkpoint, device)
    result = evaluate_experiment(experiment, model, args.seed) | {"setting": args.setting}
    print_result(result | {"provenance": provenance(args.seed, device)}, args.json)
