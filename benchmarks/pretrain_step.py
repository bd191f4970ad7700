"""One step of pretraining (forward, backward, optimizer): the published way, MONAI's ViT, and DiGAR's modes.

    python -m benchmarks.pretrain_step --output step.json
    python -m benchmarks.pretrain_step --variants published-float32 none-bf16 --rounds 5
    python -m benchmarks.pretrain_step --profile none-bf16

Everything takes the same volumes, which lie on the device already, with the same prefix lengths. What is compared:

- ``published-*``: AR-SSL4M's step as its program does it: q, k and v projected apart, a dense ``(B, 1, S, S)`` mask
  handed to PyTorch's attention, predicted pixels picked by Boolean indexing, plain AdamW; float32, as published, and
  under bf16 autocast. It is written anew here, and its weights carry the published names: a test loads them into
  DiGAR and finds the same loss.
- ``vit-*``: MONAI's ViT of the same size with a linear layer to the pixels, mean square error, no mask, fused AdamW.
- ``none-*`` and the gated modes: this bundle's network, loss and fused AdamW. ``local,grid`` are layers in turn.
  ``-cheap`` and ``-all`` have activation checkpointing, ``-compiled`` compiled blocks.

Memory is told thrice, at two batch sizes. ``peak``: what the step takes on top of the network, gradients and the
optimizer's two moments included, which are three times the weights and the same for all who train with AdamW in float32
and clip gradients by their norm. ``beyond``: the peak less these. ``kept``: what autograd holds between the forward and
the backward pass, counted tensor by tensor, so that it is exact; with ``-all`` the block that is being computed anew
comes on top. Compiled code and ``-cheap`` hold theirs elsewhere: their cells stay empty.

Before that, the rates that this machine reaches in the matrix products of ``none``, alone: with their FLOPs they give
a floor, the seconds per step below which no program that does these products with these kernels can go.
"""

import argparse
import functools
import math
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from digar.networks import SIZES, PretrainingNetwork
from digar.networks.compilation import compile_blocks
from digar.networks.patches import to_patches
from digar.networks.position import sincos_position
from digar.networks.recomputation import CHECKPOINTING
from digar.training.losses import NextPatchLoss, next_patch_target
from monai.networks.blocks import MLPBlock
from monai.networks.nets import ViT
from torch import Tensor, nn

from benchmarks.measure import (
    DTYPES,
    MIB,
    default_device,
    kept_for_backward,
    machine_facts,
    peak_memory,
    print_machine,
    print_table,
    seconds_in_turns,
    write_json,
)

PUBLISHED, PLAIN = "published-float32", "none-bf16"  # what the ratios are taken to
VARIANTS = [
    PUBLISHED,
    "published-bf16",
    "vit-float32",
    "vit-bf16",
    "none-float32",
    PLAIN,
    "full+sequence-bf16",
    "local+grid-bf16",
    "local,grid-bf16",
    "none-bf16-cheap",
    "none-bf16-all",
    "none-bf16-compiled",
    "full+sequence-bf16-cheap",
    "full+sequence-bf16-compiled",
]


def parse_variant(variant: str) -> tuple[str, str, str]:
    """``none-bf16-cheap`` as what is trained, the precision, and what is done on top or nothing."""
    name, precision, *on_top = variant.split("-")
    return name, precision, on_top[0] if on_top else ""


@dataclass(frozen=True)
class Setting:
    """What every variant has in common; image and patch in voxels along each axis."""

    size: str
    image: int
    patch: int
    batch: int
    device: str

    @property
    def num_patches(self) -> int:
        return (self.image // self.patch) ** 3


# The published way


class PublishedAttention(nn.Module):
    """Plain attention with q, k and v apart and a dense additive mask."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.o_proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (
            projection(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, S, d)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class PublishedLayer(nn.Module):
    """Pre-norm block."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(hidden_size)
        self.self_attn = PublishedAttention(hidden_size, num_heads)
        self.post_attention_layernorm = nn.LayerNorm(hidden_size)
        self.mlp = MLPBlock(hidden_size, 4 * hidden_size, dropout_rate=0.0)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        tokens = tokens + self.self_attn(self.input_layernorm(tokens), mask)
        return tokens + self.mlp(self.post_attention_layernorm(tokens))


class PublishedNetwork(nn.Module):
    """AR-SSL4M's pretraining network, under the published names of its weights."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        sizes = SIZES[setting.size]
        self.hidden_size = sizes["hidden_size"]
        self.patchifier = nn.Module()
        self.patchifier.proj = nn.Conv3d(1, self.hidden_size, kernel_size=setting.patch, stride=setting.patch)
        self.embed_tokens = nn.Embedding(4, self.hidden_size)
        self.layers = nn.ModuleList(
            PublishedLayer(self.hidden_size, sizes["num_heads"]) for _ in range(sizes["num_layers"])
        )
        self.norm = nn.LayerNorm(self.hidden_size)
        self.decoder_pred = nn.Linear(self.hidden_size, setting.patch**3)

    def forward(self, image: Tensor, allowed: Tensor) -> Tensor:
        """``(B, 1, X, Y, Z)`` and a Boolean mask ``(B, S, S)`` to predicted pixels ``(B, S, pixels)``."""
        embedded = self.patchifier.proj(image)  # (B, hidden, t, h, w)
        ends = self.embed_tokens(torch.tensor([[1, 2]], device=image.device)).expand(image.shape[0], -1, -1)
        tokens = torch.cat([ends[:, :1], embedded.flatten(2).transpose(1, 2), ends[:, 1:]], dim=1)
        position = sincos_position(embedded.shape[2:], self.hidden_size)  # anew in every step, as published
        tokens = tokens + F.pad(position, (0, 0, 1, 1)).to(tokens.device)
        lowest = torch.finfo(tokens.dtype).min
        mask = torch.zeros(allowed.shape, dtype=tokens.dtype, device=tokens.device).masked_fill_(~allowed, lowest)
        for layer in self.layers:
            tokens = layer(tokens, mask[:, None])
        return self.decoder_pred(self.norm(tokens))


def published_loss(prediction: Tensor, image: Tensor, prefix: Tensor, patch: int) -> Tensor:
    """Mean square error over the pixels after the prefix, picked one by one."""
    pixels = to_patches(image, (patch,) * 3)
    pixels = (pixels - pixels.mean(dim=-1, keepdim=True)) / (pixels.var(dim=-1, keepdim=True) + 1e-6).sqrt()
    after_prefix = torch.arange(pixels.shape[1], device=prefix.device) >= prefix[:, None]  # (B, N)
    chosen = after_prefix[..., None].repeat_interleave(pixels.shape[-1], dim=-1)
    error = (prediction.float()[:, :-2].contiguous() - pixels) ** 2
    return error[chosen].mean()


# Steps


class Batch(NamedTuple):
    """Volumes ``(B, 1, X, Y, Z)``, prefix lengths ``(B,)``, and the mask that published data workers send."""

    image: Tensor
    prefix: Tensor
    allowed: Tensor


def make_batch(setting: Setting) -> Batch:
    """Random volumes; prefixes spread evenly over 0..N, so that half of the patches are predicted, as on average."""
    image = torch.rand(setting.batch, 1, *[setting.image] * 3, generator=torch.Generator().manual_seed(0))
    prefix = ((torch.arange(setting.batch) + 0.5) / setting.batch * setting.num_patches).long()
    position = torch.arange(setting.num_patches + 2)
    allowed = (position <= position[:, None]) | (position <= prefix[:, None, None])  # (B, S, S)
    return Batch(*(tensor.to(setting.device) for tensor in (image, prefix, allowed)))


class Trainable(NamedTuple):
    """A network with its optimizer, and the loss of a batch as a scalar."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Batch], Tensor]


def published(setting: Setting) -> Trainable:
    """AR-SSL4M's."""
    network = PublishedNetwork(setting).to(setting.device)

    def loss(batch: Batch) -> Tensor:
        return published_loss(network(batch.image, batch.allowed), batch.image, batch.prefix, setting.patch)

    return Trainable(network, torch.optim.AdamW(network.parameters(), lr=1e-4), loss)


def monai_vit(setting: Setting) -> Trainable:
    """MONAI's ViT: every token sees every other and predicts its own patch."""
    sizes, patch = SIZES[setting.size], (setting.patch,) * 3
    width = sizes["hidden_size"]
    warnings.filterwarnings("ignore", "torch.meshgrid")  # MONAI's positions
    vit = ViT(
        in_channels=1,
        img_size=(setting.image,) * 3,
        patch_size=patch,
        hidden_size=width,
        mlp_dim=4 * width,
        num_layers=sizes["num_layers"],
        num_heads=sizes["num_heads"],
        pos_embed_type="sincos",
    )
    network = nn.ModuleDict({"vit": vit, "head": nn.Linear(width, setting.patch**3)}).to(setting.device)

    def loss(batch: Batch) -> Tensor:
        prediction = network["head"](network["vit"](batch.image)[0])
        return F.mse_loss(prediction.float(), next_patch_target(batch.image, patch))

    return Trainable(network, torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True), loss)


def digar(setting: Setting, attention: str, on_top: str) -> Trainable:
    """This bundle's; ``attention`` is a mode, or modes with commas between, which the layers take in turn."""
    checkpointing = on_top if on_top in CHECKPOINTING else "none"
    arguments = {"size": setting.size, "attention": attention.split(","), "checkpointing": checkpointing}
    network = PretrainingNetwork(setting.image, setting.patch, **arguments).to(setting.device)
    if on_top == "compiled" and not compile_blocks(network, True):
        raise RuntimeError("there is no compiler here: leave the compiled variants out")
    objective = NextPatchLoss((setting.patch,) * 3)

    def loss(batch: Batch) -> Tensor:
        return objective(network(batch.image, batch.prefix), (batch.image, batch.prefix))

    return Trainable(network, torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True), loss)


def build_trainable(name: str, on_top: str, setting: Setting) -> Trainable:
    """What a variant trains, by its name, without the precision."""
    torch.manual_seed(0)
    if name == "published":
        return published(setting)
    if name == "vit":
        return monai_vit(setting)
    return digar(setting, name, on_top)


def build_step(
    variant: str, setting: Setting, build: Callable[[str, str, Setting], Trainable] = build_trainable
) -> Callable[[], Tensor]:
    """One whole training step of a variant, ready to be called; it returns the loss."""
    name, precision, on_top = parse_variant(variant)
    trainable, batch = build(name, on_top, setting), make_batch(setting)

    def step() -> Tensor:
        loss = forward_loss(trainable, batch, precision)
        loss.backward()
        trainable.optimizer.step()
        trainable.optimizer.zero_grad()
        return loss.detach()

    return step


def forward_loss(trainable: Trainable, batch: Batch, precision: str) -> Tensor:
    """The loss; under bf16 autocast, DiGAR's casts of the weights are not cached, as in its trainer."""
    ours = isinstance(trainable.network, PretrainingNetwork)
    enabled = precision == "bf16"
    with torch.autocast(batch.image.device.type, torch.bfloat16, enabled=enabled, cache_enabled=not ours):
        return trainable.loss(batch)


# The floor: the matrix products of `none` alone


class Product(NamedTuple):
    """A product ``(rows, inner) x (inner, columns)``, ``batch`` of them at once, ``count`` times in a step."""

    name: str
    batch: int
    rows: int
    inner: int
    columns: int
    count: int
    input_gradient: bool = True  # False: the input is the image
    transposed: bool = True  # the right factor lies in memory as (columns, inner), as weights and keys do

    @property
    def gflop(self) -> float:
        """Of one of its products."""
        return 2e-9 * self.batch * self.rows * self.inner * self.columns


def layer_products(setting: Setting) -> list[Product]:
    """The matrix products of one step of ``none``."""
    width, layers, heads = (SIZES[setting.size][key] for key in ("hidden_size", "num_layers", "num_heads"))
    length, pixels = setting.num_patches + 2, setting.patch**3
    tokens, all_heads, head_width = setting.batch * length, setting.batch * heads, width // heads
    return [
        Product("patch embedding", 1, setting.batch * setting.num_patches, pixels, width, 1, input_gradient=False),
        Product("q, k, v", 1, tokens, width, 3 * width, layers),
        Product("attention scores", all_heads, length, head_width, length, layers),
        Product("attention values", all_heads, length, length, head_width, layers, transposed=False),
        Product("attention out", 1, tokens, width, width, layers),
        Product("MLP in", 1, tokens, width, 4 * width, layers),
        Product("MLP out", 1, tokens, 4 * width, width, layers),
        Product("pixels", 1, tokens, width, pixels, 1),
    ]


def product_calls(product: Product, dtype: torch.dtype, device: str) -> dict[str, Callable[[], Tensor]]:
    """The forward product and the two of the backward pass."""

    def random(*shape: int) -> Tensor:
        return torch.randn(*([product.batch] if product.batch > 1 else []), *shape, dtype=dtype, device=device)

    left, gradient = random(product.rows, product.inner), random(product.rows, product.columns)
    if product.transposed:
        stored = random(product.columns, product.inner)
        right = stored.mT
    else:
        right = random(product.inner, product.columns)
    calls: dict[str, Callable[[], Tensor]] = {
        "forward": lambda: left @ right,
        "weight gradient": lambda: gradient.mT @ left if product.transposed else left.mT @ gradient,
    }
    if product.input_gradient:
        calls["input gradient"] = lambda: gradient @ right.mT
    return calls


def measure_products(setting: Setting, rounds: int) -> list[dict]:
    """A row per product and dtype: GFLOP per step, GFLOP/s of each direction, and the seconds per step they imply."""
    rows = []
    for product in layer_products(setting):
        for dtype_name, dtype in DTYPES.items():
            turns = seconds_in_turns(product_calls(product, dtype, setting.device), rounds, setting.device, warm_up=2)
            seconds = {direction: min(values) for direction, values in turns.items()}  # a floor: the fastest
            rows.append(
                {
                    "product": product.name,
                    "dtype": dtype_name,
                    "gflop_per_step": product.gflop * product.count * len(seconds),
                    "gflop_per_second": {name: product.gflop / s for name, s in seconds.items()},
                    "seconds_per_step": product.count * sum(seconds.values()),
                }
            )
    return rows


# The command


def step_gflop(name: str, setting: Setting) -> float:
    """Of the matrix products of one step of this bundle's network; the scores of each layer's mode, as they are."""
    arguments = {"size": setting.size, "attention": name.split(",")}
    with torch.device("meta"):
        blocks = PretrainingNetwork(setting.image, setting.patch, **arguments).backbone.blocks
    gflop = 0.0
    plain = (setting.num_patches + 2) ** 2 * len(blocks)
    for product in layer_products(setting):
        share = sum(block.attention.num_scores for block in blocks) / plain if product.batch > 1 else 1.0
        gflop += product.gflop * product.count * (2 + product.input_gradient) * share
    return gflop


def measure_steps(variants: Sequence[str], setting: Setting, rounds: int, floors: dict[str, float]) -> list[dict]:
    """A row per variant: seconds per step, ratios, tokens per second, and the share of the rate of products."""
    shared = functools.cache(build_trainable)  # the two precisions of a network share its weights
    turns = seconds_in_turns({v: build_step(v, setting, shared) for v in variants}, rounds, setting.device)
    seconds = {variant: statistics.median(values) for variant, values in turns.items()}
    shared.cache_clear()
    rows = []
    for variant in variants:
        name, precision, _ = parse_variant(variant)
        rate = step_gflop("none", setting) / floors[precision]  # GFLOP/s of the products alone
        ours = name not in ("published", "vit")
        rows.append(
            {
                "variant": variant,
                "seconds": seconds[variant],
                "fastest": min(turns[variant]),
                "to_published": seconds[variant] / seconds[PUBLISHED] if PUBLISHED in seconds else None,
                "to_none_bf16": seconds[variant] / seconds[PLAIN] if PLAIN in seconds else None,
                "tokens_per_second": setting.batch * (setting.num_patches + 2) / seconds[variant],
                "product_rate_share": step_gflop(name, setting) / seconds[variant] / rate if ours else None,
            }
        )
    return rows


def measure_memory(variants: Sequence[str], setting: Setting) -> list[dict]:
    """A row per variant, in MiB: peak, its part beyond gradients and moments, what is kept."""
    rows: list[dict] = []
    for variant in variants:
        name, precision, on_top = parse_variant(variant)
        trainable, batch = build_trainable(name, on_top, setting), make_batch(setting)
        state = 3 * sum(p.numel() * p.element_size() for p in trainable.network.parameters()) / MIB
        forward = functools.partial(forward_loss, trainable, batch, precision)
        kept = None if on_top in ("compiled", "cheap") else kept_for_backward(trainable.network, forward)
        peak = peak_memory(build_step, (variant, setting), setting.device, calls=2)
        rows.append({"variant": variant, "batch": setting.batch, "peak": peak, "beyond": peak - state, "kept": kept})
    published = next((row for row in rows if row["variant"] == PUBLISHED), None)
    for row in rows:
        for key in ("peak", "beyond", "kept"):
            known = published is not None and row[key] is not None
            row[f"{key}_to_published"] = row[key] / published[key] if known else None
    return rows


def profile_step(variant: str, setting: Setting) -> None:
    """Print the heaviest operators of one step."""
    step = build_step(variant, setting)
    step()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if setting.device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        step()
    order = "self_device_time_total" if setting.device == "cuda" else "self_cpu_time_total"
    averages = profile.key_averages(group_by_input_shape=True)
    print(averages.table(sort_by=order, row_limit=25, max_name_column_width=40))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="One step of pretraining, timed side by side.")
    parser.add_argument("--size", default="base", choices=list(SIZES))
    parser.add_argument("--image", type=int, default=128, help="voxels along each axis (default 128)")
    parser.add_argument("--patch", type=int, default=16, help="voxels along each axis (default 16)")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--memory-batches", nargs="*", type=int, default=[2, 8], help="batch sizes to tell memory at")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds; in each, every variant runs once")
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS)
    parser.add_argument("--threads", type=int, help="of PyTorch on a CPU (default: its own choice)")
    parser.add_argument("--device", default=default_device(), choices=["cpu", "cuda"])
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--profile", choices=VARIANTS, help="print the heaviest operators of this variant, and stop")
    arguments = parser.parse_args(argv)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    setting = Setting(arguments.size, arguments.image, arguments.patch, arguments.batch, arguments.device)
    machine = machine_facts(setting.device)
    print_machine(machine)
    if arguments.profile:
        profile_step(arguments.profile, setting)
        return

    products = measure_products(setting, arguments.rounds)
    directions = ("forward", "input gradient", "weight gradient")
    print_table(
        "Matrix products of `none` alone, GFLOP/s",
        ["product", "dtype", "GFLOP per step", *directions, "seconds per step"],
        [
            [
                row["product"],
                row["dtype"],
                row["gflop_per_step"],
                *(row["gflop_per_second"].get(direction) for direction in directions),
                row["seconds_per_step"],
            ]
            for row in products
        ],
    )
    floors = {d: math.fsum(row["seconds_per_step"] for row in products if row["dtype"] == d) for d in DTYPES}
    print("\nFloor of `none`: " + ", ".join(f"{seconds:.3g} s in {dtype}" for dtype, seconds in floors.items()))

    steps = measure_steps(arguments.variants, setting, arguments.rounds, floors)
    print_table(
        f"One step, {setting.size}, batch {setting.batch}, {setting.image}^3 voxels in {setting.patch}^3 patches",
        ["variant", "seconds", "fastest", "to published", "to none-bf16", "tokens/s", "share of product rate"],
        [list(row.values()) for row in steps],
    )
    memory = []
    for batch_size in arguments.memory_batches:
        rows = measure_memory(arguments.variants, replace(setting, batch=batch_size))
        print_table(
            f"Memory of a step at batch {batch_size}, MiB",
            ["variant", "batch", "peak", "beyond", "kept", "peak to published", "beyond", "kept"],
            [list(row.values()) for row in rows],
        )
        memory.extend(rows)
    content = {"benchmark": "pretrain_step", "machine": machine, "setting": asdict(setting), "rounds": arguments.rounds}
    write_json(
        arguments.output, {**content, "products": products, "floor_seconds": floors, "steps": steps, "memory": memory}
    )


if __name__ == "__main__":
    main()
