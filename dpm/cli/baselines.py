"""`dpm baselines`."""

import argparse

from dpm.cli.output import print_result, print_written
from dpm.cli.parser import PARZEN_SAMPLES
from dpm.cli.sample import load_sampler
from dpm.data.sets import load_mnist_validation
from dpm.errors import UserError
from dpm.evaluation import density_baselines, parzen_table
from dpm.experiments.registry import EXPERIMENTS, get_experiment
from dpm.files import write_json
from dpm.provenance import provenance


def baselines(args: argparse.Namespace) -> None:
    """`dpm baselines`: what Table 2 compares the model with, on the same pictures.

    Grey pictures get an MCGSM and a Gaussian; MNIST the Parzen estimate, of -n samples and of as many training digits.
    """
    experiment, _ = get_experiment(args.name, args.setting)
    grey = [name for name, other in EXPERIMENTS.items() if other.images and other.shape[0] == 1]
    if experiment.images is None or experiment.name not in grey:
        raise UserError(f"{args.name} has no grey pictures; take one of {', '.join(grey)}")
    if args.name != "mnist" and (args.n, args.T) != (PARZEN_SAMPLES, None):
        raise UserError(f"no sample of {args.name} is drawn for its baselines; leave out -n and --T")
    _, _, model, q, generator = load_sampler(args)
    images = experiment.images(generator.device)
    if args.name == "mnist":
        result = parzen_table(images, load_mnist_validation(generator.device), model, q, args.n, generator)
    else:
        result = density_baselines(images, model, generator)
    result = {"experiment": args.name} | result | {"provenance": provenance(args.seed, generator.device)}
    if args.out:
        write_json(args.out, result)
        print_written(args.out)
    print_result(result, args.json)
