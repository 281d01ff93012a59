import io
import pickle

import pytest
import SimpleITK as sitk
import torch

from rare_lightning.data.scans import find_scans
from rare_lightning.inference import ScanDataset


class Border(pickle.Pickler):
    """Notes the tensors among what it pickles: torch hands them to another process through shared memory."""

    def __init__(self, file):
        super().__init__(file)
        self.tensors = 0

    def persistent_id(self, obj):
        self.tensors += isinstance(obj, torch.Tensor)


@pytest.mark.parametrize("keep_voxels", [False, True])
def test_scans_come_from_loader_processes_without_shared_memory(segmenter, scan, tmp_path, keep_voxels):
    sitk.WriteImage(scan, str(tmp_path / "scan.nii.gz"))
    case = ScanDataset(find_scans([str(tmp_path / "scan.nii.gz")]), segmenter, keep_voxels=keep_voxels)[0]
    border = Border(written := io.BytesIO())
    border.dump(case)
    assert border.tensors == 0
    arrived = pickle.loads(written.getvalue())
    assert torch.equal(arrived.prepared.image, case.prepared.image)
    assert arrived.prepared.route == case.prepared.route
    assert (segmenter.segment(arrived.prepared).labels == segmenter.segment(case.prepared).labels).all()
