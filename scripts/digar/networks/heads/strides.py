"""How a head gets from patches back to voxels: one stage per doubling of the resolution."""

from collections.abc import Sequence

Stride = tuple[int, int, int]


def doublings(patch_size: Sequence[int]) -> list[int]:
    """``log2`` of the patch on each axis.

    Raises:
        ValueError: a side of the patch is not a power of two.
    """
    if any(p < 1 or p & (p - 1) for p in patch_size):
        raise ValueError(f"patch_size {tuple(patch_size)} must be powers of two for a segmentation head")
    return [p.bit_length() - 1 for p in patch_size]


def stage_strides(patch_size: Sequence[int], num_stages: int) -> list[Stride]:
    """Stride (1 or 2 per axis) of each stage, finest first; along an axis they multiply to its patch side.

    An axis with fewer doublings takes them in the coarse stages, as thick slices want: (8, 8, 4) in three stages
    gives (2, 2, 1), (2, 2, 2), (2, 2, 2).

    Raises:
        ValueError: a side of the patch is not a power of two, or needs more stages than there are.
    """
    counts = doublings(patch_size)
    if max(counts) > num_stages:
        raise ValueError(
            f"patch_size {tuple(patch_size)} is over {2**num_stages}, the most that {num_stages} stages reach"
        )
    p, q, r = ([2 if stage >= num_stages - n else 1 for stage in range(num_stages)] for n in counts)
    return list(zip(p, q, r, strict=True))


def level_kernels(strides: Sequence[Stride]) -> list[Stride]:
    """Side (1 or 3 per axis) of the convolutions of each level, finest first: one level more than there are stages.

    An axis with fewer doublings to come than another has the thicker voxels there, and is left to the coarser levels,
    as nnU-Net does with thick slices (Isensee et al., Nature Methods 2021): (2, 2, 1), (2, 2, 2) gives (3, 3, 1),
    (3, 3, 3), (3, 3, 3).
    """
    kernels: list[Stride] = []
    for level in range(len(strides) + 1):
        to_come = [sum(stride[axis] == 2 for stride in strides[level:]) for axis in range(3)]
        p, q, r = (3 if n == max(to_come) else 1 for n in to_come)
        kernels.append((p, q, r))
    return kernels
