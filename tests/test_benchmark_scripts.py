import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "comparison.py"
CONFIG = Path(__file__).parent / "conf" / "tiny.yaml"


@pytest.mark.slow
def test_all_methods_are_trained_and_compared_and_what_is_done_is_skipped(phantom, tmp_path):
    output = tmp_path / "comparison"
    words = ["--root", str(phantom), "--config", str(CONFIG), "--minutes", "0.02", "--output", str(output)]
    words += ["--nnunet_environment", str(tmp_path / "none"), "--", "--model.network.init_args.features", "2"]

    def run():
        ran = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=600)
        assert ran.returncode == 0, ran.stderr[-2000:]
        return ran.stdout

    first = run()
    assert "Without nnU-Net v2" in first
    for folder, protocol in ((output, "majority"), (output / "corner", "corner")):
        record = json.loads((folder / "comparison" / "comparison.json").read_text())
        assert next(iter(record["methods"])) == record["reference"] == "rare-unet"
        assert len(record["methods"]) == 5
        assert {facts["protocol"]["label_downsampling"] for facts in record["methods"].values()} == {protocol}
    trained = (output / "unet" / "checkpoints" / "last.ckpt").stat().st_mtime
    assert "rare fit" not in run()
    assert (output / "unet" / "checkpoints" / "last.ckpt").stat().st_mtime == trained

    # Stopped after its training: tested again, and not trained again.
    (output / "unet" / "test" / "summary.json").unlink()
    assert "rare test" in run()
    assert (output / "unet" / "test" / "summary.json").exists()
