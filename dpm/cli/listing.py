"""`dpm list`."""

import argparse

from dpm.experiments.registry import EXPERIMENTS
from dpm.experiments.shipped import weights_path
from dpm.files import to_json


def list_experiments(args: argparse.Namespace) -> None:
    """`dpm list`: the rows of Table 1, their settings, and whether weights are shipped."""
    rows: list[dict] = [
        {"experiment": experiment.name, "setting": setting, "unit": experiment.unit}
        | {"paper": experiment.paper, "shipped": weights_path(experiment.name, setting).exists()}
        for experiment in EXPERIMENTS.values()
        for setting in experiment.settings
    ]
    if args.json:
        print(to_json({"experiments": rows}))
        return
    print(f"{'experiment':14}{'setting':10}{'paper K':>10}{'K-L_null':>10}  {'unit':12}{'weights'}")
    for row in rows:
        print(
            f"{row['experiment']:14}{row['setting']:10}"
            f"{row['paper'].get('K', '—'):>10}{row['paper'].get('K_minus_L_null', '—'):>10}  {row['unit']:12}"
            f"{'shipped' if row['shipped'] else 'train them'}"
        )
