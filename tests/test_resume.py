"""Runs that are interrupted, and go on."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from rare_lightning.cli import main

CONF = Path(__file__).parent / "conf"


def words(phantom, run, *more):
    # Everything that a run has a state of: what draws, a schedule, callbacks with a memory.
    return [
        "fit", "--config", str(CONF / "tiny.yaml"), "--data.root", str(phantom), "--run_dir", str(run),
        "--model.network.init_args.dropout", "0.2", "--model.scheduler", "constant", "--trainer.max_epochs", "2",
        "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor", "val/dice",
        "--trainer.callbacks.mode", "max", "--trainer.callbacks.patience", "50",
        "--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay", "0.9",
        "--trainer.enable_progress_bar", "false", "--data.patches_per_case", "3",
        "--model.level_cycle", "[[1], [0, 1]]", *more,  # an epoch has three batches
    ]  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(phantom, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(words(phantom, folder, "--data.cache_dir", str(folder.parent / "cache"))) == 0
    return folder


@pytest.fixture
def copied(uninterrupted, tmp_path):
    return shutil.copytree(uninterrupted, tmp_path / "run")


def state(run, name="last"):
    """Everything that training goes on with."""
    checkpoint = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
    names = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "epoch")
    parts = {part: checkpoint[part] for part in names}
    for group in (group for optimizer in parts["optimizer_states"] for group in optimizer["param_groups"]):
        group.pop("ns_method", None)  # a word, which cannot be compared with numbers
    parts["callbacks"] = {
        # Without paths, and what is not read back.
        name: {k: v for k, v in content.items() if not isinstance(v, str | dict) and k != "current_score"}
        for name, content in checkpoint["callbacks"].items()
        if "TrainingRecord" not in name  # of which the times differ
    }
    return parts


def test_a_run_goes_on_as_if_nothing_had_happened(phantom, uninterrupted, tmp_path):
    run = tmp_path / "run"
    assert main(words(phantom, run, "--trainer.max_epochs", "1", "--resume")) == 0  # nothing yet to go on with
    assert main(words(phantom, run, "--resume")) == 0
    torch.testing.assert_close(state(run), state(uninterrupted), rtol=0, atol=0)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    assert state(run, "previous")["epoch"] == 0


@pytest.mark.parametrize(
    "setting", [("--data.num_workers", "1"), ("--model.optimizer", "rare_lightning.optimizers.Muon")]
)
def test_loader_processes_and_other_optimizers_go_on_with_the_right_epoch(phantom, tmp_path, setting):
    for run, epochs in (("whole", ["2"]), ("parts", ["1", "2"])):
        for count in epochs:
            assert main(words(phantom, tmp_path / run, *setting, "--trainer.max_epochs", count, "--resume")) == 0
    torch.testing.assert_close(state(tmp_path / "parts"), state(tmp_path / "whole"), rtol=0, atol=0)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(phantom, copied, uninterrupted, caplog, capsys):
    last = copied / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    with caplog.at_level("INFO"):
        assert main(words(phantom, copied, "--resume")) == 0
    assert f"{last}: not a checkpoint of rare fit" in caplog.text
    assert f"Going on from {copied / 'checkpoints' / 'previous.ckpt'}" in caplog.text
    torch.testing.assert_close(state(copied), state(uninterrupted), rtol=0, atol=0)

    # The run was moved, and its best is where it is now.
    for kept in torch.load(last, weights_only=True)["callbacks"].values():
        assert "best_model_path" not in kept or Path(kept["best_model_path"]).parent == last.parent
    for name in ("last", "previous"):
        (copied / "checkpoints" / f"{name}.ckpt").write_bytes(b"")
    assert main(words(phantom, copied, "--resume")) == 1
    assert "Nothing to go on from" in capsys.readouterr().err


def test_the_best_is_known_through_a_link_to_the_run(phantom, copied, tmp_path):
    (tmp_path / "link").symlink_to(copied)
    last = copied / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    [best] = [kept for kept in checkpoint["callbacks"].values() if kept.get("best_model_score") is not None]
    best["best_model_score"] = torch.tensor(2.0)  # no epoch will be better
    best["best_k_models"] = {best["best_model_path"]: best["best_model_score"]}
    torch.save(checkpoint, last)
    before = (copied / "checkpoints" / "best.ckpt").read_bytes()
    assert main(words(phantom, tmp_path / "link", "--resume", "--trainer.max_epochs", "3")) == 0
    assert (copied / "checkpoints" / "best.ckpt").read_bytes() == before


def test_a_full_disk_ends_the_run_and_leaves_the_checkpoint_before(phantom, copied, capsys):
    before = (copied / "checkpoints" / "last.ckpt").read_bytes()
    (copied / "checkpoints" / ".last.ckpt.part").symlink_to("/dev/full")
    assert main(words(phantom, copied, "--resume", "--trainer.max_epochs", "3")) == 1
    assert "last.ckpt: cannot be written (No space left on device)" in capsys.readouterr().err
    assert (copied / "checkpoints" / "last.ckpt").read_bytes() == before
    assert not (copied / "checkpoints" / ".last.ckpt.part").is_symlink()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model.optimizer.init_args.lr", "1e-3"], "model.optimizer.init_args.lr is 0.001 and was 0.01"),
        (["--data.fold", "1"], "data.fold is 1 and was 0"),
        (["--checkpoint.monitor", "val/loss", "--checkpoint.mode", "min"], "checkpoint.mode is min and was max"),
        (["--trainer.precision", "bf16-mixed"], "trainer.precision is bf16-mixed and was "),
        (["--seed_everything", "1"], "seed_everything is 1 and was 0"),
        (["--trainer.devices", "2", "--trainer.strategy", "ddp"], "1 process(es) shared its steps and 2 would now"),
        (["--ckpt_path", "somewhere.ckpt"], "finds the checkpoint there by itself"),
    ],
)
def test_a_run_is_resumed_with_its_own_settings(phantom, copied, more, message, capsys):
    assert main(words(phantom, copied, "--resume", *more)) == 1
    assert message in capsys.readouterr().err


def test_a_planned_network_is_resumed_with_the_command_it_was_begun_with(phantom, tmp_path):
    more = ["--config", str(CONF.parents[1] / "configs" / "network" / "nnunet.yaml"), "--data.root", str(phantom)]
    more += ["--model.network.init_args.features", "2", "--data.folds", "2", "--data.num_workers", "0"]
    more += ["--trainer.accelerator", "cpu", "--trainer.limit_train_batches", "1", "--trainer.log_every_n_steps", "1"]
    more += ["--model.scheduler", "constant"]
    for epochs in ("1", "2"):
        more = [*more, "--trainer.max_epochs", epochs, "--run_dir", str(tmp_path / "run"), "--resume"]
        assert main(["fit", "--config", str(CONF / "tiny.yaml"), *more]) == 0


def test_a_run_whose_learning_rate_follows_its_length_keeps_it(phantom, tmp_path, capsys):
    more = ["--resume", "--model.scheduler", "one_cycle"]
    assert main(words(phantom, tmp_path / "run", *more)) == 0
    assert main(words(phantom, tmp_path / "run", *more, "--trainer.max_epochs", "3")) == 1
    assert "trainer.max_epochs is 3 and was 2" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config-2.yaml").exists()


def test_a_run_that_was_killed_before_it_said_what_it_is_begins_anew(phantom, tmp_path):
    (tmp_path / "run" / "logs" / "fit").mkdir(parents=True)
    assert main(words(phantom, tmp_path / "run", "--resume", "--trainer.fast_dev_run", "1")) == 0


def test_only_runs_are_resumed(phantom, tmp_path, capsys):
    (tmp_path / "notes.txt").touch()
    assert main(words(phantom, tmp_path, "--resume")) == 1
    assert "not the folder of a run" in capsys.readouterr().err


def test_resuming_needs_a_run_and_a_training(phantom, copied, capsys):
    checkpoint = str(copied / "checkpoints" / "best.ckpt")
    assert main(["test", "--ckpt_path", checkpoint, "--resume"]) == 1
    assert "leave it out of rare test" in capsys.readouterr().err
    assert main(["fit", "--config", str(CONF / "tiny.yaml"), "--data.root", str(phantom), "--resume"]) == 1
    assert "--resume needs --run_dir" in capsys.readouterr().err


def test_settings_given_beside_a_checkpoint_hold_but_those_of_the_split(phantom, copied, tmp_path, caplog):
    more = ["--ckpt_path", str(copied / "checkpoints" / "last.ckpt"), "--trainer.max_epochs", "3", "--data.fold", "1"]
    more += ["--model.optimizer.init_args.lr", "1e-3", "--model.optimizer.init_args.weight_decay", "0.5"]
    with caplog.at_level("INFO"):
        assert main(words(phantom, tmp_path / "new", *more)) == 0
    assert "model.optimizer.init_args.lr is 0.001 and was 0.01; the given one holds" in caplog.text
    assert "data.fold is 1 and was 0; the checkpoint's holds" in caplog.text
    assert "trainer.max_epochs is 3 and was 2" not in caplog.text  # with a constant rate it is the same run, longer
    [group] = state(tmp_path / "new")["optimizer_states"][0]["param_groups"]
    assert (group["lr"], group["weight_decay"]) == (pytest.approx(1e-3), 0.5)
    splits = [torch.load(path / "checkpoints" / "last.ckpt", weights_only=True) for path in (copied, tmp_path / "new")]
    assert splits[0]["DecathlonDataModule"]["split"] == splits[1]["DecathlonDataModule"]["split"]
    written = [json.loads((path / "splits.json").read_text()) for path in (copied, tmp_path / "new")]
    assert written[0] == written[1]


@pytest.mark.parametrize("name", ["best", "last"])
def test_a_run_that_is_over_is_not_gone_on_with(phantom, copied, tmp_path, name, capsys):
    checkpoint = copied / "checkpoints" / f"{name}.ckpt"
    epochs = torch.load(checkpoint, weights_only=True)["epoch"] + 1
    more = ["--ckpt_path", str(checkpoint), "--trainer.max_epochs", str(epochs)]
    assert main(words(phantom, tmp_path / "next", *more)) == 1
    assert f"has trained {epochs} epochs, and trainer.max_epochs is {epochs}: give more" in capsys.readouterr().err
    assert not (tmp_path / "next").exists()


def test_nor_is_one_that_has_trained_its_steps(phantom, copied, tmp_path, capsys):
    steps = torch.load(copied / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    more = ["--ckpt_path", str(copied / "checkpoints" / "last.ckpt"), "--trainer.max_steps", str(steps)]
    assert main(words(phantom, tmp_path / "next", *more, "--trainer.max_epochs", "9")) == 1
    assert f"has trained {steps} steps, and trainer.max_steps is {steps}: give more" in capsys.readouterr().err
    assert not (tmp_path / "next").exists()


def test_a_run_goes_on_from_its_best_checkpoint_too(phantom, copied, tmp_path):
    """Which lies within an epoch, after its last step."""
    more = ["--ckpt_path", str(copied / "checkpoints" / "best.ckpt"), "--trainer.max_epochs", "3"]
    assert main(words(phantom, tmp_path / "new", *more)) == 0
    assert state(tmp_path / "new")["epoch"] == 2


def test_an_epoch_of_more_steps_goes_on_at_its_place_of_the_schedule(phantom, tmp_path, caplog):
    more, schedules = ["--model.scheduler", "cosine", "--model.level_cycle", "null"], []
    for epochs, patches in (("1", "2"), ("2", "6")):
        run = tmp_path / epochs
        assert main(words(phantom, run, *more, "--trainer.max_epochs", epochs, "--data.patches_per_case", patches)) == 0
        schedules += state(run)["lr_schedulers"]
        more += ["--ckpt_path", str(run / "checkpoints" / "last.ckpt")]
    first, second = ((schedule["last_epoch"], schedule["epoch_steps"]) for schedule in schedules)
    assert first[0] == first[1] < second[1]
    assert second[0] == 2 * second[1]
    assert "trainer.max_epochs is 2 and was 1; the given one holds" in caplog.text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model.network.init_args.features", "4"], "the checkpoint's network is another"),
        (["--model.optimizer", "torch.optim.SGD"], "with which its state cannot go on"),
    ],
)
def test_what_a_checkpoint_cannot_go_on_with_is_refused(phantom, copied, tmp_path, more, message, capsys):
    more = ["--ckpt_path", str(copied / "checkpoints" / "last.ckpt"), "--trainer.max_epochs", "3", *more]
    assert main(words(phantom, tmp_path / "new", *more)) == 1
    assert message in capsys.readouterr().err


def train(arguments, log):
    """In a process of its own, which is to be killed; on a slow disk, so that this hits the writing of checkpoints."""
    fsync = os.fsync
    os.fsync = lambda file: (time.sleep(0.1), fsync(file))
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os._exit(main(arguments))


@pytest.mark.slow
def test_killed_at_any_moment_a_run_ends_with_the_same_bits(phantom, tmp_path):
    """At least 24 kills, 4 of them while a checkpoint is written; see docs/reliability.md."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rare_lightning.cli", "rare_lightning.module"])
    draw = random.Random(0)

    def start(run):
        # The first and third epoch end with a checkpoint and no validation.
        more = ["--trainer.max_epochs", "4", "--trainer.check_val_every_n_epoch", "2", "--resume"]
        process = context.Process(target=train, args=(words(phantom, run, *more), tmp_path / f"{run.name}.log"))
        process.start()
        return process

    def finish(process, run):
        process.join(120)
        assert process.exitcode == 0, (tmp_path / f"{run.name}.log").read_text()

    finish(start(tmp_path / "first"), tmp_path / "first")  # with which the imports begin
    began = time.monotonic()
    finish(start(tmp_path / "whole"), tmp_path / "whole")
    duration = time.monotonic() - began
    expected = state(tmp_path / "whole")
    kills = {"anywhere": 0, "while a checkpoint is written": 0}
    runs = 0
    while kills["anywhere"] < 20 or kills["while a checkpoint is written"] < 4:
        run = tmp_path / f"killed{runs}"
        runs += 1
        for _ in range(8):
            process = start(run)
            until = time.monotonic() + draw.uniform(0, duration)
            kind = "anywhere"
            while process.is_alive() and time.monotonic() < until:
                if kills["while a checkpoint is written"] < 4 and any(run.glob("checkpoints/.*.part")):
                    kind = "while a checkpoint is written"
                    break
                time.sleep(0.0005)
            if not process.is_alive():
                break
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills[kind] += 1
        finish(start(run), run)
        torch.testing.assert_close(state(run), expected, rtol=0, atol=0)
    print(f"{kills} kills in {runs} runs")
