"""LightningDataModule for Decathlon tasks: check, preprocess once, train on patches, evaluate whole volumes."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torchio as tio
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from rare_lightning.configuration import keep_plain_hyperparameters
from rare_lightning.data.cache import default_cache_dir, find_cached, write_cached
from rare_lightning.data.dataset import NormalizedCases, TrainingPatches, WholeVolumes
from rare_lightning.data.download import find_task
from rare_lightning.data.geometry import format_spacing
from rare_lightning.data.integrity import check_cases
from rare_lightning.data.preprocessing import Foreground, Normalize, Preprocessing, median_size, median_spacing
from rare_lightning.data.pyramid import LabelDownsampling, PyramidCollate
from rare_lightning.data.random_spacing import EXACT, RandomSpacing
from rare_lightning.data.routing import FULL, FinestGrids, finest_grids
from rare_lightning.data.sampling import EvaluationShare, LateLoader, TrainingShare
from rare_lightning.data.splits import Split, make_split, read_split
from rare_lightning.data.task import Case, regions_of
from rare_lightning.errors import UserError, few
from rare_lightning.networks.grids import Size3, is_spacing, level_spacing, level_stride, round_up, stage_strides
from rare_lightning.provenance import run_seed

Batch = dict[str, Any]


class DecathlonDataModule(L.LightningDataModule):
    """Level pyramids of a Decathlon task.

    Args:
        root: Folder of the task, with ``dataset.json``, ``imagesTr`` and ``labelsTr``.
        levels: Highest resolution level.
        depth: Down-samplings of the network.
        strides: Per-axis stride of each down-sampling: one number, or ``depth`` triples.
        spacing: Base spacing in mm along (right, anterior, superior); the median of the cases that train and validate
            if None.
        normalize: ``zscore`` or ``percentile``, per case and channel, or a window ``[low, high]`` of intensities that
            have a unit, as those of CT.
        foreground: Voxels the normalisation looks at: ``nonzero``, ``otsu`` or ``all``. A window needs none.
        label_downsampling: ``majority``, ``nearest``, or ``corner``, the published code's shifted labels, to show their
            effect.
        upsample: Bring scans that are coarser than a level up to it, for training and test, as other tools do. By
            default a scan is seen at the level that ``rare predict`` enters it at (``--routing detail``) and at coarser
            ones.
        augmentation: TorchIO transforms, applied in order to training patches.
        random_spacing: Lets training images have spacings between the levels and coarse axes, see its class.
        patch_size: Training patch in base voxels; None for whole volumes, padded to the largest of their batch.
        patches_per_case: Training patches per case and epoch.
        foreground_fraction: Share of training patches placed on a foreground voxel.
        batch_size: Training patches per step and process.
        num_workers: Loader processes; one is enough for small volumes.
        seed: Of the split.
        fold: Validation fold, from 0.
        folds: Number of folds that the cases outside the test set are cut into.
        test_fraction: Share of cases held out for ``rare test``.
        splits_file: Use this split instead (nnU-Net's ``splits_final.json`` is understood).
        regions: What is scored at test, in place of the classes: names with label values, as
            ``{whole tumour: [1, 2, 3]}``. By default nnU-Net's regions of ``dataset.json``, or each foreground class.
        cache_dir: Where preprocessed cases are kept; ``~/.cache/rare_lightning`` if None.
        download: Make ``root`` from the public archive of the task that its name says, if it is not there. Instead of
            True, the URL of another folder with the archives. Done at once, since channels, classes and split are read
            from ``dataset.json``; processes that start together wait for the first.

    Raises:
        UserError: For anything wrong with the data; all broken cases are listed at once.
    """

    def __init__(
        self,
        root: str,
        levels: int = 3,
        depth: int = 4,
        strides: int | list[list[int]] = 2,
        spacing: list[float] | None = None,
        normalize: Normalize = "zscore",
        foreground: Foreground = "nonzero",
        label_downsampling: LabelDownsampling = "majority",
        upsample: bool = False,
        augmentation: list[tio.Transform] | None = None,
        random_spacing: RandomSpacing = EXACT,
        patch_size: list[int] | None = None,
        patches_per_case: int = 1,
        foreground_fraction: float = 0.0,
        batch_size: int = 2,
        num_workers: int = 1,
        seed: int = 0,
        fold: int = 0,
        folds: int = 5,
        test_fraction: float = 0.2,
        splits_file: str | None = None,
        regions: dict[str, list[int]] | None = None,
        cache_dir: str | None = None,
        download: bool | str = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        keep_plain_hyperparameters(self)
        for name, value, least in (
            ("levels", levels, 0),
            ("batch_size", batch_size, 1),
            ("patches_per_case", patches_per_case, 1),
            ("num_workers", num_workers, 0),
            ("seed", seed, 0),
        ):
            if value < least:
                raise UserError(f"data.{name} ({value}) must be {least} or more")
        if not 0 <= foreground_fraction <= 1:
            raise UserError(f"data.foreground_fraction ({foreground_fraction}) must be a share between 0 and 1")
        if foreground_fraction and patch_size is None:
            raise UserError(
                f"data.foreground_fraction ({foreground_fraction}) places patches, and without a data.patch_size "
                "volumes are taken whole: set it to 0"
            )
        self.root = root
        try:
            stages = stage_strides(depth, strides)
            self.strides = [level_stride(stages, level) for level in range(levels + 1)]
        except ValueError as error:
            raise UserError(f"data: {error}") from error
        self.spacing = spacing
        self.normalize = normalize
        self.foreground = foreground
        self.label_downsampling = label_downsampling
        self.upsample = upsample
        self.augmentation = tio.Compose(augmentation) if augmentation else None
        self.random_spacing = random_spacing
        self.patches_per_case = patches_per_case
        self.foreground_fraction = foreground_fraction
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        self.task = find_task(root, download)
        self.regions = regions_of(self.task, regions)
        case_ids = [case.case_id for case in self.task.cases]
        # Not before it is asked for: a test has that of its checkpoint.
        self._make_split = (
            partial(make_split, case_ids, seed, fold, folds, test_fraction)
            if splits_file is None
            else partial(read_split, splits_file, fold, case_ids)
        )
        self.patch_size = self._checked_patch(patch_size)
        self._split: Split | None = None
        self._left_out: tuple[str, ...] = ()  # by a checkpoint's split
        self._preprocessing: Preprocessing | None = None

    @property
    def split(self) -> Split:
        """Which case trains, validates, tests: a checkpoint's, or what the settings say.

        Raises:
            UserError: As of :func:`~.splits.make_split` and :func:`~.splits.read_split`.
        """
        if self._split is None:
            self._split = self._make_split()
        return self._split

    @property
    def preprocessing(self) -> Preprocessing:
        """Deterministic preprocessing; its base spacing is read from headers if not given."""
        if self._preprocessing is None:
            spacing = median_spacing(self._known_cases()) if self.spacing is None else tuple(self.spacing)
            if not is_spacing(spacing):
                raise UserError(f"data.spacing must be three positive numbers of mm: {list(spacing)}")
            try:
                self._preprocessing = Preprocessing(spacing, self.normalize, self.foreground)
            except ValueError as error:
                raise UserError(f"data.normalize: {error}") from error
        return self._preprocessing

    def cases_of(self, case_ids: Iterable[str]) -> tuple[Case, ...]:
        """Cases of the task in order of their id."""
        wanted = set(case_ids)
        return tuple(case for case in self.task.cases if case.case_id in wanted)

    def finest_grids(self, case: Case) -> FinestGrids:
        """Those that a scan is seen on; with ``upsample`` those of level 0.

        Raises:
            UserError: If its header cannot be read.
        """
        if self.upsample:
            return FULL
        return finest_grids(case.geometry.canonical_spacing, self.preprocessing.spacing, self.strides)

    @property
    def lacks_levels(self) -> bool:
        """Whether some training scan is not seen at every level."""
        return any(self.finest_grids(case).level for case in self.cases_of(self.split.train))

    def typical_size(self) -> Size3:
        """Of what a network is trained with, in base voxels: the patch, or the median case by its header.

        Empty space around a case is part of that, though it is cut off later.

        Raises:
            UserError: If a header cannot be read.
        """
        return self.patch_size or median_size(self._known_cases(), self.preprocessing.spacing)

    def prepare_data(self) -> None:
        """Check and preprocess what is not in the cache, the whole split for a training.

        Runs in one process per machine.
        """
        stage, split = self.trainer.state.fn if self.trainer else None, self.split
        roles: dict[TrainerFn | None, Iterable[str]] = {TrainerFn.VALIDATING: split.val, TrainerFn.TESTING: split.test}
        cases = self.cases_of(roles.get(stage, split.cases))
        try:
            new = [case for case in cases if not self._is_cached(case)]
        except (OSError, UserError):  # a file is missing, or a header that the median spacing needs is broken
            check_cases(self.task, cases)
            raise
        if new:
            rank_zero_info(f"Checking and preprocessing {len(new)} cases of {self.root} into {self.cache_dir}")
        check_cases(self.task, track(new, "Checking", transient=True))
        for case in track(new, "Preprocessing", transient=True):
            write_cached(case, *self._grid_of(case))

    def train_dataloader(self) -> DataLoader[tio.Subject]:
        """Shuffled batches of training patches, of which each process has its own.

        Patches and their order follow from the seed of ``seed_everything`` (0 without), alike in all processes.

        Raises:
            UserError: If there are fewer patches than one step takes, no scan is seen at level 0, or none has any
                foreground.
        """
        seed = run_seed() or 0
        cases = self._cached(self.split.train)
        self._say_what_resolutions_train([grids.level for grids in cases.grids])
        self._say_which_classes_lack(cases, "training", "the network will not learn")
        self._say_where_patches_are_padding(cases)
        dataset = TrainingPatches(
            cases,
            patch_size=self.patch_size,
            augmentation=self.augmentation,
            patches_per_case=self.patches_per_case,
            foreground_fraction=self.foreground_fraction,
            seed=seed,
        )
        share = TrainingShare(len(dataset), self.batch_size, seed, *self._processes(), kinds=cases.grids)
        collate = PyramidCollate(self.strides, self.preprocessing, self.label_downsampling, self.random_spacing)
        return self._loader(dataset, share, collate, batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader[tio.Subject]:
        """Whole validation cases, one per batch.

        Raises:
            UserError: If there are none, or none that could choose the best checkpoint of a training has a class.
        """
        if not self.split.val:
            raise UserError(f"{self.root}: none of these cases are for validation")
        cases = self._cached(self.split.val)
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self._say_which_classes_lack(cases, "validation", "best.ckpt is chosen without")
        return self._whole_volumes(cases)

    def test_dataloader(self) -> DataLoader[tio.Subject]:
        """Whole test cases, one per batch.

        Raises:
            UserError: If there are none.
        """
        if not self.split.test:
            raise UserError(
                f"{self.root}: none of these cases are for the test. Train with a data.test_fraction, or a "
                "data.splits_file that names some, or test on other data"
            )
        return self._whole_volumes(self._cached(self.split.test))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must know of its data to be used on other scans, and tested on the right cases."""
        return {
            "task": self.task.name,
            "channels": list(self.task.channels),
            "classes": list(self.task.classes),
            "level_strides": [list(stride) for stride in self.strides],
            "preprocessing": self.preprocessing.as_dict(),
            "split": self.split.as_dict(),
            "left_out": sorted({*self._left_out, *(case.case_id for case in self.task.cases)} - self.split.cases),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over preprocessing and split of a checkpoint, so that a test never meets a case it was trained on.

        Cases that the checkpoint does not know, such as those of another site, are test cases. Those that its split
        leaves out stay out.

        Raises:
            UserError: If classes or channels are others than the checkpoint's.
        """
        own, theirs = list(self.task.classes), state_dict["classes"]
        if own != theirs:
            raise UserError(f"{self.root}: classes {own} differ from the checkpoint's {theirs}")
        own, theirs = list(self.task.channels), state_dict["channels"]
        # What is called otherwise may be the same channel; what is called alike and comes in another order is not.
        if own != theirs and sorted(own) == sorted(theirs):
            raise UserError(f"{self.root}: channels {own} differ from the checkpoint's {theirs}")
        if own != theirs:
            rank_zero_info(f"{self.root}: its channels {own} are taken for the checkpoint's {theirs}")
        here = {case.case_id for case in self.task.cases}
        roles = {role: set(ids) for role, ids in state_dict["split"].items()}
        known = set().union(*roles.values())
        self._left_out = tuple(state_dict.get("left_out", ()))  # the shipped model's does not say
        new, missing = sorted(here - known - {*self._left_out}), sorted(known - here)
        roles["test"].update(new)
        split = Split(**{role: tuple(sorted(ids & here)) for role, ids in roles.items()})
        if new and split != self._split:  # or it was said before
            rank_zero_info(f"The checkpoint does not know {few(new)}: test cases")
        if missing and split != self._split:
            rank_zero_info(f"Of the checkpoint's cases there is no {few(missing)} in {self.root}")
        self._split = split
        saved = Preprocessing.from_dict(state_dict["preprocessing"])
        given = list(self.spacing or saved.spacing), self.normalize, self.foreground
        if given != (list(saved.spacing), saved.normalize, saved.foreground):
            rank_zero_info(f"Using the preprocessing of the checkpoint: {saved}")
        self._preprocessing = saved

    def _say_which_classes_lack(self, cases: NormalizedCases, role: str, consequence: str) -> None:
        """Classes that none of the cases of a role shows.

        Raises:
            UserError: If they are all of them.
        """
        seen = set().union(*(case.classes for case in cases.cases))
        unseen = [name for value, name in enumerate(self.task.classes) if value > 0 and value not in seen]
        if len(unseen) == len(self.task.classes) - 1:
            raise UserError(
                f"{self.root}: no {role} case ({few(case.case_id for case in cases.cases)}) has any class. rare data "
                "check counts the cases of each; data.seed, data.fold and data.folds choose others"
            )
        if unseen:
            rank_zero_info(f"{self.root}: no {role} case has {few(unseen)}, which {consequence}")

    def _say_where_patches_are_padding(self, cases: NormalizedCases) -> None:
        """Patches that reach beyond every scan."""
        largest = np.max([case.shape for case in cases.cases], axis=0).tolist()
        if self.patch_size is not None and any(
            n > m for n, m in zip(self.patch_size, round_up(largest, self.strides[-1]), strict=True)
        ):
            rank_zero_info(
                f"data.patch_size {list(self.patch_size)} reaches beyond every training scan, of at most {largest} "
                "voxels: what lies beyond takes memory and is padding"
            )

    def _say_what_resolutions_train(self, finest_levels: Sequence[int]) -> None:
        """Where training scans differ in resolution.

        Raises:
            UserError: If none is seen at level 0.
        """
        base = self.preprocessing.spacing
        if min(finest_levels) > 0:
            raise UserError(
                f"{self.root}: no training scan is as fine as level 0 of {format_spacing(base)} mm, which would not be "
                "trained. Give a coarser data.spacing, or bring the scans up by data.upsample true"
            )
        spacings = [case.geometry.canonical_spacing for case in self.cases_of(self.split.train)]
        finest, coarsest = np.min(spacings, axis=0), np.max(spacings, axis=0)
        if not np.allclose(finest, coarsest, rtol=0.1):
            chosen = " (the median of each axis; data.spacing chooses another)" if self.spacing is None else ""
            ranges = zip(finest.tolist(), coarsest.tolist(), strict=True)
            rank_zero_info(
                f"{self.root}: voxels of training scans measure {' x '.join(_range(*ends) for ends in ranges)} mm; "
                f"level 0 is {format_spacing(base)} mm{chosen}"
            )
        counts = Counter(finest_levels)
        if coarser := [
            f"{counts[level]} from level {level} ({format_spacing(level_spacing(base, self.strides[level]))} mm)"
            for level in sorted(counts.keys() - {0})
        ]:
            rank_zero_info(
                f"{self.root}: {counts[0]} of {len(finest_levels)} training scans train all levels, "
                f"{' and '.join(coarser)} on, which they enter at. data.upsample true brings them up to level 0"
            )

    def _checked_patch(self, patch_size: list[int] | None) -> Size3 | None:
        if patch_size is None:
            return None
        deepest = self.strides[-1]
        if len(patch_size) != 3 or any(n < 1 or n % s for n, s in zip(patch_size, deepest, strict=False)):
            raise UserError(
                f"data.patch_size {patch_size} must be three multiples of {list(deepest)}, the deepest level's voxel"
            )
        return patch_size[0], patch_size[1], patch_size[2]

    def _known_cases(self) -> tuple[Case, ...]:
        """Those that train and validate, which together are the same in all folds: their networks answer as one."""
        return self.cases_of([*self.split.train, *self.split.val])

    def _is_cached(self, case: Case) -> bool:
        """Whether the case was checked and preprocessed before, for as many channels and classes."""
        cached = find_cached(case, *self._grid_of(case))
        return cached is not None and cached.fits(self.task)

    def _grid_of(self, case: Case) -> tuple[Preprocessing, list[Size3], Path, FinestGrids]:
        """What a case is brought to, and where it is kept."""
        return self.preprocessing, self.strides, self.cache_dir, self.finest_grids(case)

    def _cached(self, case_ids: Sequence[str]) -> NormalizedCases:
        cached, filled = [], []
        for case in self.cases_of(case_ids):
            grid = self._grid_of(case)
            # Another machine of the run, or an emptied cache: the entry can always be made again.
            cached.append(find_cached(case, *grid) or write_cached(case, *grid))
            filled.append(grid[-1])
        return NormalizedCases(cached, self.preprocessing, filled)

    def _processes(self) -> tuple[int, int]:
        """How many processes the run has, and which this is."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def _whole_volumes(self, cases: NormalizedCases) -> DataLoader[tio.Subject]:
        dataset = WholeVolumes(cases)
        collate = PyramidCollate(self.strides, self.preprocessing, self.label_downsampling)
        return self._loader(dataset, EvaluationShare(len(dataset), *self._processes()), collate)

    def _loader(
        self,
        dataset: Dataset[tio.Subject],
        share: TrainingShare | EvaluationShare,
        collate: PyramidCollate,
        **options: Any,
    ) -> DataLoader[tio.Subject]:
        return LateLoader(
            dataset,
            sampler=share,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),  # for copies that do not wait
            persistent_workers=self.num_workers > 0,
            collate_fn=collate,
            generator=torch.Generator(),  # a seed for loader processes, which nothing uses, is not drawn from torch's
            **options,
        )


def _range(low: float, high: float) -> str:
    """``1.5``, or ``0.8 to 1.5``."""
    ends = dict.fromkeys(f"{mm:.4g}" for mm in (low, high))  # headers round
    return " to ".join(ends)
