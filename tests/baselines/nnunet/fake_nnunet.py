"""Stands in for nnU-Net's commands, and answers with the truth: python fake_nnunet.py COMMAND ARGUMENTS.

Knows nothing of rare_lightning. The folder it lies in may hold ``fail``, the name of a command that is to fail, or
``lazy``, of one that is to do nothing; ``calls`` gets every call.
"""

import json
import os
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

HERE = Path(__file__).parent
RAW, PREPROCESSED, RESULTS = (Path(os.environ[f"nnUNet_{name}"]) for name in ("raw", "preprocessed", "results"))


def plan():
    [raw] = RAW.iterdir()
    assert (PREPROCESSED / raw.name / "splits_final.json").is_file()
    (PREPROCESSED / raw.name / "nnUNetPlans.json").write_text("{}")


def train():
    [dataset] = PREPROCESSED.iterdir()
    fold = RESULTS / dataset.name / "RareTrainer__nnUNetPlans__3d_fullres" / "fold_0"
    fold.mkdir(parents=True)
    (fold / "checkpoint_final.pth").touch()
    record = {"epochs": 3, "minutes": float(os.environ["RARE_MINUTES"]), "step_seconds": 0.5}
    (fold / "training.json").write_text(json.dumps({**record, "versions": {"nnunetv2": "2.8.1"}}))


def predict(arguments):
    source, target = (Path(arguments[arguments.index(flag) + 1]) for flag in ("-i", "-o"))
    target.mkdir(parents=True)
    labels = Path((HERE / "labels").read_text())
    for path in sorted(source.glob("*_0000.nii.gz")):
        case, level = path.name.removesuffix("_0000.nii.gz").split("_level_")
        truth = nib.as_closest_canonical(nib.load(labels / f"{case}.nii.gz")).get_fdata()
        scan = nib.load(path)
        stride = (1, 1, 1) if source.name == "upsampled" else (2 ** int(level),) * 3
        shape = [n * s for n, s in zip(scan.shape, stride, strict=True)]
        truth = np.pad(truth, [(0, n - m) for n, m in zip(shape, truth.shape, strict=True)], mode="edge")
        one_hot = np.stack([truth == value for value in range(3)]).astype(np.float32)
        blocks = one_hot.reshape(3, *(k for n, s in zip(scan.shape, stride, strict=True) for k in (n, s)))
        softmax = blocks.mean((2, 4, 6))
        np.savez_compressed(target / f"{case}_level_{level}.npz", probabilities=softmax.transpose(0, 3, 2, 1))


def main():
    words = [word for word in sys.argv[1:] if not word.endswith("run.py")]
    with open(HERE / "calls", "a") as file:
        file.write(" ".join(words) + "\n")
    for mark in ("fail", "lazy"):
        if (HERE / mark).is_file() and (HERE / mark).read_text() == words[0]:
            print("a long story\nRuntimeError: out of luck\n")
            sys.exit(3 if mark == "fail" else 0)
    if words[0] == "nnUNetv2_plan_and_preprocess":
        plan()
    elif words[0] == "nnUNetv2_train":
        train()
    else:
        predict(words)


if __name__ == "__main__":
    main()
