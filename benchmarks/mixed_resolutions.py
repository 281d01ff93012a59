"""What training on scans of several resolutions is worth, and whether coarse ones are better brought up to level 0.

python benchmarks/mixed_resolutions.py --root Task04_Hippocampus [--config configs/hippocampus.yaml] [--seeds 0]
    [--runs RUNS] [--output docs/results/mixed-resolutions.json] [-- MORE WORDS FOR rare fit]

A quarter of the training scans stays as it is; the others become scans of levels 1, 2 and 3, a quarter each, with the
labels that such scans would have. Three trainings of as many steps are tested on the same cases at full resolution: one
sees each scan at the levels that it has, one brings all up to level 0 (``data.upsample``), and one has the quarter of
fine scans alone.
"""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np

from common import arguments, line_of_run, save, train_and_test, training_record, write_splits
from rare_lightning.data.preprocessing import read_case
from rare_lightning.data.pyramid import ToLevelGrid
from rare_lightning.data.splits import make_split
from rare_lightning.data.task import Case, read_task
from rare_lightning.evaluation.tables import markdown_table
from rare_lightning.networks.grids import pad_to_size, round_up

LEVELS = 3


def write_coarse(case: Case, level: int, root: Path) -> None:
    """A case as it would have been taken, and labelled, at a level."""
    stride = (2**level,) * 3
    subject = read_case(case)
    size = round_up(subject.spatial_shape, stride)
    for part in (subject.image, subject.label):
        part.set_data(pad_to_size(part.data, size))
    taken = ToLevelGrid(stride)(subject)
    for folder, path, part in (("imagesTr", case.images[0], taken.image), ("labelsTr", case.label, taken.label)):
        nib.save(nib.Nifti1Image(part.data[0].numpy(), part.affine), root / folder / path.name)


def write_mixed(root: Path, target: Path, levels: dict[str, int]) -> None:
    """The task at root with some cases at coarser levels; the others are linked."""
    shutil.rmtree(target, ignore_errors=True)  # of a script that was stopped here
    for folder in ("imagesTr", "labelsTr"):
        (target / folder).mkdir(parents=True)
    for case in read_task(root).cases:
        if level := levels.get(case.case_id, 0):
            write_coarse(case, level, target)
        else:
            for folder, path in (("imagesTr", case.images[0]), ("labelsTr", case.label)):
                (target / folder / path.name).symlink_to(path.resolve())
    shutil.copy(root / "dataset.json", target)


def main() -> None:
    """Train, test, print and save."""
    options = {"root": "", "config": "configs/hippocampus.yaml", "runs": "runs/mixed-resolutions"}
    args = arguments(__doc__, **options, seeds=[0], words=[])
    root, runs = Path(args.root), Path(args.runs)
    split = make_split([case.case_id for case in read_task(root).cases], seed=0, fold=0, folds=10, test_fraction=0.2)
    order = np.random.default_rng(0).permutation(split.train).tolist()
    levels = {case_id: index % (LEVELS + 1) for index, case_id in enumerate(order)}
    fine = sorted(case_id for case_id, level in levels.items() if level == 0)
    splits = runs / "splits.json"
    write_splits([split.as_dict(), {**split.as_dict(), "train": fine}], splits)
    mixed = runs / "mixed"
    if not (mixed / "dataset.json").exists():
        write_mixed(root, mixed, levels)
    repeated = ["--data.patches_per_case", str(round(len(split.train) / len(fine)))]  # for as many steps
    trainings = {
        "at the levels that scans have": ["--data.fold", "0"],
        "all brought up to level 0": ["--data.fold", "0", "--data.upsample", "true"],
        "fine scans alone": ["--data.fold", "1", *repeated],
    }
    rows = []
    for seed in args.seeds:
        for number, (name, words) in enumerate(trainings.items()):
            run = runs / f"{number}-{seed}"
            fit = ["--config", args.config, "--data.root", str(mixed), "--data.splits_file", str(splits)]
            fit += ["--data.spacing", "[1, 1, 1]", "--seed_everything", str(seed), *words, *args.words]
            train_and_test(run, fit, test_words=["--data.root", str(root)])
            rows.append({"training": name, "seed": str(seed), **line_of_run(run)})
    record = training_record(run / "checkpoints" / "last.ckpt")
    note = (
        f"{len(split.train)} training scans, a quarter each of 1, 2, 4 and 8 mm; Dice against the `fine` truth on "
        f"{len(split.test)} test cases taken at 1 mm, 95 % intervals over cases; trained at commit {record['commit']}"
    )
    save(args, "Scans of several resolutions", note, rows)
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
