"""Inference at each level: RARE-UNet entering there, against up-sampling to level 0 and running the U-Net.

python benchmarks/inference.py [--output docs/results/inference.json]
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from common import arguments, block, interleaved, save
from rare_lightning.evaluation.tables import markdown_table
from rare_lightning.networks import Pyramid, RAREUNet, UNet
from rare_lightning.networks.grids import block_average


def flops(network: torch.nn.Module, images: Pyramid) -> int:
    """Floating point operations of convolutions and matrix products in one forward."""
    with FlopCounterMode(display=False) as counter:
        network(images)
    return counter.get_total_flops()


@torch.inference_mode()
def main() -> None:
    """Run, print and save."""
    args = arguments(__doc__, size=[96, 96, 96], features=8, depth=4, levels=3, repeats=15)
    torch.manual_seed(0)
    rare = RAREUNet(1, 3, args.features, args.depth, args.levels).eval()
    unet = UNet(1, 3, args.features, args.depth, args.levels).eval()
    base = torch.randn(1, 1, *args.size)
    rows = []
    for level in rare.levels:
        images = {level: block_average(base, rare.level_stride(level))}
        seconds = interleaved({"rare": lambda x=images: rare(x), "unet": lambda x=images: unet(x)}, args.repeats)
        operations = {name: flops(network, images) for name, network in (("rare", rare), ("unet", unet))}
        rows.append(
            {
                "level": str(level),
                "input": block(list(images[level].shape[2:])),
                "U-Net time / RARE-UNet time": f"{seconds['unet'] / seconds['rare']:.1f}",
                "RARE-UNet ms": f"{1000 * seconds['rare']:.1f}",
                "U-Net FLOPs / RARE-UNet FLOPs": f"{operations['unet'] / operations['rare']:.1f}",
                "RARE-UNet GFLOPs": f"{operations['rare'] / 1e9:.2f}",
            }
        )
    note = f"base grid {block(args.size)}, {args.features} features, depth {args.depth}, sub-voxel heads"
    note += f" that answer on it; median of {args.repeats}"
    save(args, "Inference", note, rows)
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
