"""Runs of two processes, on CPUs and with gloo."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch.plugins import TorchSyncBatchNorm

from rare_lightning import RAREUNet

ROOT = Path(__file__).parents[1]
CONF = Path(__file__).parent / "conf"
RARE = [sys.executable, "-m", "rare_lightning.cli"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}  # sums in one order, whoever launches
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]

pytestmark = pytest.mark.slow


def fit(phantom, run, *more):
    return [
        "fit", "--config", str(CONF / "tiny.yaml"), "--data.root", str(phantom), "--run_dir", str(run),
        "--data.batch_size", "1", "--data.patches_per_case", "3", "--trainer.enable_progress_bar", "false", *more,
    ]  # fmt: skip


def execute(command, **environment):
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=ROOT, env={**ENVIRONMENT, **environment}
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def assert_equal_weights(run, other):
    torch.testing.assert_close(dict(weights(run)), dict(weights(other)), rtol=0, atol=0)


@pytest.fixture(scope="module")
def trained(phantom, tmp_path_factory):
    """A run of two processes, with three test cases and one for validation."""
    run = tmp_path_factory.mktemp("runs") / "run"
    ran = execute([*RARE, *fit(phantom, run, *TWO, "--data.test_fraction", "0.5", "--data.folds", "3")])
    assert ran.stdout.count("Run folder") == 1
    return run


def test_two_processes_score_like_one(trained, tmp_path):
    cases, validations = [], []
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        words = ["--ckpt_path", str(trained / "checkpoints" / "best.ckpt"), "--run_dir", str(folder)]
        words += [*TWO, "--trainer.devices", str(devices)] if devices == 2 else []
        for command in ("test", "validate"):
            execute([*RARE, command, *words])
        cases.append((folder / "test" / "cases.csv").read_bytes())
        with open(folder / "logs" / "validate" / "metrics.csv", newline="") as file:
            [row] = csv.DictReader(file)
        validations.append({name: float(value) for name, value in row.items()})
    assert cases[0] == cases[1]
    assert cases[0].count(b"\n") == 1 + 3 * 2 * 2 * 2  # cases, levels, truths, classes
    assert validations[0] == pytest.approx(validations[1], rel=1e-6, nan_ok=True)


def test_batches_that_leave_out_levels_train_in_two_processes(phantom, tmp_path):
    execute([*RARE, *fit(phantom, tmp_path / "run", *TWO, "--model.level_cycle", "[[1], [0, 1]]")])
    assert all(weight.isfinite().all() for weight in weights(tmp_path / "run").values())


def test_scans_of_several_resolutions_train_and_score_in_two_processes(mixed, tmp_path):
    """Whose processes have batches of other levels than each other."""
    split = ["--data.splits_file", str(mixed / "splits.json"), "--data.spacing", "[1, 1, 1]"]
    execute([*RARE, *fit(mixed, tmp_path / "run", *TWO, *split)])
    assert all(weight.isfinite().all() for weight in weights(tmp_path / "run").values())
    checkpoint, rows = str(tmp_path / "run" / "checkpoints" / "best.ckpt"), []
    for devices in (1, 2):
        words = ["--ckpt_path", checkpoint, "--run_dir", str(tmp_path / str(devices))]
        execute([*RARE, "validate", *words, *(TWO if devices == 2 else [])])
        with open(tmp_path / str(devices) / "logs" / "validate" / "metrics.csv", newline="") as file:
            rows += [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert rows[0] == pytest.approx(rows[1], rel=1e-6, nan_ok=True)
    assert {"val/dice/level_0", "val/dice/level_1", "val/level_0/loss"} <= rows[0].keys()


def test_torchrun_trains_the_same(trained, phantom, tmp_path):
    words = fit(phantom, tmp_path / "run", *TWO, "--data.test_fraction", "0.5", "--data.folds", "3")
    execute(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "rare_lightning.cli", *words]
    )
    assert_equal_weights(tmp_path / "run", trained)


@pytest.fixture
def nodes():
    """Two network namespaces, joined by a cable: as many machines, for a run."""
    commands = [
        "netns add node0",
        "netns add node1",
        "link add veth0 netns node0 type veth peer name veth1 netns node1",
    ]
    for node in (0, 1):
        commands += [f"-n node{node} addr add 10.9.0.{node + 1}/24 dev veth{node}"]
        commands += [f"-n node{node} link set {device} up" for device in ("lo", f"veth{node}")]
    if shutil.which("ip") is None:
        pytest.skip("there is no ip to make network namespaces with")
    try:
        for words in commands:
            subprocess.run(["ip", *words.split()], check=True, capture_output=True)
        yield ["node0", "node1"]
    except subprocess.CalledProcessError:
        pytest.skip("network namespaces cannot be made here")
    finally:
        for node in ("node0", "node1"):
            subprocess.run(["ip", "netns", "delete", node], check=False, capture_output=True)


def test_two_nodes_train_the_same(trained, phantom, tmp_path, nodes):
    words = fit(phantom, tmp_path / "run", *TWO, "--data.test_fraction", "0.5", "--data.folds", "3")
    words += ["--trainer.devices", "1", "--trainer.num_nodes", "2"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    launch += ["--master-addr", "10.9.0.1", "--master-port", "29511"]
    processes = [
        subprocess.Popen(
            ["ip", "netns", "exec", node, *launch, "--node-rank", str(rank), "-m", "rare_lightning.cli", *words],
            cwd=ROOT, env={**ENVIRONMENT, "GLOO_SOCKET_IFNAME": f"veth{rank}"},
        )
        for rank, node in enumerate(nodes)
    ]  # fmt: skip
    assert [process.wait(300) for process in processes] == [0, 0]
    assert_equal_weights(tmp_path / "run", trained)


def test_the_trainer_can_synchronise_batch_norm():
    """By Trainer(sync_batchnorm=True), which itself works on GPUs alone."""
    network = TorchSyncBatchNorm().apply(RAREUNet(1, 2, features=2, normalization="batch"))
    kinds = {type(module) for module in network.modules() if "Norm" in type(module).__name__}
    assert kinds == {torch.nn.SyncBatchNorm}


@pytest.mark.parametrize("victim", ["first", "second"])
def test_a_process_that_dies_takes_the_others_with_it(phantom, tmp_path, victim):
    command = [*RARE, *fit(phantom, tmp_path / "run", *TWO, "--trainer.max_epochs", "1000")]
    with open(tmp_path / "log", "w") as log, subprocess.Popen(command, stdout=log, stderr=log) as first:
        wait_for(tmp_path / "run" / "checkpoints" / "last.ckpt")
        (second,) = map(int, Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()[:1])
        os.kill(first.pid if victim == "first" else second, signal.SIGKILL)
        first.wait(60)
        assert first.returncode != 0
    until = time.monotonic() + 60
    while Path(f"/proc/{second}").exists() and "zombie" not in Path(f"/proc/{second}/status").read_text():
        assert time.monotonic() < until
        time.sleep(0.1)
    printed = (tmp_path / "log").read_text()
    assert printed.count("rare: error: ") == 1
    assert "Traceback" not in printed
    assert "lost another one" in printed


def wait_for(path):
    until = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.05)


SRUN = """#!/usr/bin/env bash
shift  # --kill-on-bad-exit
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NODEID=0 setsid "$@" & echo $! >> "$PIDS"
done
wait
"""

SCONTROL = """#!/usr/bin/env bash
echo "$@" > "$REQUEUED"
kill -9 $(cat "$PIDS")
"""


def test_a_cluster_job_requeues_itself_and_goes_on(phantom, tmp_path):
    """With commands of SLURM's names in its place, that start the processes and end them."""
    for name, script in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}", "PIDS": str(tmp_path / "pids"),
        "REQUEUED": str(tmp_path / "requeued"), "SLURM_JOB_ID": "17", "SLURM_NNODES": "1", "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2", "SLURM_CPUS_PER_TASK": "1", "SLURM_JOB_NAME": "rare",
        "SLURM_NODELIST": "localhost",
    }  # fmt: skip

    def job(run):
        words = fit(phantom, run, "--trainer.accelerator", "cpu", "--trainer.precision", "32-true")[3:]
        more = ["--trainer.max_epochs", "12", "--data.num_workers", "0", "--trainer.sync_batchnorm", "false"]
        return ["bash", str(ROOT / "configs" / "trainer" / "slurm.sbatch"), str(CONF / "tiny.yaml"), *words, *more]

    execute(job(tmp_path / "whole"), **environment)
    (tmp_path / "pids").unlink()
    with open(tmp_path / "log", "w") as log:
        first = subprocess.Popen(
            job(tmp_path / "run"), stdout=log, stderr=log, cwd=ROOT, env={**ENVIRONMENT, **environment}
        )
        wait_for(tmp_path / "run" / "checkpoints" / "last.ckpt")
        first.send_signal(signal.SIGUSR1)
        first.wait(60)
    assert (tmp_path / "requeued").read_text() == "requeue 17\n"
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] < 11
    execute(job(tmp_path / "run"), **environment)
    assert_equal_weights(tmp_path / "run", tmp_path / "whole")
