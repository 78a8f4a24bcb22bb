"""torch.compile for each block: equal blocks share a compilation, and parameters keep their names."""

from __future__ import annotations

from torch import nn


def compile_blocks(net: nn.Module) -> int:
    """Compile each block of a network in place.

    Blocks are entries of `nn.ModuleList`s that contain no such list themselves: a decoder's layers, a ViT's blocks.
    Compiling a whole 7B network takes minutes, and again at each graph break.

    Returns:
        number of blocks.
    """
    blocks = [
        block
        for parent in net.modules()
        if isinstance(parent, nn.ModuleList)
        for block in parent
        if not any(isinstance(inner, nn.ModuleList) for inner in block.modules())
    ]
    for block in blocks:
        block.compile()
    return len(blocks)
