"""Draw what the two ways to bring labels down to a level do to a shape (docs/label_downsampling.png).

python benchmarks/label_downsampling.py
"""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from rare_lightning.data.pyramid import LabelDownsampling, downsample_label
from rare_lightning.networks.grids import block_average

STRIDE = 8  # level 3
SIZE = 64
TITLES: dict[LabelDownsampling, str] = {
    "majority": "majority: on the anatomy",
    "corner": f"corner: (8 - 1) / 2 = {(STRIDE - 1) / 2:g} voxels away from it",
}


def main() -> None:
    """Write the figure."""
    x, y = np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij")
    bent = (x - 30) * 0.9 + 0.010 * (y - 32) ** 2  # a hippocampus, roughly
    shape = (bent / 11) ** 2 + ((y - 32) / 25) ** 2 < 1
    volume = torch.from_numpy(np.repeat(shape[..., None], STRIDE, axis=2))[None]
    scan = block_average(volume[None].float(), (STRIDE,) * 3)[0, 0, :, :, 0]
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    for axes, (method, title) in zip(figure.subplots(1, 2), TITLES.items(), strict=True):
        label = downsample_label(volume.to(torch.uint8), (STRIDE,) * 3, method)[0, :, :, 0]
        extent = (0, SIZE, 0, SIZE)
        axes.imshow(scan.T, cmap="gray", origin="lower", extent=extent, vmax=1.4)
        cells = np.ma.masked_equal(label.numpy().T, 0)
        axes.imshow(cells, cmap="autumn", alpha=0.55, origin="lower", extent=extent, vmin=0, vmax=1.6)
        axes.contour(x + 0.5, y + 0.5, shape, levels=[0.5], colors="cyan", linewidths=2)
        axes.set(title=title, xticks=range(0, SIZE + 1, STRIDE), yticks=range(0, SIZE + 1, STRIDE))
        axes.tick_params(labelbottom=False, labelleft=False, length=0)
        axes.grid(color="white", alpha=0.25)
    figure.supxlabel(
        "cyan: the anatomy; grey: its scan at level 3; orange: the label it is scored against", fontsize=10
    )
    figure.savefig(Path(__file__).parents[1] / "docs" / "label_downsampling.png", dpi=110)


if __name__ == "__main__":
    main()
