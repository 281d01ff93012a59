import json
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest


@pytest.fixture
def environment(tmp_path, phantom):
    """A folder that looks like nnU-Net's environment, whose commands answer with the truth."""
    binaries = tmp_path / "environment" / "bin"
    binaries.mkdir(parents=True)
    script = shutil.copy(Path(__file__).with_name("fake_nnunet.py"), binaries)
    (binaries / "labels").write_text(str(phantom / "labelsTr"))
    for name, words in (
        ("python", '"$@"'),
        ("nnUNetv2_plan_and_preprocess", 'nnUNetv2_plan_and_preprocess "$@"'),
        ("nnUNetv2_train", "exit 1"),  # only looked for
    ):
        (binaries / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" {words}\n')
        (binaries / name).chmod(0o755)
    return binaries.parent


@pytest.fixture
def calls(environment):
    """Names of the commands that were called so far."""

    def read():
        path = environment / "bin" / "calls"
        return [line.split()[0] for line in path.read_text().splitlines()] if path.is_file() else []

    return read


@pytest.fixture
def oblique(tmp_path):
    """A task of two channels in 4D files, thick slices, stored from left and top, and tilted."""
    root = tmp_path / "oblique"
    rng = np.random.default_rng(0)
    turned = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2, -0.1, 0.15))
    affine = turned @ np.diag([-0.8, 0.9, -2.5, 1]) + np.pad([[11.25], [-7.5], [3.0]], ((0, 1), (3, 0)))
    entries = []
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for index in range(6):
        name = f"scan_{index}.nii.gz"
        label = np.zeros((13, 15, 9), np.uint8)
        label[3:9, 4:10, 2:6], label[5:9, 5:9, 6:8] = 1, 2
        image = np.stack([100.0 * label, 50 - label], axis=-1) + rng.normal(size=(*label.shape, 2))
        for folder, array in (("imagesTr", image.astype(np.float32)), ("labelsTr", label)):
            file = nib.Nifti1Image(array, affine)
            file.set_sform(affine, code=1)
            file.set_qform(affine, code=1)
            file.to_filename(root / folder / name)
        entries.append({"image": f"imagesTr/{name}", "label": f"labelsTr/{name}"})
    description = {
        "name": "Tilted head",
        "modality": {"0": "T1", "1": "T2"},
        "labels": {"0": "nothing", "1": "one", "2": "two"},
        "training": entries,
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root
