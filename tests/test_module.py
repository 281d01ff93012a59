from functools import partial

import lightning as L
import pytest
import torch
from torch.nn.functional import interpolate  # nearest by default

from rare_lightning import DecathlonDataModule, MultiResolutionLoss, NNUNet, RAREUNet, SegmentationModule, UNet
from rare_lightning.data import pyramid
from rare_lightning.data.pyramid import LabelPyramid
from rare_lightning.errors import UserError
from rare_lightning.evaluation.protocol import without_padding
from rare_lightning.evaluation.tables import summarize
from rare_lightning.networks import MultiResolutionNetwork, Prediction


def network(**settings):
    return RAREUNet(**{"in_channels": 1, "out_channels": 3, "features": 2, "depth": 2, "levels": 1, **settings})


NAMES = ["background", "Anterior", "Posterior"]


def trainer(folder, **settings):
    options = {"accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_progress_bar": False}
    options["enable_checkpointing"] = False
    return L.Trainer(
        default_root_dir=folder, **{**options, "enable_model_summary": False, "log_every_n_steps": 1, **settings}
    )


@pytest.fixture
def data(phantom):
    return DecathlonDataModule(str(phantom), levels=1, depth=2, folds=2, num_workers=0)


@pytest.mark.parametrize(
    "make_network",
    [
        network,
        lambda: network(head="plain"),
        lambda: UNet(1, 3, 2, depth=2, levels=1),
        lambda: NNUNet(1, 3, [1.0, 1.0, 1.0], [24, 28, 24], features=2, depth=2, levels=1),
    ],
    ids=["sub_voxel", "plain", "unet", "nnunet"],
)
def test_modules_built_in_python_come_back_from_their_checkpoint(make_network, data, tmp_path):
    torch.manual_seed(0)
    module = SegmentationModule(make_network(), NAMES, MultiResolutionLoss(alpha=0.5), level_cycle=[[0]])
    runner = trainer(tmp_path)
    runner.fit(module, data)
    runner.save_checkpoint(tmp_path / "a.ckpt")
    torch.load(tmp_path / "a.ckpt", weights_only=True)
    loaded = SegmentationModule.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert loaded.network.init_args == module.network.init_args
    assert loaded.objective.segmentation.alpha == 0.5
    assert loaded.level_cycle == [[0]]
    for one, other in zip(loaded.state_dict().values(), module.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_batches_take_the_levels_of_the_cycle_in_turn_through_all_epochs(phantom, tmp_path):
    seen = []

    class Watched(UNet):
        def forward(self, images):
            if self.training:
                seen.append(list(images))
            return super().forward(images)

    data = DecathlonDataModule(
        str(phantom), levels=1, depth=2, folds=2, batch_size=1, patches_per_case=3, num_workers=0
    )
    cycle = [[0], [1], [0, 1], [1]]
    module = SegmentationModule(Watched(1, 3, 2, depth=2, levels=1), NAMES, level_cycle=cycle)
    runner = trainer(tmp_path, max_epochs=3, limit_val_batches=0, log_every_n_steps=1000)
    runner.fit(module, data)
    epoch = runner.num_training_batches
    assert epoch > len(cycle) and epoch % len(cycle)  # an epoch does not begin where the one before did
    assert seen == (cycle * len(seen))[: 3 * epoch]
    # The first cycle of an epoch is counted, so that each level has a Dice however rarely batches are.
    assert {"train/dice/level_0", "train/dice/level_1"} <= runner.logged_metrics.keys()


def test_levels_left_out_of_training_do_not_learn(data, tmp_path):
    module = SegmentationModule(network(), NAMES, level_cycle=[[1]])
    before = {name: parameter.clone() for name, parameter in module.network.named_parameters()}
    trainer(tmp_path).fit(module, data)
    changed = {name for name, p in module.network.named_parameters() if not torch.equal(p, before[name])}
    assert any(name.startswith("gateways.1") for name in changed)
    assert not any(name.startswith(("encoder.0", "heads.0", "decoder.0")) for name in changed)


class Objective(MultiResolutionLoss):
    """Keeps what it is asked for, and always finds a loss of 1."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.epochs = []

    def forward(self, prediction, targets, epoch=0):
        self.epochs.append(epoch)
        return {"loss": next(iter(prediction.logits.values())).sum() * 0 + 1}


def test_steps_go_by_the_epoch_and_their_levels_share(data, tmp_path):
    """The consistency's warm-up counts epochs; a step of some levels must not move as far as one of all."""
    losses = []

    class Losses(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, *_):
            losses.append(float(outputs["loss"]))

    objective = Objective(level_weights=[3, 1])
    module = SegmentationModule(network(), NAMES, objective, level_cycle=[[0], [1], [0, 1]])
    trainer(tmp_path, max_epochs=3, limit_train_batches=1, limit_val_batches=0, callbacks=[Losses()]).fit(module, data)
    assert losses == [0.75, 0.25, 1]
    assert objective.epochs == [0, 1, 2]


def test_surfaces_are_scored_with_the_tolerance_that_is_set(data):
    data.prepare_data()
    batch = next(iter(data.test_dataloader()))
    torch.manual_seed(0)
    net = network().eval()
    with torch.no_grad():
        near, far = (SegmentationModule(net, NAMES, nsd_tolerance_mm=mm).test_step(batch, 0) for mm in (0.5, 50))
    scores = [[row.scores.nsd for result in results for row in result.rows] for results in (near, far)]
    assert max(scores[0]) < 1 == max(scores[1])


def test_a_loss_that_is_not_finite_ends_the_run(data, tmp_path):
    module = SegmentationModule(network(), NAMES)
    with torch.no_grad():
        module.network.heads["1"].conv.bias.fill_(torch.nan)
    with pytest.raises(UserError, match=r"the loss became nan in epoch 0 on hippocampus_\d+"):
        trainer(tmp_path).fit(module, data)


@pytest.mark.parametrize("cycle", [[], [[]], [[0], []], [[0], [1, 2]]])
def test_cycles_of_unknown_levels_or_none_are_refused(cycle):
    with pytest.raises(ValueError, match=r"level_cycle \[.*\] must be .* the network's levels \[0, 1\]"):
        SegmentationModule(network(), NAMES, level_cycle=cycle)


class Rates(L.Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, *_):
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.parametrize("scheduler", ["constant", "one_cycle", "cosine", "polynomial"])
def test_schedules_end_where_they_should(scheduler, data, tmp_path):
    rates = Rates()
    optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.1)  # noqa: E731
    module = SegmentationModule(network(), NAMES, optimizer=optimizer, scheduler=scheduler)
    runner = trainer(tmp_path, max_epochs=6, callbacks=[rates])
    runner.fit(module, data)
    assert max(rates.seen) <= 0.1 + 1e-9
    final = runner.optimizers[0].param_groups[0]["lr"]
    if scheduler == "constant":
        assert set(rates.seen) == {0.1}
    else:
        assert final < 0.05
        assert len(set(rates.seen)) > 3


@pytest.mark.parametrize(
    ("make", "setting"),
    [
        (lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.99), {"momentum": 0.99}),
        (lambda weights: torch.optim.AdamW(weights, betas=(0.8, 0.98)), {"betas": (0.8, 0.98)}),
    ],
    ids=["sgd", "adamw"],
)
def test_one_cycle_leaves_the_optimizers_momentum_alone(make, setting, data, tmp_path):
    runner = trainer(tmp_path, max_epochs=2)
    runner.fit(SegmentationModule(network(), NAMES, optimizer=make, scheduler="one_cycle"), data)
    [group] = runner.optimizers[0].param_groups
    assert {name: group[name] for name in setting} == setting


@pytest.mark.parametrize("scheduler", ["constant", "one_cycle", "cosine", "polynomial"])
def test_a_run_can_go_on_for_longer_than_it_was_planned(scheduler, phantom, tmp_path):
    data = DecathlonDataModule(str(phantom), levels=1, depth=2, folds=2, num_workers=0, patches_per_case=20)
    runs = []
    for folder, lengths in (("whole", [3]), ("parts", [1, 3])):
        for epochs in lengths:
            rates = Rates()
            runner = trainer(tmp_path, max_epochs=epochs, callbacks=[rates])
            begun = tmp_path / folder if epochs > lengths[0] else None
            module = SegmentationModule(network(), NAMES, scheduler=scheduler)
            runner.fit(module, data, ckpt_path=begun, weights_only=True)
            runner.save_checkpoint(tmp_path / folder)
            assert runner.current_epoch == epochs
        runs.append(rates.seen)
        final = runner.optimizers[0].param_groups[0]["lr"]
        assert final == pytest.approx(1e-3 if scheduler == "constant" else 0, abs=1e-5)
    whole, parts = runs
    assert parts == whole[-len(parts) :]


@pytest.mark.parametrize("before", ["constant", "one_cycle", "cosine"])
@pytest.mark.parametrize("now", ["constant", "one_cycle", "cosine"])
def test_a_run_goes_on_with_the_schedule_and_the_optimizer_it_is_given(before, now, data, tmp_path):
    def fit(scheduler, lr, epochs, begun=None):
        rates = Rates()
        optimizer = lambda parameters: torch.optim.AdamW(parameters, lr=lr, weight_decay=lr)  # noqa: E731
        runner = trainer(tmp_path, max_epochs=epochs, callbacks=[rates])
        module = SegmentationModule(network(), NAMES, optimizer=optimizer, scheduler=scheduler)
        runner.fit(module, data, ckpt_path=begun, weights_only=True)
        runner.save_checkpoint(tmp_path / "last")
        [group] = runner.optimizers[0].param_groups
        assert group["weight_decay"] == lr
        return rates.seen

    expected = fit(now, 0.01, 4)
    assert len(fit(before, 0.1, 1)) == 1
    assert fit(now, 0.01, 4, tmp_path / "last") == expected[1:]


def test_a_run_that_torchs_one_cycle_began_goes_on_at_its_rates(data, tmp_path):
    class Before(SegmentationModule):
        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.1)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=8, cycle_momentum=False)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    seen = []
    for kind, epochs, begun in ((Before, 8, None), (Before, 3, None), (SegmentationModule, 8, tmp_path / "last")):
        rates = Rates()
        runner = trainer(tmp_path, max_epochs=epochs, callbacks=[rates])
        module = kind(network(), NAMES, optimizer=partial(torch.optim.AdamW, lr=0.1))
        runner.fit(module, data, ckpt_path=begun, weights_only=True)
        runner.save_checkpoint(tmp_path / "last")
        seen.append(rates.seen)
    assert seen[2] == pytest.approx(seen[0][3:], rel=1e-9)


def test_an_optimizer_is_none_of_a_tests_business(data, tmp_path):
    runner = trainer(tmp_path, limit_test_batches=1)
    runner.fit(SegmentationModule(network(), NAMES), data)
    runner.save_checkpoint(tmp_path / "a.ckpt")
    other = SegmentationModule(network(), NAMES, optimizer=torch.optim.SGD)
    runner.test(other, data, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    with pytest.raises(UserError, match=r"model.optimizer is SGD and was AdamW, with which its state cannot go on"):
        trainer(tmp_path, max_epochs=2).fit(other, data, ckpt_path=tmp_path / "a.ckpt", weights_only=True)


def test_a_schedule_needs_an_end(data, tmp_path):
    with pytest.raises(UserError, match=r"model.scheduler cosine needs to know how long the run is"):
        trainer(tmp_path, max_epochs=-1).fit(SegmentationModule(network(), NAMES, scheduler="cosine"), data)


@pytest.mark.parametrize(("head", "levels"), [("sub_voxel", set()), ("plain", {1})])
def test_labels_are_brought_to_the_grids_that_are_answered_on(head, levels, data, tmp_path, monkeypatch):
    made = set()
    bring = pyramid.downsample_label
    monkeypatch.setattr(
        pyramid, "downsample_label", lambda *args: made.add(data.strides.index(args[1])) or bring(*args)
    )
    trainer(tmp_path).fit(SegmentationModule(network(head=head), NAMES), data)
    assert made == levels


def test_the_loss_falls(phantom, tmp_path):
    data = DecathlonDataModule(str(phantom), levels=1, depth=2, folds=4, test_fraction=0.34, num_workers=0)
    optimizer = lambda parameters: torch.optim.AdamW(parameters, lr=1e-2)  # noqa: E731
    torch.manual_seed(0)
    module = SegmentationModule(network(features=6), NAMES, optimizer=optimizer)
    runner = trainer(tmp_path, max_epochs=1)
    runner.fit(module, data)
    first = float(runner.callback_metrics["train/loss_epoch"])
    runner = trainer(tmp_path, max_epochs=40)
    runner.fit(module, data)
    assert float(runner.callback_metrics["train/loss_epoch"]) < 0.7 * first


@pytest.mark.parametrize("head", ["sub_voxel", "plain"])
def test_a_network_that_knows_the_truth_scores_one(head, data):
    """The whole way of a test step, with an oracle in the network's place."""
    data.prepare_data()
    module = SegmentationModule(network(head=head), NAMES)

    class Oracle(torch.nn.Module):
        levels = module.network.levels
        answer_grid = module.network.answer_grid
        level_stride = staticmethod(module.network.level_stride)

        def __init__(self, batch):
            super().__init__()
            self.label = batch["label"]

        def forward(self, images):
            [level] = images
            label = self.label[0 if self.answer_grid == "base" else level]
            one_hot = torch.nn.functional.one_hot(label.long(), 3).movedim(-1, 1)
            return Prediction({level: 50.0 * one_hot}, {}, {})

    rows = []
    for batch in data.test_dataloader():
        module.network = Oracle(batch)
        rows += [row for result in module.test_step(batch, 0) for row in result.rows]
    summary = summarize(rows)
    assert summary["level"]["mean"]["dice"] == 1
    assert summary["fine"]["levels"]["0"]["mean"]["dice"] == 1
    # What a level cannot resolve is lost on its own grid, and kept by answers on the base grid.
    assert (summary["fine"]["levels"]["1"]["mean"]["dice"] == 1) is (head == "sub_voxel")


@pytest.mark.parametrize("head", ["sub_voxel", "plain"])
def test_padding_is_not_validated(head, data):
    """An answer that is right in the scan and wrong beyond it is right."""
    data.prepare_data()
    module = SegmentationModule(network(head=head), NAMES)
    coarsest = module.network.level_stride(1)
    for batch in data.val_dataloader():
        shape = batch["shape"][0].tolist()
        cut = [n - 1 - n % 2 for n in shape]  # the scan ends within the coarsest voxels
        batch["shape"] = torch.tensor([cut])
        for level, label in {level: batch["label"][level] for level in (0, 1)}.items():
            stride = (1, 1, 1) if level == 0 else coarsest
            kept = without_padding(label, cut, stride).clone()
            label.fill_(2)
            label[:, : kept.shape[1], : kept.shape[2], : kept.shape[3]] = kept
        labels = {level: batch["label"][0 if head == "sub_voxel" else level] for level in (0, 1)}
        logits = {}
        for level, label in labels.items():
            answer = 50.0 * torch.nn.functional.one_hot(label.long(), 3).movedim(-1, 1)
            within = without_padding(answer, cut, (1, 1, 1) if head == "sub_voxel" or level == 0 else coarsest)
            wrong = torch.zeros_like(answer)
            wrong[:, 0] = 50
            wrong[..., : within.shape[2], : within.shape[3], : within.shape[4]] = within
            logits[level] = wrong
        module._predict_whole = lambda images, logits=logits: Prediction(logits, {}, {})
        module.validation_step(batch, 0)
    assert all(metric.compute().nanmean() == 1 for metric in module.val_dice.values())
    assert torch.stack(module.val_losses["loss"]).mean() < 1e-6


def test_validation_in_windows_scores_as_all_levels_at_once():
    torch.manual_seed(0)
    objective = MultiResolutionLoss(level_weights=[1, 3], consistency_weight=0)
    whole = SegmentationModule(network(), NAMES, objective).eval()
    windows = SegmentationModule(whole.network, NAMES, objective, window_size=[16, 16, 16]).eval()  # one holds all
    answered = []
    predict = windows._predict_whole
    windows._predict_whole = lambda images: (answered.append(list(images)), predict(images))[1]
    sizes = {0: (1, 16, 16, 16), 1: (1, 8, 8, 8)}
    batch = {
        "image": {level: torch.randn(1, *size) for level, size in sizes.items()},
        "label": LabelPyramid(torch.randint(3, sizes[0]), [(1, 1, 1), (2, 2, 2)]),
        "shape": torch.tensor([[16, 16, 16]]),
        "again": torch.tensor([False]),
    }
    with torch.inference_mode():
        whole.validation_step(batch, 0)
        windows.validation_step(batch, 0)
    assert answered == [[0], [1]]  # never the answers of two levels in memory
    assert {name for name in whole.val_losses if name not in windows.val_losses} == {
        "consistency",
        "level_1/consistency",
    }
    for name, values in windows.val_losses.items():
        torch.testing.assert_close(values, whole.val_losses[name])
    for level, metric in windows.val_dice.items():
        torch.testing.assert_close(metric.compute(), whole.val_dice[level].compute())
    before = whole.val_losses["loss"].copy()
    with torch.inference_mode():
        whole.validation_step({**batch, "again": torch.tensor([True])}, 1)
    assert whole.val_losses["loss"] == before  # what is there to keep step counts for nothing


@pytest.mark.parametrize("head", ["sub_voxel", "plain"])
def test_windows_agree_with_the_whole_volume(head):
    torch.manual_seed(0)
    module = SegmentationModule(network(head=head, strides=[[2, 2, 1], [2, 2, 2]]), NAMES, window_size=[32, 32, 32])
    module.eval()
    for level in module.levels:
        stride = module.network.level_stride(level)
        image = torch.randn(1, 1, *(32 // s for s in stride))
        with torch.no_grad():
            torch.testing.assert_close(module._predict_whole({level: image}).logits, module({level: image}).logits)
            # Larger than a window in every axis, and smaller than one: the answer lies on the same grid.
            for extent in (48, 24):
                image = torch.randn(1, 1, *(extent // s for s in stride))
                windowed, whole = (f({level: image}).logits[level] for f in (module._predict_whole, module))
                assert windowed.shape == whole.shape


def test_a_blend_of_windows_is_where_the_volume_is():
    """A network that answers what it sees answers the volume, however it is cut."""
    module = SegmentationModule(network(), NAMES, window_size=[16, 16, 16])
    module.network = Echo()
    image = torch.randn(1, 3, 40, 24, 16)
    logits = module._predict_whole({0: image, 1: image}).logits
    torch.testing.assert_close(logits[0], image)
    torch.testing.assert_close(logits[1], interpolate(image, scale_factor=2))


class Echo(torch.nn.Module):
    level_stride = staticmethod(lambda level: (2**level,) * 3)
    coarsest_stride = (4, 4, 4)

    def forward(self, images):
        return Prediction({k: interpolate(image, scale_factor=2**k) for k, image in images.items()}, {}, {})


def test_a_test_batch_holds_one_case(data):
    data.prepare_data()
    batch = next(iter(data.test_dataloader()))
    with pytest.raises(ValueError, match="one case, not 2"):
        SegmentationModule(network(), NAMES).test_step({**batch, "case": ["a", "b"]}, 0)


class Forgetful(MultiResolutionNetwork):
    """What somebody's own network may get wrong."""

    answer_grid, coarsest_stride = "base", (1, 1, 1)

    def __init__(self, answer):
        super().__init__()
        self.levels = (0,)
        self.answer = answer

    def level_stride(self, level):
        return (1, 1, 1)

    def forward(self, images):
        return self.answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({0: torch.zeros(1, 3, 4, 4, 4)}, "Forgetful.forward must return a rare_lightning.networks.Prediction: dict"),
        (
            Prediction({0: torch.zeros(1, 2, 4, 4, 4)}, {}, {}),
            r"level 0 with logits \(B, 3, D, H, W\).*\(1, 2, 4, 4, 4\)",
        ),
    ],
)
def test_networks_that_answer_otherwise_are_told_what_is_expected(answer, message):
    module = SegmentationModule(Forgetful(answer), NAMES)
    with pytest.raises(UserError, match=message):
        module({0: torch.zeros(1, 1, 4, 4, 4)})


def test_networks_that_do_not_say_what_they_are_are_told_what_to_set():
    class Nameless(Forgetful):
        def __init__(self):
            super().__init__(None)
            del self.levels

    with pytest.raises(ValueError, match="Nameless must set levels, as a MultiResolutionNetwork does"):
        SegmentationModule(Nameless(), NAMES)
