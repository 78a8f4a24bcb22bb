"""Trains in a separate process, on the CPU: python -m tests.train.launched '{settings as JSON}'."""

import json
import sys
import warnings

import torch

from oxe_curate import config
from oxe_curate.train.config import TrainConfig
from oxe_curate.train.loop.run import run_training

if __name__ == "__main__":
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    run_training(config.build(TrainConfig, json.loads(sys.argv[1]), "argument"), progress=False, device="cpu")
