import shutil

from rare_lightning.checkpoint_io import AtomicCheckpointIO


def kept(folder):
    """What a ModelCheckpoint remembers."""
    best = f"{folder}/best.ckpt"
    return {
        "dirpath": str(folder), "best_model_path": best, "kth_best_model_path": best, "last_model_path": "",
        "best_k_models": {best: 0.5},
    }  # fmt: skip


def test_of_a_run_that_was_moved_only_its_own_checkpoints_are_elsewhere(tmp_path):
    before, now, other = tmp_path / "before", tmp_path / "now", tmp_path / "other"
    io = AtomicCheckpointIO()
    io.save_checkpoint({"callbacks": {"best": kept(before), "mine": kept(other)}}, before / "last.ckpt")
    shutil.move(before, now)
    assert io.load_checkpoint(now / "last.ckpt")["callbacks"] == {"best": kept(now), "mine": kept(other)}
