"""Where there is no GPU, Triton runs kernels in its interpreter, which must be known before anything imports it."""

import importlib.util
import os

if importlib.util.find_spec("torch"):
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
