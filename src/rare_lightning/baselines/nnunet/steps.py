"""nnU-Net's commands, each run once: logged, skipped when it is done, and reported in one line when it fails."""

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rare_lightning.baselines.nnunet.dataset import DATASET_ID, FEEDS, Feed
from rare_lightning.errors import UserError
from rare_lightning.files import write_json
from rare_lightning.provenance import describe_process

Device = Literal["cpu", "cuda", "mps"]
RUN = ("python", str(Path(__file__).parent / "extension" / "run.py"))
"""In front of commands that need a trainer."""

TRAINER = "RareTrainer"
PLANS = "nnUNetPlans"
"""nnU-Net's own default plans; the width of the network is among what they decide."""

ELSEWHERE = ("device", "num_workers")
"""Settings that change nothing but where and how fast a step runs."""


@dataclass(frozen=True)
class TrainingSettings:
    """What is asked of nnU-Net.

    Attributes:
        trainer: Trainer class of nnU-Net.
        minutes: Time to train; as many epochs as the trainer says if None.
        iterations: Iterations of an epoch; nnU-Net's 250 if None.
        seed: Of the weights.
        configuration: As in nnU-Net's plans.
        device: Where it runs.
        mirror: Average predictions over mirror images, as nnU-Net does by default.
        num_workers: Processes beside nnU-Net's own for augmentation, preprocessing and writing.
    """

    trainer: str = "nnUNetTrainer"
    minutes: float | None = None
    iterations: int | None = None
    seed: int = 0
    configuration: str = "3d_fullres"
    device: Device = "cpu"
    mirror: bool = True
    num_workers: int = 1

    def __post_init__(self) -> None:
        for name in ("minutes", "iterations", "num_workers"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"--{name} ({value:g}) must be > 0")


@dataclass(frozen=True)
class Folders:
    """Where everything of a comparison lies.

    Attributes:
        root: The output folder.
        dataset: ``DatasetNNN_NAME``.
        settings: Name the folders of a training.
    """

    root: Path
    dataset: str
    settings: TrainingSettings

    @property
    def raw(self) -> Path:
        """Training and validation cases for nnU-Net."""
        return self.root / "nnUNet_raw" / self.dataset

    @property
    def preprocessed(self) -> Path:
        """What nnU-Net makes of them, and the split."""
        return self.root / "nnUNet_preprocessed" / self.dataset

    @property
    def fold(self) -> Path:
        """The training."""
        trained = f"{TRAINER}__{PLANS}__{self.settings.configuration}"
        return self.root / "nnUNet_results" / self.dataset / trained / "fold_0"

    @property
    def scans(self) -> Path:
        """Test scans, in a folder per feed."""
        return self.root / "scans"

    def answers(self, feed: Feed) -> Path:
        """nnU-Net's answers to them."""
        return self.root / "predictions" / feed

    def log(self, step: str) -> Path:
        """What a step printed."""
        return self.root / "logs" / f"{step}.log"

    def record(self, step: str) -> Path:
        """How a step was run; written when it is done."""
        return self.root / "logs" / f"{step}.json"


@dataclass(frozen=True)
class Step:
    """A command of nnU-Net.

    Attributes:
        name: Of its log and record.
        command: Program and arguments.
        products: Files that it leaves.
        leftovers: Removed before it runs.
    """

    name: str
    command: tuple[str, ...]
    products: tuple[Path, ...]
    leftovers: tuple[Path, ...] = ()


def steps_of(folders: Folders, scans: Mapping[Feed, Sequence[str]]) -> list[Step]:
    """Planning and preprocessing, training, and a prediction per feed.

    Args:
        folders: Of the comparison.
        scans: Feed -> names of its test scans.
    """
    settings = folders.settings
    dataset, configuration, workers = str(DATASET_ID), settings.configuration, str(settings.num_workers)
    in_processes = ("-np", workers, "-npfp", workers)
    started = (folders.fold / "checkpoint_latest.pth").is_file()
    trained = ["-tr", TRAINER, "-device", settings.device]
    steps = [
        Step(
            "preprocess",
            # --clean: what an interrupted run left would be taken for a whole.
            (*["nnUNetv2_plan_and_preprocess", "--clean", "-d"], dataset, "-c", configuration, *in_processes),
            (folders.preprocessed / f"{PLANS}.json",),
        ),
        Step(
            "train",
            (*RUN, "nnUNetv2_train", dataset, configuration, "0", *trained, *(["--c"] if started else [])),
            (folders.fold / "checkpoint_final.pth", folders.fold / "training.json"),
            () if started else (folders.fold,),
        ),
    ]
    for feed in FEEDS:
        source, target = folders.scans / feed, folders.answers(feed)
        words = ["-i", str(source), "-o", str(target), "-d", dataset, "-c", configuration, "-f", "0", *trained]
        words += ["--save_probabilities", "--disable_progress_bar", "-npp", workers, "-nps", workers]
        words += [] if settings.mirror else ["--disable_tta"]
        products = tuple(target / f"{name}.npz" for name in scans[feed])
        steps.append(Step(f"predict_{feed}", (*RUN, "nnUNetv2_predict", *words), products, (target,)))
    return [step for step in steps if step.products]


def variables_of(folders: Folders) -> dict[str, str]:
    """Environment variables that nnU-Net and its trainer read."""
    settings = folders.settings
    return {
        **{name: str(folders.root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")},
        "nnUNet_n_proc_DA": str(settings.num_workers),
        "nnUNet_def_n_proc": str(settings.num_workers),
        "RARE_TRAINER": settings.trainer,
        "RARE_MINUTES": "" if settings.minutes is None else str(settings.minutes),
        "RARE_ITERATIONS": "" if settings.iterations is None else str(settings.iterations),
        "RARE_SEED": str(settings.seed),
    }


def refuse_missing_environment(environment: Path) -> None:
    """Look for nnU-Net before anything is written.

    Raises:
        UserError: If it is not there.
    """
    if _program("nnUNetv2_train", environment) is None:
        raise UserError(
            f"{environment}: nnU-Net is not installed there. Run: make nnunet-env, or: python3.11 -m venv "
            f"{environment} && {environment}/bin/pip install --requirement requirements-nnunet.lock"
        )


def describe_steps(steps: Sequence[Step], variables: dict[str, str], environment: Path) -> str:
    """Lines for a shell that do the same."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    for step in steps:
        lines.append(shlex.join([str(environment / "bin" / step.command[0]), *step.command[1:]]))
    return "\n".join(lines)


def run_step(step: Step, folders: Folders, environment: Path) -> None:
    """Run a step, unless it is done.

    Raises:
        UserError: If it fails, or does not leave what it should; the message names its log.
    """
    record, log = folders.record(step.name), folders.log(step.name)
    if record.is_file():
        return
    for path in step.leftovers:
        shutil.rmtree(path, ignore_errors=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"nnU-Net: {step.name} (log: {log})", flush=True)
    program = str(_program(step.command[0], environment) or step.command[0])
    try:
        with log.open("w", encoding="utf-8") as output:
            code = subprocess.run(
                [program, *step.command[1:]],
                env={**os.environ, **variables_of(folders)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            ).returncode
    except OSError as error:
        raise UserError(f"{program}: cannot be run ({error.strerror})") from error
    missing = [path for path in step.products if not path.is_file()]
    if code or missing:
        what = f"failed with exit code {code}" if code else f"left no {missing[0]}"
        raise UserError(f"nnU-Net's step {step.name} {what}. Its last line: {_last_line(log)!r}. All of it: {log}")
    how = {**describe_process(), **{name: getattr(folders.settings, name) for name in ELSEWHERE}}
    write_json(how, record)


def training_record(folders: Folders) -> dict[str, Any]:
    """How nnU-Net was trained: as in the checkpoints of ``rare fit``, what was asked of it, and what it chose."""
    process = json.loads(folders.record("train").read_text(encoding="utf-8"))
    measured = json.loads((folders.fold / "training.json").read_text(encoding="utf-8"))
    versions = {**process["versions"], **measured.pop("versions", {})}
    asked = asdict(folders.settings)
    ran = {name: process[name] for name in ELSEWHERE}  # which may differ from one start to the next
    return {**process, **asked, **ran, "versions": versions, **measured}


def _program(name: str, environment: Path) -> str | None:
    return shutil.which(name, path=os.pathsep.join(str(environment / folder) for folder in ("bin", "Scripts")))


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")[:300]
