"""A command of nnU-Net, with RareTrainer among its trainers: python run.py nnUNetv2_train ARGUMENTS.

Run by the Python of nnU-Net's environment. nnU-Net has a variable for trainers of others, but imports every trainer of
its own before it looks there, and some of those need packages that not every environment can load.
"""

import multiprocessing
import os
import sys
from importlib.metadata import entry_points


def main() -> None:
    """Call the command's entry point; processes that it starts import this file and must not."""
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer  # the first module in which nnU-Net looks
    from rare_trainer import RareTrainer  # type: ignore[import-not-found]  # beside this file

    nnUNetTrainer.RareTrainer = RareTrainer
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit():  # on a CPU nnU-Net runs a thread for every core of the machine, whatever it may use
        multiprocessing.cpu_count = lambda: int(threads)
    sys.argv.pop(0)
    [command] = entry_points(group="console_scripts", name=sys.argv[0])
    command.load()()


if __name__ == "__main__":
    main()
