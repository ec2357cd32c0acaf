"""Measure commits for the history that the repository keeps, asv_bench/results.

asv builds each commit in a virtual environment, here with the libraries to compare with and those
whose arrays are measured.
"""

import argparse
import os
import pathlib
import platform
import sys
import tempfile

from asv.commands.run import Run
from asv.config import Config
from asv.console import log
from asv.machine import Machine, MachineCollection
from asv.util import UserError, load_json

LIBRARIES = ("torch", "scikit-learn", "dask", "distributed")

SAME = ("arch", "cpu", "num_cpu")


def facts(name, results):
    """What is known of a machine: its name in the results, and nothing that identifies it."""
    found = {**Machine.get_defaults(), "machine": name, "os": platform.system()}
    known = pathlib.Path(results, name, "machine.json")
    if not known.exists():
        return found
    kept = load_json(str(known), Machine.api_version)
    if any(kept[key] != found[key] for key in SAME):
        expected, got = (", ".join(f"{d[key]}" for key in SAME) for d in (kept, found))
        sys.exit(f"machine {name} is another: expected {expected}, got {got}; choose a new name")
    return kept


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "machine", help="its name, say after its CPU: one of asv_bench/results/ or a new one"
    )
    parser.add_argument("commits", nargs="?", default="HEAD^!", help="default: %(default)s")
    arguments = parser.parse_args()
    os.chdir(pathlib.Path(__file__).parent)
    config = Config.load()
    config.matrix["req"].update({name: [] for name in LIBRARIES})
    log.enable()
    with tempfile.TemporaryDirectory() as folder:
        # Not ~/.asv-machine.json, by which asv would name this machine in other runs too.
        machines = os.path.join(folder, "machines.json")
        try:
            known = facts(arguments.machine, config.results_dir)
            MachineCollection.save(arguments.machine, known, machines)
            status = Run.run(
                config,
                range_spec=arguments.commits,
                machine=arguments.machine,
                _machine_file=machines,
            )
        except UserError as error:
            sys.exit(f"asv: {error}")
    sys.exit(status)


if __name__ == "__main__":
    main()
