"""Instructions that say nothing, and damaged ones."""

import numpy as np
import pytest

from oxe_curate.quality.episodes import EpisodeBatch
from oxe_curate.quality.letters import Letters
from oxe_curate.quality.text_damage import DAMAGE_KINDS, damage_kind
from oxe_curate.quality.words import EMPTY_KINDS, Words, empty_kind

GOOD = [
    "pick up the cup", "Pick up the Cup.", "reach", "insert", "drawer-open-v2", "put the can (blue) on top",
    "stir", "pick up the 7up can", "pick up the test tube", "stack the blocks a and b", "turn it on",
    "place the 3x4 brick", "what is in the bowl? pick it", "fold the cloth 50% of the way",
    "pick up the salt & pepper", "close the top-left drawer",
    "put the spoon into the pot, then put the pot into the sink, then put the lid on the pot",
    "put LEGO in box\n", "sort the red, red, red blocks", "end effector reaching red",
    "Recoge todo y ponlo en la caja", "interact with the object", "RECOGE TODO Y PONLO EN LA CAJA",
    "Stell die größere Tasse auf den Tisch", "Lève la tasse près de l'évier", "推", "拿起杯子",
    "请把红色方块放到蓝色碗里", "カップを取る", "컵을 들어", "Поставь кружку на стол", "ارفع الكوب", "कप उठाओ",
    "หยิบถ้วย", "Nắm lấy cái cốc", "ÁRVÍZTŰRŐ TÜKÖRFÚRÓGÉP", "Επίλεξε το φλιτζάνι", "הרם את הכוס",
    "POSE LE CAFÉ”",
]  # fmt: skip


def batch_of(texts: list[str]) -> EpisodeBatch:
    count = len(texts)
    return EpisodeBatch(
        action=np.zeros((count, 7), np.float32),
        proprio=np.zeros((count, 0), np.float32),
        starts=np.arange(count + 1),
        instruction=texts,
        success=np.full(count, -1, np.int8),
    )


def judged(texts: list[str]) -> dict[str, list[bool]]:
    words, batch = Words(), batch_of(texts)
    fitted = words.fit(batch)
    found = words.judge(words.part(batch, fitted), fitted)
    return {name: judgement.exceeds.tolist() for name, judgement in found.items()}


@pytest.mark.parametrize("text", GOOD)
def test_a_text_that_names_a_task_in_any_language_is_fine(text: str) -> None:
    assert (empty_kind(text), damage_kind(text)) == (-1, -1)


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        ("the text says nothing", ["do the task", "Episode_0012", "test", "x", "任务", "Aufgabe 3"]),
        ("a placeholder", ["TODO", "n/a", "None", "null", "asdf", "qwerty", "xxx", "no annotation available"]),
        ("an unfilled template", ["{object}", "pick up the <object>", "put %s in it", "get the XXX", "lift [OBJECT]"]),
        ("no letters", ["12", "???", "...", "🤖", "   ", "2023-01-02 12:33"]),
        ("an identifier, not words", ["/data/a/traj.pkl", "s3://bucket/x", "3f2504e0-4f89-11d3-9a0c-0305e82c3301"]),
        ("the same words again and again", ["lift lift lift lift", "lift the cup " * 9, "拿起杯子" * 4, "aaaaaa cup"]),
        ("an absurdly long text", [" ".join(f"lift cup {i}" for i in range(200))]),
        ("letters at random", ["zxcvt bnmk", "xkcd qrstv"]),
    ],
)  # fmt: skip
def test_texts_that_say_nothing(kind: str, texts: list[str]) -> None:
    assert [EMPTY_KINDS[empty_kind(text)] for text in texts] == [kind] * len(texts)


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        (
            "text decoded with the wrong character set",
            ["lÃ¨ve la tasse", "itâ€™s a cup", "РџРѕРґРЅРёРјРё С‡Р°С€РєСѓ", "√©l√®ve-la", "ïîñòàâü êðóæêó"],
        ),
        ("a replacement character", ["lift the caf\ufffd", "d?placer la tasse"]),
        ("a control or unassigned character", ["lift\x07 it", "\ufefflift the cup", "lift \ue000", "lift \x1b[31mit"]),
        ("an HTML entity", ["cup &amp; saucer", "lift the cup&#39;s lid"]),
        ("an escape sequence", ["lift\\nthe cup", "caf\\u00e9 cup", "lift%20the%20cup", "lift+the+cup"]),
        ("the source code of a value", ["b'lift the cup'", "['lift the cup']", "{'text': 'lift'}", "array([b'lift'"]),
        ("UTF-16 read as another encoding", ["l\x00i\x00f\x00t\x00", b"lift the cup".decode("utf-16-le")]),
        ("encoded text", ["cGljayB1cCB0aGUgY3Vw"]),
        ("the text ends within a phrase", ["lift the cup and", "pick up the "]),
    ],
)  # fmt: skip
def test_damaged_texts(kind: str, texts: list[str]) -> None:
    assert [DAMAGE_KINDS[damage_kind(text)] for text in texts] == [kind] * len(texts)


@pytest.mark.parametrize("codec", ["cp1252", "mac_roman", "cp437", "cp1251"])
def test_utf8_read_with_another_character_set_is_found(codec: str) -> None:
    for text in ("lève la tasse près de l'évier", "größer", "拿起杯子", "поставь кружку"):
        try:
            misread = text.encode().decode(codec)
        except UnicodeDecodeError:
            continue
        assert damage_kind(misread) == 0, misread


def test_a_batch_is_judged_text_by_text() -> None:
    found = judged(["lift the cup", "TODO", "lÃ¨ve", "", "lift the cup"])
    assert found == {
        "meaningless_text": [False, True, False, False, False],
        "damaged_text": [False, False, True, False, False],
    }


def test_texts_that_differ_by_a_serial_number_say_nothing() -> None:
    assert all(judged([f"bridge recording {i}" for i in range(20)])["meaningless_text"])
    assert not any(judged(["lift 1 cup", "lift 2 cups"] * 10)["meaningless_text"])
    assert not any(judged(["lift 1 cup", "push 2 cups", "stack 3 cups", "open 4 drawers"] * 5)["meaningless_text"])


def test_letters_at_random_are_found_unless_other_texts_share_the_words() -> None:
    texts = ["lift the cup", "open the drawer", "push the button"] * 4
    assert judged([*texts, "bkzuw xvoq rtaeg", "wuxq zzko"])["meaningless_text"] == [False] * 12 + [True] * 2
    assert not any(judged([*texts, *["grab the bkzuwq xvoq", "drop the bkzuwq xvoq"]])["meaningless_text"])


@pytest.mark.parametrize(
    "text",
    [
        "wez zielony kubek i wloz do zlewu", "posun cervenou krabici doprava", "nosta kuppi ja aseta se poydalle",
        "quetsche den schwamm", "prendi la tazza e mettila sul tavolo", "pick rxbar blueberry", "knock 7up can over",
        "na qi bei zi fang zai zhuo shang", "skjut lada at hoger", "put ikea skadis pegboard on wall", "xylophone",
    ],
)  # fmt: skip
def test_words_of_other_languages_are_not_letters_at_random(text: str) -> None:
    assert not Letters().is_random(text)
