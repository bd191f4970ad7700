"""What the network should compute, written as plain loops over single numbers, slow and independent of its code.

Positions: 0 is the start token, 1..N the patches in raster order (last axis fastest), N + 1 the end token if there is
one. Matrices are nested lists of Python floats (double precision).
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np

Matrix = list[list[float]]
Pairs = dict[int, list[int]]  # query position to the positions that it attends


def may_attend(query: int, key: int, prefix: int | None) -> bool:
    """The prefix-causal mask; a prefix of None attends everywhere."""
    return prefix is None or key <= query or key <= prefix


def patch_coordinates(grid: Sequence[int]) -> list[tuple[int, int, int]]:
    """Coordinates of the patches in raster order."""
    coordinates = []
    for x in range(grid[0]):
        for y in range(grid[1]):
            for z in range(grid[2]):
                coordinates.append((x, y, z))
    return coordinates


def group_of(branch: str, coordinate: Sequence[int], grid: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """``grid``: patches of the same residue modulo r on each axis; ``local``: of the same window of n / r patches."""
    group = []
    for c, n, r in zip(coordinate, grid, dilation, strict=True):
        group.append(c % r if branch == "grid" else c // (n // r))
    return tuple(group)


def attended(
    branch: str, grid: Sequence[int], dilation: Sequence[int], num_end: int, prefix: int | None = None
) -> Pairs:
    """Which positions each query of a branch attends; a position that is no query is absent."""
    coordinates = patch_coordinates(grid)
    num_patches = len(coordinates)
    num_tokens = 1 + num_patches + num_end

    def is_patch(position: int) -> bool:
        return 1 <= position <= num_patches

    def belong_together(query: int, key: int) -> bool:
        if branch == "full":
            return True
        if branch == "sequence":
            return query % dilation[0] == 0 and key % dilation[0] == 0
        if not is_patch(query) or not is_patch(key):  # start and end tokens attend all and are keys of every group
            return True
        query_group = group_of(branch, coordinates[query - 1], grid, dilation)
        return query_group == group_of(branch, coordinates[key - 1], grid, dilation)

    pairs: Pairs = {}
    for query, key in itertools.product(range(num_tokens), repeat=2):
        if belong_together(query, key) and may_attend(query, key, prefix):
            pairs.setdefault(query, []).append(key)
    return pairs


def attention(query: Matrix, key: Matrix, value: Matrix, num_heads: int, pairs: Pairs) -> Matrix:
    """Softmax attention of each query over its keys, head by head; zero at positions that are no query."""
    hidden = len(query[0])
    width = hidden // num_heads
    result = [[0.0] * hidden for _ in query]
    for i, keys in pairs.items():
        for head in range(num_heads):
            channels = range(head * width, (head + 1) * width)
            scores = [sum(query[i][c] * key[j][c] for c in channels) / math.sqrt(width) for j in keys]
            largest = max(scores)
            exponentials = [math.exp(score - largest) for score in scores]
            total = sum(exponentials)
            for c in channels:
                result[i][c] = sum(e / total * value[j][c] for e, j in zip(exponentials, keys, strict=True))
    return result


def linear(rows: Matrix, weight: Matrix, bias: Sequence[float] | None = None) -> Matrix:
    """``row @ weight.T + bias`` for each row."""
    result = []
    for row in rows:
        outputs = []
        for o, weights in enumerate(weight):
            product = sum(x * w for x, w in zip(row, weights, strict=True))
            outputs.append(product + (0.0 if bias is None else bias[o]))
        result.append(outputs)
    return result


def blend(dilated: Matrix, undilated: Matrix, logit: float) -> Matrix:
    """``share * dilated + (1 - share) * undilated`` with ``share = sigmoid(logit)``."""
    share = 1 / (1 + math.exp(-logit))
    return [
        [share * d + (1 - share) * u for d, u in zip(dilated_row, undilated_row, strict=True)]
        for dilated_row, undilated_row in zip(dilated, undilated, strict=True)
    ]


def attention_layer(
    tokens: Matrix,
    weights: dict[str, list],
    mode: str,
    num_heads: int,
    grid: Sequence[int],
    dilation: Sequence[int],
    num_end: int,
    prefix: int | None,
) -> Matrix:
    """One attention layer on the tokens of one sample, projections and gate included.

    ``weights`` has the names of the layer's state dict. The branches are blended after their output projections, as in
    AR-SSL4M-DEMO's formula, for shared projections as well.
    """

    def branch_output(name: str, prefix_of_names: str) -> Matrix:
        projection = weights[f"{prefix_of_names}qkv.weight"]
        hidden = len(tokens[0])
        query = linear(tokens, projection[:hidden])
        key = linear(tokens, projection[hidden : 2 * hidden])
        value = linear(tokens, projection[2 * hidden :])
        mixed = attention(query, key, value, num_heads, attended(name, grid, dilation, num_end, prefix))
        return linear(mixed, weights[f"{prefix_of_names}out.weight"], weights[f"{prefix_of_names}out.bias"])

    names = ["full"] if mode == "none" else mode.split("+")
    undilated = branch_output(names[0], "")
    if len(names) == 1:
        return undilated
    dilated = branch_output(names[1], "dilated_" if "dilated_qkv.weight" in weights else "")
    return blend(dilated, undilated, weights["gate.logit"][0])


def sincos_table(grid: Sequence[int], hidden: int) -> Matrix:
    """Fixed position of each patch: a third of the channels per axis, in it sines first, then cosines."""
    third = hidden // 3
    table = []
    for coordinate in patch_coordinates(grid):
        row = []
        for n in coordinate:
            angles = [n * 10000 ** (-k / (third / 2)) for k in range(third // 2)]
            row += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
        table.append(row)
    return table


def cut_patches(image: np.ndarray, patch_size: Sequence[int]) -> Matrix:
    """Patches of one image ``(C, X, Y, Z)`` in raster order, each as its pixels: channel, x, y, z."""
    p, q, r = patch_size
    _, size_x, size_y, size_z = image.shape
    patches = []
    for x in range(0, size_x, p):
        for y in range(0, size_y, q):
            for z in range(0, size_z, r):
                patches.append([float(v) for v in image[:, x : x + p, y : y + q, z : z + r].ravel(order="C")])
    return patches


def next_patch_target(image: np.ndarray, patch_size: Sequence[int], norm_pixel: bool) -> Matrix:
    """Patches of one image, each normalised by its own mean and unbiased variance plus 1e-6, or raw."""
    patches = cut_patches(image, patch_size)
    if not norm_pixel:
        return patches
    targets = []
    for pixels in patches:
        mean = sum(pixels) / len(pixels)
        variance = sum((v - mean) ** 2 for v in pixels) / (len(pixels) - 1)
        targets.append([(v - mean) / math.sqrt(variance + 1e-6) for v in pixels])
    return targets


def next_patch_loss(
    prediction: np.ndarray, image: np.ndarray, prefix: Sequence[int], patch_size: Sequence[int], norm_pixel: bool
) -> float:
    """Mean square error over all pixels of all patches after the prefix, pooled over the batch.

    ``prediction`` is ``(B, N + 2, pixels)``; position i predicts the patch at position i + 1.
    """
    total, count = 0.0, 0
    for sample, length in enumerate(prefix):
        targets = next_patch_target(image[sample], patch_size, norm_pixel)
        for position in range(1, len(targets) + 1):  # of the patch that is predicted
            if position <= length:
                continue
            for pixel, wanted in enumerate(targets[position - 1]):
                total += (float(prediction[sample, position - 1, pixel]) - wanted) ** 2
                count += 1
    return total / count
