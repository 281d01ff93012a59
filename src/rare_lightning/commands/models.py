"""``rare models``."""

from rich.console import Console
from rich.table import Table

from rare_lightning.configuration import read_checkpoint
from rare_lightning.models import find_checkpoint, model_names


def models() -> None:
    """List the trained models that come with the package."""
    table = Table(caption="rare predict --ckpt_path NAME ...; not medical devices. Cards: docs/models", box=None)
    for column in ("name", "classes", "input", "spacing (mm)", "Dice by spacing", "MB", "licence"):
        table.add_column(column)
    for name in model_names():
        checkpoint = read_checkpoint(name)
        data, card = checkpoint["DecathlonDataModule"], checkpoint["card"]
        size = find_checkpoint(name).stat().st_size / 1e6
        table.add_row(
            name,
            ", ".join(data["classes"][1:]),
            ", ".join(data["channels"]),
            "\n".join(card["dice"]),
            "\n".join(f"{dice:.3f}" for dice in card["dice"].values()),
            f"{size:.1f}",
            card["licence"],
        )
    Console().print(table)
