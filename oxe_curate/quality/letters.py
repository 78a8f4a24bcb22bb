"""How likely the letters of a text follow each other: tells words of any European language from letters at random."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_COMMON = """
about above across add after again against all along also and any apple around arrange arm away back bag ball banana
basket beans between big black block blue board book bottle bottom bowl box bread bring brown brush bucket burger
button cabinet cable can candy cap card carrot carry cheese chicken chip clean close cloth coffee cold color corn
corner counter cover cream cube cucumber cup cut cutting dish dishes distance door down drag drawer drink drop drying
edge eggplant empty faucet fill finger first flip fold food fork forward from front fruit get glass grab grape grasp
green grey gripper hand handle hang hold hot insert inside jar juice keep kettle kitchen knife knock laptop large
leave left lemon lever lid lift light little locker long lower machine maroon metal microwave middle milk mouse move
mug mushroom napkin near next object onion open orange out oven over pan paper peach pear peg pencil pepper pick
picture piece pile pink place plate play plug position pot potato pour press pull purple push put rack reach red
release remove rice right ring roll room rope rotate route salt sauce scissors scoop screw set shelf shirt side silver
sink slice slide slot small snack soap sock soda soft sponge spoon spot spray square stack stand star start steel
sticker stir stone stove strawberry sugar sushi sweep switch table take tape target teapot tea test then throw tissue
toast toaster together tomato tool top towel toward towel toy tray triangle turn twist under unfold until upright
vegetable vertical wall wash water wheel white window wipe with wood wooden wrench yellow zip the this that these
those through three two one four five six seven eight nine ten
"""
_OTHER = """
die tasse nimm stell auf den tisch lege legen schliesse offne schublade greife wurfel rot gelb und dann oben links
rechts coge pon taza mesa cajon abre cierra mueve hacia derecha izquierda rojo verde azul cubo prends mets verre
bouteille dans ouvre ferme tiroir pousse bouton rouge jaune vert prendi metti tazza tavolo apri chiudi cassetto spingi
pulsante pak zet beker op tafel sluit duw blokje podnies kubek postaw stole wez klocek chwyc czerwony niebieski otworz
szuflade zamknij wcisnij przycisk szybko przesun poloz zvedni hrnek vezmi kostku cervenou modrou otevri zasuvku zavri
stiskni tlacitko podnimi chashku postav na stol vozmi kubik krasnyy siniy otkroy zakroy yashchik nazhmi knopku nosta
kuppi aseta poydalle avaa laatikko sulje paina kup masaya koy kirmizi mavi kutu cekmeceyi ac kapat dugmeye bas tag
koppen saet bordet luk skuffe emeld csuporot tedd asztalra nyisd fiok piros kek ambil cangkir letakkan di meja buka
laci tutup chukua kikombe weka mezani na qi bei zi fang zai zhuo shang hong se lan dakai chouti guan koppu wo toru
tsukue ni oku hikidashi akeru shimeru botan
"""
"""Common words of instructions in German, Spanish, French, Italian, Dutch, Polish, Czech, Russian, Finnish, Turkish,
Danish, Hungarian, Indonesian, Swahili, Chinese and Japanese, in plain Latin letters."""
_LETTERS = 27  # the alphabet and the end of a word
_WORD = re.compile(r"[a-z]+")
_LEAST = 8
"""Letters; shorter texts are not judged."""
_RANDOM = -0.25
"""Logarithm of a letter's likelihood relative to letters at random, below which a text is not made of words."""


class Letters:
    """A model of pairs of letters, of English and of the words that several texts of a data set share."""

    def __init__(self, words: Iterable[str] = ()) -> None:
        counts = _usual().copy()
        for word in words:
            _add(counts, word)
        self._likely = np.log(counts / counts.sum(axis=1, keepdims=True) * _LETTERS)
        self._of_word = functools.lru_cache(1 << 14)(self._pairs)

    def is_random(self, text: str) -> bool:
        """Whether a text in Latin letters is made of letters at random; False for short or other texts."""
        text = text.casefold()
        words = _WORD.findall(text)
        letters = sum(map(len, words))
        if letters < _LEAST or letters < 0.9 * sum(c.isalpha() for c in text):
            return False
        return bool(np.concatenate([self._of_word(word) for word in words]).mean() < _RANDOM)

    def _pairs(self, word: str) -> NDArray[np.float64]:
        """The logarithm of the likelihood of each pair of letters."""
        codes = _codes(word)
        found: NDArray[np.float64] = self._likely[codes[:-1], codes[1:]]
        return found


@functools.cache
def _usual() -> NDArray[np.float64]:
    """How often each letter follows each, in common words."""
    counts = np.full((_LETTERS, _LETTERS), 0.3)
    for word in (*_COMMON.split(), *_OTHER.split()):
        _add(counts, word)
    return counts


def _add(counts: NDArray[np.float64], word: str) -> None:
    codes = _codes(word)
    np.add.at(counts, (codes[:-1], codes[1:]), 1)


def _codes(word: str) -> NDArray[np.int64]:
    inner = np.frombuffer(word.encode("ascii", "ignore"), np.uint8).astype(np.int64) - 97
    return np.concatenate(([_LETTERS - 1], np.clip(inner, 0, _LETTERS - 2), [_LETTERS - 1]))
