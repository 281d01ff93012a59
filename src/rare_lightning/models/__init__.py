"""Trained models that come with the package; docs/models has a card of each."""

from pathlib import Path

FOLDER = Path(__file__).parent


def model_names() -> list[str]:
    """Names that stand for a checkpoint wherever one is asked for."""
    return sorted(path.stem for path in FOLDER.glob("*.ckpt"))


def find_checkpoint(name: str | Path) -> Path:
    """The path given, or the model of that name where there is no such file."""
    path = Path(name).expanduser()
    return FOLDER / f"{name}.ckpt" if not path.exists() and str(name) in model_names() else path
