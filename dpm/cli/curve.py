"""`dpm curve`."""

import argparse
from pathlib import Path

from dpm.cli.output import print_result, print_written
from dpm.errors import UserError
from dpm.experiments.shipped import load_result, result_path
from dpm.figures import plot_learning_curves, to_png
from dpm.files import read_json, to_json, write_file
from dpm.runlog import read_log


def curve(args: argparse.Namespace) -> None:
    """`dpm curve`: K over the steps of runs, what each reached on held-out data, and K* where it is known."""
    runs = [read_run(folder) for folder in args.folders]
    units = {run["unit"] for run in runs}
    if len(units) > 1:
        raise UserError(f"these runs are in different units, {' and '.join(sorted(units))}; draw them apart")
    if args.out:
        write_file(args.out, to_png(plot_learning_curves(runs, units.pop())))
        print_written(args.out)
    if args.json:
        print(to_json({"runs": runs}))
        return
    for run in runs:
        last = {name: run[name][-1] for name in ("step", "K_bits")} if run["step"] else {}
        print_result({run["folder"]: last | {name: run[name] for name in ("K_final_bits", "K_optimum_bits")}}, False)


def read_run(folder: Path) -> dict:
    """The log of a run, the unit of its K, and, once they are there, K of the averaged weights and K*."""
    log, mend = read_log(folder / "log.jsonl"), "name the folder of a run of `dpm train`"
    config = read_json(folder / "config.json", mend)
    result = read_json(folder / "results.json", mend) if (folder / "results.json").exists() else {}
    try:
        if result and result["provenance"]["command"] != config["provenance"]["command"]:
            result = {}  # of an earlier run in this folder
        return {
            "folder": str(folder),
            "unit": config["unit"],
            "step": [record["step"] for record in log],
            "K_bits": [record["K_bits"] for record in log],
            "K_final_bits": result.get("K_bits"),
            "K_optimum_bits": result.get("K_optimum_bits", shipped_optimum(config)),
        }
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder} was not written by `dpm train` of this version ({error}); name another") from None


def shipped_optimum(config: dict) -> float | None:
    """K* as the shipped result of the same experiment, setting and number of timesteps has it; None for own data."""
    if "data" in config or not result_path(config["experiment"], config["setting"]).exists():
        return None
    result = load_result(config["experiment"], config["setting"])
    return result.get("K_optimum_bits") if result["T"] == config["T"] else None
