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

from common import arguments, save, shuffled_split, train_and_test_each, write_splits
from rare_lightning.data.preprocessing import read_case
from rare_lightning.data.pyramid import ToLevelGrid
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
    split, order = shuffled_split(root, folds=10)
    levels = {case_id: index % (LEVELS + 1) for index, case_id in enumerate(order)}
    fine = sorted(case_id for case_id, level in levels.items() if level == 0)
    splits = runs / "splits.json"
    write_splits([split.as_dict(), {**split.as_dict(), "train": fine}], splits)
    mixed = runs / "mixed"
    if not (mixed / "dataset.json").exists():
        write_mixed(root, mixed, levels)
    repeated = ["--data.patches_per_case", str(round(len(split.train) / len(fine)))]  # for as many steps
    alike = ["--config", args.config, "--data.root", str(mixed), "--data.splits_file", str(splits)]
    alike += ["--data.spacing", "[1, 1, 1]"]
    trainings = {
        "at the levels that scans have": (runs / "0", [*alike, "--data.fold", "0"]),
        "all brought up to level 0": (runs / "1", [*alike, "--data.fold", "0", "--data.upsample", "true"]),
        "fine scans alone": (runs / "2", [*alike, "--data.fold", "1", *repeated]),
    }
    rows, commit = train_and_test_each("training", trainings, args.seeds, args.words, ["--data.root", str(root)])
    note = (
        f"{len(split.train)} training scans, a quarter each of 1, 2, 4 and 8 mm; Dice against the `fine` truth on "
        f"{len(split.test)} test cases taken at 1 mm, 95 % intervals over cases; trained at commit {commit}"
    )
    save(args, "Scans of several resolutions", note, rows)
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
