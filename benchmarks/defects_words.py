"""Defects of instructions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.defects_episode import StoredEpisode
from benchmarks.defects_kinds import Scene, kind

TEXT = ("text",)


def _say(scene: Scene, text: str | bytes) -> StoredEpisode:
    stored = text.encode() if isinstance(text, str) else text
    return scene.episode.with_values(**{scene.parts.text: [stored] * scene.steps})


def _own(scene: Scene) -> str:
    return str(scene.episode.values[scene.parts.text][0].decode())


def _one(scene: Scene, texts: Sequence[str]) -> StoredEpisode:
    return _say(scene, str(scene.rng.choice(texts)))


@kind("no text", *TEXT)
def text_empty(scene: Scene) -> StoredEpisode | None:
    return _say(scene, "")


@kind("only white space", *TEXT)
def text_blank(scene: Scene) -> StoredEpisode | None:
    return _one(scene, [" ", "\n", "\t  ", " "])


@kind("a placeholder", *TEXT)
def text_placeholder(scene: Scene) -> StoredEpisode | None:
    return _one(
        scene,
        ["TODO", "n/a", "N/A", "instruction", "asdf", ".", "None", "null", "nan", "test", "xxx", "<instruction>", "-",
         "language instruction", "tbd", "???", "no label", "placeholder", "{task}", "unknown"],
    )  # fmt: skip


@kind("says nothing", *TEXT)
def text_vague(scene: Scene) -> StoredEpisode | None:
    return _one(
        scene,
        ["do the task", "perform the task", "complete the task", "do it", "do something", "robot manipulation",
         "execute the action", "task 3", "manipulate the object", "demonstration", "move", "follow the instruction"],
    )  # fmt: skip


@kind("a file name or an identifier", *TEXT)
def text_identifier(scene: Scene) -> StoredEpisode | None:
    number = int(scene.rng.integers(1000))
    return _one(
        scene,
        [f"episode_{number:06d}", f"traj{number}.npy", f"/data/robot/run_{number}/out.npy", f"{number:032x}",
         f"2023-05-{number % 28 + 1:02d}_14-02-11", f"{number}"],
    )  # fmt: skip


@kind("damaged encoding", *TEXT)
def text_mojibake(scene: Scene) -> StoredEpisode | None:
    words = _own(scene).split()
    if len(words) < 2:
        return None
    damaged = [
        " ".join(words).replace("e", "Ã©"),
        "â€œ" + " ".join(words) + "â€\x9d",
        " ".join(w[:1] + "\ufffd" + w[2:] for w in words),
        "\\u0070\\u0075t " + " ".join(words[1:]),
        "&quot;" + "&nbsp;".join(words) + "&quot;",
        "\x00".join(" ".join(words)),
        "b'" + " ".join(words) + "'",
    ]
    return _one(scene, damaged)


@kind("bytes that are not UTF-8", *TEXT)
def text_not_utf8(scene: Scene) -> StoredEpisode | None:
    own = _own(scene).encode()
    return _say(scene, own[: len(own) // 2] + b"\xff\xfe\xe9" + own[len(own) // 2 :])


@kind("the text of another task of the data set", *TEXT, touches=("text", "embedding"))
def text_other_task(scene: Scene) -> StoredEpisode | None:
    name = scene.parts.text
    own = set(_own(scene).split())

    def differs(episode: StoredEpisode) -> bool:
        words = set(episode.values[name][0].decode().split())
        return len(own & words) <= max(len(own), len(words)) / 2 and bool(words)

    other = scene.other(differs)
    if other is None:
        return None
    names = (name, *scene.parts.embedding)
    first = {key: other.values[key][0] for key in names}
    return scene.episode.with_values(
        **{
            key: np.repeat(value[None], scene.steps, axis=0) if isinstance(value, np.ndarray) else [value] * scene.steps
            for key, value in first.items()
        }
    )


@kind("far too long: a log or a page instead of an instruction", *TEXT)
def text_long(scene: Scene) -> StoredEpisode | None:
    line = "INFO 2023-05-04 14:02:11 gripper_controller: received goal, executing trajectory with 41 points. "
    return _one(scene, [line * 40, "lorem ipsum dolor sit amet consectetur " * 60, (_own(scene) + " ") * 50])


@kind("letters at random", *TEXT)
def text_gibberish(scene: Scene) -> StoredEpisode | None:
    letters = np.array(list("bcdfghjklmnpqrstvwxzaeiou"))
    words = ["".join(scene.rng.choice(letters, scene.rng.integers(3, 9))) for _ in range(int(scene.rng.integers(2, 6)))]
    return _say(scene, " ".join(words))


@kind("the instruction changes to another task's in the middle", *TEXT)
def text_changes(scene: Scene) -> StoredEpisode | None:
    name = scene.parts.text
    own = scene.episode.values[name]
    other = scene.other(lambda episode: not set(episode.values[name][0].split()) & set(own[0].split()) - {b"the"})
    if other is None:
        return None
    half = scene.steps // 2
    return scene.episode.with_values(**{name: own[:half] + [other.values[name][0]] * (scene.steps - half)})
