"""The files that nnU-Net's environment loads, with nnU-Net's parts that they touch."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import rare_lightning.baselines.nnunet as package

EXTENSION = Path(package.__file__).parent / "extension"
EPOCH_SECONDS = 30.0


class Logger:
    def __init__(self):
        self.values = {"epoch_start_timestamps": [], "epoch_end_timestamps": []}

    def get_value(self, key, step):
        return self.values[key] if step is None else self.values[key][step]


class nnUNetTrainer:
    """The parts of nnU-Net's class that are built upon, as in its release 2.8.1, on a clock of its own."""

    num_epochs, current_epoch = 1000, 0
    network = torch.nn.Linear(2, 2, bias=False)
    configuration_manager = SimpleNamespace(
        patch_size=(40, 56, 40), batch_size=9, network_arch_init_kwargs={"features_per_stage": [32, 64]}
    )

    def __init__(self, plans, configuration, fold, dataset_json, device):
        self.output_folder = plans["folder"]
        self.logger, self.lr_scheduler = Logger(), SimpleNamespace(max_steps=self.num_epochs)
        self.rates, self.now = [], 0.0
        self.drawn = torch.rand(()).item()

    def run_training(self):
        for _ in range(self.current_epoch, self.num_epochs):
            self.logger.values["epoch_start_timestamps"].append(self.now)
            self.on_train_epoch_start()
            for _ in range(self.num_iterations_per_epoch):
                self.train_step({})
            self.now += EPOCH_SECONDS
            self.on_epoch_end()
        self.on_train_end()

    def on_train_epoch_start(self):
        self.rates.append((1 - self.current_epoch / self.lr_scheduler.max_steps) ** 0.9)

    def train_step(self, batch):
        return {"loss": 0.0}

    def on_epoch_end(self):
        self.logger.values["epoch_end_timestamps"].append(self.now)
        self.current_epoch += 1

    def on_train_end(self):
        self.ended = True


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXTENSION / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def nnunetv2(monkeypatch):
    modules = {
        name: ModuleType(name) for name in ("nnunetv2.utilities.find_objects", "nnunetv2.training.nnUNetTrainer")
    }
    modules["nnunetv2.utilities.find_objects"].recursive_find_trainer_class_by_name = {
        "nnUNetTrainer": nnUNetTrainer
    }.get
    modules["nnunetv2.training.nnUNetTrainer"].nnUNetTrainer = ModuleType("nnUNetTrainer")
    for name in ("nnunetv2", "nnunetv2.utilities", "nnunetv2.training"):
        modules[name] = ModuleType(name)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.8.1")
    return modules


def trained(folder, monkeypatch, **variables):
    for name, value in variables.items():
        monkeypatch.setenv(f"RARE_{name}", value)
    trainer = load("rare_trainer").RareTrainer({"folder": str(folder)}, "3d_fullres", 0, {}, torch.device("cpu"))
    trainer.run_training()
    return trainer


def test_the_schedule_ends_with_the_budget(nnunetv2, monkeypatch, tmp_path):
    trainer = trained(tmp_path, monkeypatch, MINUTES="5", ITERATIONS="10")
    assert trainer.current_epoch == 10
    assert trainer.ended
    assert trainer.rates == pytest.approx([(1 - epoch / 10) ** 0.9 for epoch in range(10)])
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["epochs"] == 10
    assert record["minutes"] == 5
    assert (record["iterations_per_epoch"], record["validation_iterations_per_epoch"]) == (10, 2)
    assert record["step_seconds"] >= 0
    assert record["patch_size"] == [40, 56, 40]
    assert record["parameters"] == 4
    assert record["versions"]["nnunetv2"] == "2.8.1"


def test_a_budget_that_no_epoch_fits_gets_one(nnunetv2, monkeypatch, tmp_path):
    assert trained(tmp_path, monkeypatch, MINUTES="0.1").current_epoch == 1


def test_an_interrupted_run_goes_on_with_the_time_that_is_left(nnunetv2, monkeypatch, tmp_path):
    monkeypatch.setenv("RARE_MINUTES", "5")
    trainer = load("rare_trainer").RareTrainer({"folder": str(tmp_path)}, "3d_fullres", 0, {}, torch.device("cpu"))
    for which, shift in (("start", 0), ("end", 1)):  # as nnU-Net restores them
        trainer.logger.values[f"epoch_{which}_timestamps"] = [EPOCH_SECONDS * (i + shift) for i in range(4)]
    trainer.current_epoch = 4
    trainer.run_training()
    assert trainer.current_epoch == 10
    assert trainer.rates[0] == pytest.approx(0.6**0.9)


def test_without_a_budget_nnunet_decides(nnunetv2, monkeypatch, tmp_path):
    monkeypatch.setattr(nnUNetTrainer, "num_epochs", 3)
    trainer = trained(tmp_path, monkeypatch, MINUTES="", ITERATIONS="", SEED="1")
    assert trainer.current_epoch == 3
    assert trainer.num_iterations_per_epoch == 250
    assert trainer.perform_actual_validation() is None
    assert trained(tmp_path, monkeypatch, SEED="1").drawn == trainer.drawn
    assert trained(tmp_path, monkeypatch, SEED="2").drawn != trainer.drawn


def test_a_command_finds_the_trainer_and_keeps_to_its_threads(nnunetv2, monkeypatch):
    run, called = load("run"), []

    def command():
        called.append((list(sys.argv), run.multiprocessing.cpu_count()))

    monkeypatch.setattr(run, "entry_points", lambda group, name: [SimpleNamespace(load=lambda: command)])
    monkeypatch.setattr(run.multiprocessing, "cpu_count", run.multiprocessing.cpu_count)  # put back afterwards
    monkeypatch.setattr(sys, "argv", ["run.py", "nnUNetv2_train", "1"])
    monkeypatch.syspath_prepend(str(EXTENSION))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    run.main()
    sys.modules.pop("rare_trainer")
    assert called == [(["nnUNetv2_train", "1"], 3)]
    assert nnunetv2["nnunetv2.training.nnUNetTrainer"].nnUNetTrainer.RareTrainer.__name__ == "RareTrainer"
