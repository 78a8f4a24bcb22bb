"""torch.compile by block: one compilation serves all the like blocks of a network, and parameters keep their names."""

from __future__ import annotations

from torch import nn


def compile_blocks(net: nn.Module) -> int:
    """Compile each block of the network's towers in place.

    Blocks are the entries of its `nn.ModuleList`s that hold no list themselves: a decoder's layers, a ViT's blocks.
    Whole-network compilation takes minutes at 7B and starts again wherever Python decides something between blocks.

    Returns:
        how many blocks.
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
