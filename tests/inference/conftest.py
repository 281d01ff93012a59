"""A checkpoint that was trained for one epoch, and a scan that it can segment."""

import lightning as L
import numpy as np
import pytest
import SimpleITK as sitk

import rare_lightning
from rare_lightning import DecathlonDataModule, RAREUNet, SegmentationModule


@pytest.fixture(scope="session")
def checkpoint(phantom, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    L.seed_everything(0)
    data = DecathlonDataModule(
        str(phantom), levels=2, depth=3, spacing=[1.0, 1.0, 1.0], num_workers=0, cache_dir=str(folder / "cache")
    )
    network = RAREUNet(1, 3, features=4, depth=3, levels=2)
    module = SegmentationModule(network, ["background", "Anterior", "Posterior"])
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, log_every_n_steps=1, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, data)
    trainer.save_checkpoint(folder / "model.ckpt")
    return folder / "model.ckpt"


@pytest.fixture
def scan(phantom):
    image = sitk.ReadImage(str(phantom / "imagesTr" / "hippocampus_001.nii.gz"), sitk.sitkFloat32)
    array = sitk.GetArrayFromImage(image)[:24, :20, :16]
    made = sitk.GetImageFromArray(np.ascontiguousarray(array))
    made.SetOrigin((5.0, -7.0, 11.0))
    return made


@pytest.fixture
def segmenter(checkpoint):
    return rare_lightning.load(checkpoint)
