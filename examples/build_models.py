"""Both models with dilated attention and a gate of their own, built, run and described.

python -m examples.build_models
python -m examples.build_models --size tiny --image 64 --finetune-image 32
"""

import argparse
from collections.abc import Sequence

import torch
from digar.networks import SIZES, Backbone, PretrainingNetwork, SegmentationNetwork
from digar.networks.attention import TokenLayout
from digar.networks.attention.full import FullAttention
from digar.networks.attention.grouped import GridAttention
from digar.networks.attention.sequence import SequenceAttention
from digar.networks.weights import count_parameters
from digar.training.losses import NextPatchLoss


def describe_gates(backbone: Backbone) -> str:
    """How many gates there are, and the share of the dilated branch in the first and the last."""
    shares = backbone.gate_shares()
    return f"{len(shares)} gates, dilated share {shares[0]:.4f} to {shares[-1]:.4f}"


def show_pretraining(network: PretrainingNetwork, prefix_share: float) -> None:
    """A forward pass behind a bidirectional prefix, and the next-patch loss."""
    backbone = network.backbone
    image = torch.rand(1, backbone.in_channels, *backbone.image_size)
    prefix = torch.tensor([int(backbone.num_patches * prefix_share)])
    with torch.no_grad():
        prediction = network(image, prefix)
        loss = NextPatchLoss(backbone.patch_size)(prediction, (image, prefix))
    print("Pretraining: predict the next patch")
    print(f"  volume           {tuple(image.shape)} in patches of {tuple(backbone.patch_size)}")
    print(f"  prediction       {tuple(prediction.shape)}: start, {backbone.num_patches} patches, end")
    print(f"  loss             {loss:.2f} behind a prefix of {prefix.item()} patches, untrained")
    print(f"  parameters       {count_parameters(network):,}")
    print(f"  gate             {describe_gates(backbone)}")


def show_segmentation(network: SegmentationNetwork) -> None:
    """A forward pass to a class for every voxel."""
    backbone = network.backbone
    image = torch.rand(1, backbone.in_channels, *backbone.image_size)
    with torch.no_grad():
        logits = network(image)
    print("Fine-tuning: segment, UNETR head")
    print(f"  volume           {tuple(image.shape)} in patches of {tuple(backbone.patch_size)}")
    print(f"  logits           {tuple(logits.shape)}")
    print(f"  parameters       {count_parameters(network):,}")
    print(f"  gate             {describe_gates(backbone)}")


def show_scores(grid_size: Sequence[int], dilation: int) -> None:
    """Attention scores per head and layer of each attention function, and their ratio to full attention's."""
    t, h, w = grid_size
    layout = TokenLayout((t, h, w), (dilation,) * 3, end_token=True)
    full = FullAttention(layout).num_scores
    print(f"Attention scores per head and layer, grid {tuple(grid_size)}, dilation {dilation}")
    for name, function in (("full", FullAttention), ("sequence", SequenceAttention), ("grid", GridAttention)):
        scores = function(layout).num_scores
        print(f"  {name:<16} {scores:>9,}   1/{full / scores:.1f}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Build the pretraining and the fine-tuning model, and run each once.")
    parser.add_argument("--size", default="base", choices=list(SIZES))
    parser.add_argument("--image", type=int, default=128, help="voxels along each axis in pretraining (default 128)")
    parser.add_argument("--finetune-image", type=int, default=96, help="the same in fine-tuning (default 96)")
    parser.add_argument("--patch", type=int, default=16, help="voxels along each axis (default 16)")
    parser.add_argument("--dilation", type=int, default=2)
    parser.add_argument("--gate-init", type=float, default=0.01, help="dilated share at the start of pretraining")
    parser.add_argument("--finetune-gate-init", type=float, default=0.01, help="the same for fine-tuning")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)

    pretraining = PretrainingNetwork(
        arguments.image,
        arguments.patch,
        size=arguments.size,
        attention="full+sequence",
        dilation=arguments.dilation,
        gate_init=arguments.gate_init,
    )
    show_pretraining(pretraining.eval(), prefix_share=0.25)

    segmentation = SegmentationNetwork(
        arguments.finetune_image,
        arguments.patch,
        out_channels=2,
        head="unetr",
        size=arguments.size,
        attention="full+sequence",
        dilation=arguments.dilation,
        gate_init=arguments.finetune_gate_init,
    )
    show_segmentation(segmentation.eval())

    show_scores(pretraining.backbone.grid_size, arguments.dilation)


if __name__ == "__main__":
    main()
