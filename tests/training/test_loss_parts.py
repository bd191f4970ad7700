"""The loss per kind and without copies is what plain loops over samples and patches compute."""

from types import SimpleNamespace

import pytest
import torch
from digar.data.sequences import Contrast, Semantic, Spatial, prepare_next_patch
from digar.training.loss_parts import LossParts
from digar.training.losses import NextPatchLoss, next_patch_target, pooled_loss_metric
from monai.engines import SupervisedEvaluator
from torch import nn

SIZE, PATCH, N = (4, 4, 16), (2, 2, 2), 2 * 2 * 8
KINDS = ("spatial", "contrast", "semantic")
ORDERS = pytest.mark.parametrize("token_order", ["raster", "volume"])


class Zeros(nn.Module):
    """Predicts zero everywhere, so that each patch's error is the mean square of its target."""

    def forward(self, image, prefix):
        return torch.zeros(len(image), N + 2, 8)


def make_parts(loss_function: NextPatchLoss, slab_offset: int | None) -> LossParts:
    kinds = Spatial(SIZE, None, slab_offset), Contrast(SIZE, None, "abcd"), Semantic(SIZE, None)
    return LossParts(loss_function, "val_loss", dict(zip(KINDS, kinds, strict=True)))


def make_batches(kinds: list[list[int]]) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.rand(len(kind), 1, *SIZE, generator=generator) * torch.rand(1, generator=generator) * 5,
            "prefix": torch.randint(0, N, (len(kind),), generator=generator),
            "kind": torch.tensor(kind),
            "extents": torch.zeros(len(kind), 4, 3),
        }
        for kind in kinds
    ]


def run(batches: list[dict], token_order: str, slab_offset: int | None, times: int = 1) -> dict[str, float]:
    loss_function = NextPatchLoss(PATCH, norm_pixel=False, token_order=token_order)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=batches,
        network=Zeros(),
        prepare_batch=prepare_next_patch,
        decollate=False,
        key_val_metric={"val_loss": pooled_loss_metric(loss_function)},
        val_handlers=[make_parts(loss_function, slab_offset)],
    )
    for _ in range(times):
        evaluator.run()
    return evaluator.state.metrics


def expected(batches: list[dict], token_order: str, copied_z: set[int]) -> dict[str, float]:
    """By loops; ``copied_z`` are the z places (of 8) whose patches are copies in spatial samples."""
    z_places = [z for _ in range(4) for z in range(8)]
    if token_order == "volume":
        z_places = [2 * part + k for part in range(4) for _ in range(4) for k in range(2)]
    errors: dict[str, list] = {}
    for batch in batches:
        targets = next_patch_target(batch["image"], PATCH, False, token_order)
        for target, prefix, kind in zip(targets, batch["prefix"], batch["kind"], strict=True):
            for place in range(int(prefix), N):
                error = target[place].square().mean().item()
                errors.setdefault("val_loss", []).append(error)
                errors.setdefault(f"val_loss/{KINDS[kind]}", []).append(error)
                if not (kind == 0 and z_places[place] in copied_z):
                    errors.setdefault("val_loss_not_copied", []).append(error)
    if not copied_z:
        del errors["val_loss_not_copied"]
    return {name: sum(values) / len(values) for name, values in errors.items()}


@ORDERS
def test_kinds_and_patches_that_are_no_copies_have_their_own_means(token_order):
    batches = make_batches([[0, 1, 0], [2, 0], [1]])
    metrics = run(batches, token_order, slab_offset=1)  # slabs of 4 slices, patches of 2: offset 2 apart repeat
    assert metrics == pytest.approx(expected(batches, token_order, copied_z={4, 6}), rel=1e-5)


@ORDERS
def test_of_a_contiguous_crop_nothing_is_a_copy_and_absent_kinds_have_no_mean(token_order):
    batches = make_batches([[0, 2], [0]])
    metrics = run(batches, token_order, slab_offset=None)
    assert set(metrics) == {"val_loss", "val_loss/spatial", "val_loss/semantic"}
    assert metrics == pytest.approx(expected(batches, token_order, copied_z=set()), rel=1e-5)


def test_the_next_epoch_starts_from_nothing():
    batches = make_batches([[0, 1], [2, 0]])
    assert run(batches, "raster", 1, times=3) == pytest.approx(run(batches, "raster", 1))


def test_an_epoch_resumed_in_its_middle_goes_on_with_what_it_had():
    batches = make_batches([[0, 1], [2, 0], [1, 1], [0, 2]])
    whole = run(batches, "raster", slab_offset=None)
    loss_function = NextPatchLoss(PATCH, norm_pixel=False)
    parts = [make_parts(loss_function, slab_offset=None) for _ in range(2)]

    def see(part: LossParts, batch: dict) -> None:
        target = batch["image"], batch["prefix"], batch["kind"]
        loss_function.local(torch.zeros(2, N + 2, 8), target)
        engine = SimpleNamespace(state=SimpleNamespace(output={"label": target}, metrics={}))
        part.remember(engine)
        part.collect(engine)

    for part, half in zip(parts, (batches[:2], batches[2:]), strict=True):
        for batch in half:
            see(part, batch)
        if part is parts[0]:
            parts[1].load_state_dict(part.state_dict())
            parts[1].start(SimpleNamespace(state=SimpleNamespace(iteration=6, epoch_length=4)))
    engine = SimpleNamespace(state=SimpleNamespace(metrics={}))
    parts[1].write(engine)
    assert engine.state.metrics == pytest.approx({name: whole[name] for name in engine.state.metrics}, rel=1e-5)
    assert len(engine.state.metrics) == len(KINDS)
