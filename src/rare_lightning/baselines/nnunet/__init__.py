"""nnU-Net v2, run as it comes by its own commands in an environment of its own: nothing here imports it.

``dataset`` writes what it reads, ``steps`` runs its commands, ``scores`` brings its answers into our evaluation, and
``run`` goes through all of it. ``extension`` is loaded by nnU-Net, in its environment.
"""

from rare_lightning.baselines.nnunet.run import run_nnunet
from rare_lightning.baselines.nnunet.steps import Device, TrainingSettings

__all__ = ["Device", "TrainingSettings", "run_nnunet"]
