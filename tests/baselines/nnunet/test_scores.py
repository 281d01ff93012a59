import numpy as np
import pytest
import torch

from rare_lightning.baselines.nnunet.dataset import LevelScan
from rare_lightning.baselines.nnunet.scores import read_softmax, score_case
from rare_lightning.errors import UserError


def test_a_softmax_comes_back_in_the_order_of_the_scan(tmp_path):
    softmax = np.random.default_rng(0).random((2, 3, 4, 5), dtype=np.float32)
    np.savez_compressed(tmp_path / "a.npz", probabilities=softmax.transpose(0, 3, 2, 1))
    assert np.array_equal(read_softmax(tmp_path / "a.npz", 2, (3, 4, 5)), softmax)


@pytest.mark.parametrize("content", ["shape", "key", "pickle", "text"])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "a.npz"
    if content == "text":
        path.write_text("not a softmax")
    else:
        array = np.array([{}]) if content == "pickle" else np.zeros((2, 5, 4, 4))
        np.savez(path, **{"softmax" if content == "key" else "probabilities": array})
    with pytest.raises(UserError, match=r"a\.npz: .*run again"):
        read_softmax(path, 2, (3, 4, 5))


def test_a_shifted_answer_is_punished_in_mm_of_its_grid():
    label = torch.zeros(16, 16, 16, dtype=torch.uint8)
    label[4:10, 4:10, 4:10] = 1
    scan = LevelScan(0, (1, 1, 1), torch.zeros(1, 16, 16, 16), label, np.diag([1, 1, 1.5, 1]))
    for shift in (0, 2):
        moved = label.roll(shift, 2)
        softmax = torch.stack([1.0 - moved, 1.0 * moved])
        rows = score_case("a", [scan], lambda _, answer=softmax: (answer, "level"), {"x": [1]}, 1.0)
        assert [row.truth for row in rows] == ["level", "fine"]
        assert all(row.scores.hd95_mm == 1.5 * shift for row in rows)
