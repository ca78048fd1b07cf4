"""Where a token is: the two position modes over the patch grid of F frames, Y rows and X columns.

sincos3d is added to the patch embedding (the published ContentV; formula as diffusers' get_3d_sincos_pos_embed with
spatial scale 0.5 and temporal scale 1); rope3d rotates video queries and keys (Su et al., arXiv 2104.09864, on three
axes as CogVideoX). Tokens run in the order (f, y, x). Axis tables are tiny and made on the host; only their spread over
the tokens a rank has is large, and that happens on the device, in fp32.
"""

import torch

from .config import ROPE_THETA

SPATIAL_SCALE = 0.5
"""Published: rows and columns are divided by it, so that they count half patches."""

Rotation = tuple[torch.Tensor, torch.Tensor]
"""(cos_SR, sin_SR), fp32, R = E/2 pairs: pair (i, i + R) of a head turns by angle i."""

Grid = tuple[int, int, int]


def sincos3d(grid: Grid, width: int, tokens: range, device: torch.device) -> torch.Tensor:
    """[tokens, D] fp32: a quarter of the width for the frame, three eighths each for column and row."""
    frames, rows, columns = (torch.arange(size, dtype=torch.float64) for size in grid)
    spatial = 3 * width // 8
    return _spread(
        grid,
        tokens,
        frame=_sincos(frames, width // 4).to(device),
        row=_sincos(rows / SPATIAL_SCALE, spatial).to(device),
        column=_sincos(columns / SPATIAL_SCALE, spatial).to(device),
        # The published table writes the column before the row.
        order=("frame", "column", "row"),
    )


def rope3d(grid: Grid, head_width: int, tokens: range, device: torch.device) -> Rotation:
    """Rotation of the pairs [frame | row | column], 1/4, 3/8 and 3/8 of them, integer positions, theta 10000."""
    frames, rows, columns = (torch.arange(size, dtype=torch.float32) for size in grid)
    spatial = 3 * head_width // 8
    angles = _spread(
        grid,
        tokens,
        frame=_angles(frames, head_width // 4).to(device),
        row=_angles(rows, spatial).to(device),
        column=_angles(columns, spatial).to(device),
        order=("frame", "row", "column"),
    )
    return angles.cos(), angles.sin()


def _sincos(positions: torch.Tensor, width: int) -> torch.Tensor:
    """[positions, width]: sines of all frequencies, then cosines."""
    frequencies = 1.0 / 10_000 ** (torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angles = torch.outer(positions, frequencies)
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def _angles(positions: torch.Tensor, width: int) -> torch.Tensor:
    """[positions, width / 2] fp32, in fp32 throughout as CogVideoX has it."""
    frequencies = 1.0 / ROPE_THETA ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    return torch.outer(positions, frequencies)


def _spread(grid: Grid, tokens: range, *, frame, row, column, order: tuple[str, str, str]) -> torch.Tensor:
    """Axis tables to one row for each of the tokens asked for: [F, a], [Y, b], [X, c] -> [tokens, a + b + c]."""
    _, rows, columns = grid
    index = torch.arange(tokens.start, tokens.stop, device=frame.device)
    spread = {
        "frame": frame[index // (rows * columns)],
        "row": row[index // columns % rows],
        "column": column[index % columns],
    }
    return torch.cat([spread[axis] for axis in order], dim=-1)
