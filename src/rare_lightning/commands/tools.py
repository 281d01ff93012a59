"""The commands that need no LightningCLI: one function each, whose arguments are the command's words."""

import argparse
from collections import Counter
from collections.abc import Callable

from jsonargparse import ArgumentParser

from rare_lightning.commands.dashboard import dashboard
from rare_lightning.commands.evaluation import compare, evaluate, nnunet
from rare_lightning.commands.inference import benchmark, export, predict
from rare_lightning.commands.models import models
from rare_lightning.data import make_phantom
from rare_lightning.data.download import download
from rare_lightning.data.geometry import format_spacing
from rare_lightning.data.integrity import check_cases
from rare_lightning.data.task import read_task
from rare_lightning.errors import few

MANY = 8
"""Spacings that are listed."""


def check_data(root: str) -> None:
    """Check every case of a task, list all problems, and count the cases of each class and each spacing.

    Cases without any foreground, and images that are there twice, are named: they can be wanted, and be mistakes.

    Args:
        root: Folder with dataset.json.

    Raises:
        UserError: If there are problems.
    """
    task = read_task(root)
    found = check_cases(task, task.cases, with_digests=True)
    print(f"{root}: {len(task.cases)} cases, no problems")
    counts = Counter(value for findings in found.values() for value in findings.values)
    for value, name in enumerate(task.classes[1:], start=1):
        print(f"  {name}: in {counts[value] or 'no'} case{'' if counts[value] == 1 else 's'}")
    if empty := [case_id for case_id, findings in found.items() if not findings.values - {0}]:
        print(f"  without any class: {few(empty)}")
    alike: dict[str, list[str]] = {}
    for case_id, findings in found.items():
        alike.setdefault(findings.digest, []).append(case_id)
    for twins in alike.values():
        if len(twins) > 1:
            print(f"  the same image: {few(twins)}, of which one may train and another test")
    spacings = Counter(format_spacing(case.geometry.canonical_spacing) for case in task.cases)
    listed = ", ".join(f"{mm} mm in {count}" for mm, count in spacings.most_common(MANY))
    others = f", and {len(spacings) - MANY} others" if len(spacings) > MANY else ""
    print(f"  spacings: {listed}{others}")


# Words that take lists, which jsonargparse would want in brackets.
LISTS = {
    "predict": {
        "--ckpt_path": "checkpoint of rare fit; several are averaged",
        "--input": "files, folders, patterns or CSV lists of scans",
    },
    "evaluate": {"--predictions": "folders of label maps, one for each level of scans"},
    "compare": {"runs": "run folder or cases.csv, as PATH or NAME=PATH"},
}

TOOLS: dict[str, Callable[..., None]] = {
    "data download": download,
    "data check": check_data,
    "phantom": make_phantom,
    "models": models,
    "predict": predict,
    "export": export,
    "benchmark": benchmark,
    "evaluate": evaluate,
    "compare": compare,
    "nnunet": nnunet,
    "dashboard": dashboard,
}


def parser_of(name: str, purpose: str) -> ArgumentParser:
    """Parser of a command's words."""
    parser = ArgumentParser(prog=f"rare {name}", description=purpose, exit_on_error=False, allow_abbrev=False)
    lists = LISTS.get(name, {})
    for word, meaning in lists.items():
        required = {"required": True} if word.startswith("--") else {"metavar": "RUN"}
        parser.add_argument(word, nargs="+", help=meaning, **required)
    parser.add_function_arguments(
        TOOLS[name],
        as_positional=name in ("data download", "data check", "phantom"),
        skip={word.lstrip("-") for word in lists},
    )
    for action in parser._actions:
        if action.option_strings and action.default is False:  # a switch does without a value
            action.nargs, action.const = argparse.OPTIONAL, True
    return parser
