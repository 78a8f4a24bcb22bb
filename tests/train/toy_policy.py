"""A family small enough to compute by hand, and run folders made with it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from oxe_curate.actions.action_tokens import ActionTokens
from oxe_curate.actions.bounds import Bounds
from oxe_curate.config import to_yaml
from oxe_curate.train.config import TrainConfig
from oxe_curate.train.loop import saved
from oxe_curate.train.models.base import Controller, Family, PolicySpec

SIZE = 8


class ToyFamily(Family):
    """Every action is `base gain * trained scale * (mean red of the window's first camera / 255) + proprio[0]`.

    The k-th action of a chunk is k percent larger. The gripper is the same number.
    """

    name = "openvla"

    def __init__(self, config: TrainConfig, spec: PolicySpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        self.net = nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            self.net.weight.fill_(1.0)
        self.gain = json.loads(Path(config.base, "config.json").read_text())["gain"]

    @classmethod
    def build(cls, config, mixture, device):
        raise NotImplementedError

    @classmethod
    def restore(cls, config, spec, folder, device):
        model = cls(config, spec)
        if folder is not None:
            model.load(folder)
        return model

    @property
    def collator(self):
        return lambda rows: {
            "red": torch.from_numpy(rows.images[:, :, 0, ..., 0].astype(np.float32).mean((2, 3)) / 255),
            "seen": torch.from_numpy(rows.observation_mask.copy()),
            "proprio": torch.from_numpy(rows.proprio.copy()),
        }

    def forward(self, **batch: Any):
        return {"loss": self.predict(batch).mean()}

    def predict(self, batch):
        red = (batch["red"] * batch["seen"]).sum(1) / batch["seen"].sum(1)
        value = self.gain * self.net(red[:, None])
        if self.spec.proprio:
            value = value + batch["proprio"][:, :1]
        larger = 1 + 0.01 * torch.arange(self.spec.chunk)
        return (value[:, None] * larger[None, :, None]).expand(-1, -1, 7).float()

    def parameter_groups(self, weight_decay):
        return [{"params": list(self.net.parameters())}]

    def save(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"scale": self.net.weight.detach().clone()}, folder / "extra.safetensors")

    def load(self, folder):
        with torch.no_grad():
            self.net.weight.copy_(load_file(folder / "extra.safetensors")["scale"])

    def controller(self, compile=True):
        return ToyController(self)

    def export(self, folder, merge):
        if merge:
            gain = self.gain * float(self.net.weight.detach())
            (folder / "config.json").write_text(json.dumps({"model_type": "openvla", "gain": gain}))
        else:
            self.save(folder)


class ToyController(Controller):
    def __init__(self, model):
        self.model, self.reds = model, []

    def act(self, images, instruction, proprio):
        assert images.dtype == np.uint8
        assert images.shape == (len(self.model.spec.cameras), SIZE, SIZE, 3)
        self.reds = [*self.reds, images[0, ..., 0].mean(dtype=np.float32) / 255][-self.model.spec.window :]
        batch = {"red": torch.tensor([self.reds]), "seen": torch.ones(1, len(self.reds), dtype=torch.bool)}
        if proprio is not None:
            batch["proprio"] = torch.from_numpy(proprio)[None]
        return self.model.predict(batch)[0].numpy()

    def reset(self):
        self.reds = []


def statistics(*names: str, scale: float = 0.1, proprio: int = 0) -> dict[str, Any]:
    """Bounds of -scale .. scale (the n-th data set: n times that), gripper 0 .. 1."""
    found = {}
    for i, name in enumerate(names):
        top = np.array([scale * (i + 1)] * 6 + [1.0])
        low = np.append(-top[:6], 0.0)
        found[name] = {
            "action": {
                "mean": [0.0] * 7, "std": [1.0] * 7, "max": [*2 * top[:6], 1.0], "min": [*2 * low[:6], 0.0],
                "q01": low.tolist(), "q99": top.tolist(), "mask": [True] * 6 + [False],
            },
            "num_transitions": 100, "num_trajectories": 10,
        }  # fmt: skip
        if proprio:
            state = np.arange(1.0, proprio + 1)
            found[name]["proprio"] = {
                "mean": [0.0] * proprio, "std": [1.0] * proprio, "max": state.tolist(), "min": (-state).tolist(),
                "q01": (-state).tolist(), "q99": state.tolist(),
            }  # fmt: skip
        Bounds.from_json(found[name])
    return found


def write_base(folder: Path, gain: float = 2.0) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "openvla", "gain": gain}))
    return folder


def write_run(
    folder: Path,
    base: Path,
    *,
    names: tuple[str, ...] = ("bridge_dataset",),
    scale: float = 0.25,
    finished: bool = True,
    checkpoints: tuple[int, ...] = (),
    cameras: tuple[str, ...] = ("primary",),
    window: int = 1,
    chunk: int = 1,
    proprio: int = 0,
    data: Path | None = None,
    **config: Any,
) -> Path:
    """A run folder like that of train, with trained scale `scale`, and `scale * step` at a checkpoint."""
    folder.mkdir(parents=True)
    if data is None:
        (folder / "dataset_statistics.json").write_text(json.dumps(statistics(*names, proprio=proprio), indent=2))
        ActionTokens.default().write(folder / "action_tokens.parquet")
        entries = "".join(f"- {{name: {name}, weight: 1.0}}\n" for name in names)
        (folder / "mixture.yaml").write_text(f"name: toy\ndatasets:\n{entries}")
    else:
        for name in ("dataset_statistics.json", "action_tokens.parquet", "mixture.yaml"):
            (folder / name).write_bytes((data / name).read_bytes())
    hashes = {key: str(saved.file_sha256(folder / name)) for key, name in saved._FILES.items()}
    spec = PolicySpec(
        cameras=cameras, window=window, chunk=chunk, image_size=SIZE, proprio=proprio,
        statistics=json.loads((folder / "dataset_statistics.json").read_text()),
        tokens=tuple(int(i) for i in ActionTokens.default().token_id), bins="openvla", hashes=hashes,
    )  # fmt: skip
    train = TrainConfig(
        data=str(data or "mixture"), base=str(base), run=str(folder), **{"augment": False, "dtype": "fp32", **config}
    )
    (folder / "config.yaml").write_text(to_yaml(train))
    (folder / "run.json").write_text(json.dumps(saved.run_record(train, spec, {"torch": torch.__version__})))
    model = ToyFamily(train, spec)
    for step in checkpoints:
        _save(model, scale * step, folder / f"checkpoint-{step}" / "weights")
    if finished:
        _save(model, scale, folder / "adapter")
    return folder


def _save(model: ToyFamily, scale: float, folder: Path) -> None:
    with torch.no_grad():
        model.net.weight.fill_(scale)
    model.save(folder)


def edit_record(run: Path, **spec: Any) -> None:
    """Change keys of the spec in run.json."""
    record = json.loads((run / "run.json").read_text())
    read = saved.spec_from_json(record["contract"], "test")
    record["contract"] = saved.spec_to_json(replace(read, **spec))
    (run / "run.json").write_text(json.dumps(record))


def red(value: int, size: int = SIZE) -> np.ndarray:
    """An image of one shade of red."""
    image = np.zeros((size, size, 3), np.uint8)
    image[..., 0] = value
    return image
