"""Unicode text as it is compared: the one reading that extraction, exact match, F1 and ROUGE share."""

from __future__ import annotations

import unicodedata

import regex

_SUPERSCRIPT_RUN = regex.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_SAME = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\u00ad\ufe63", "-"),  # hyphens, en dash, minus
        **dict.fromkeys("“”„‟«»〝〞", '"'),
        **dict.fromkeys("‘’‚‛′ʼ", "'"),
        "⁄": "/",
        "∕": "/",
        "×": "*",
        "·": "*",
        "⋅": "*",
        "÷": "/",
    }
)
_INVISIBLE = regex.compile(r"[\p{Cf}\p{Cc}\ufe0f\u20e3--[\t\n\r]]", regex.V1)
_TRADITIONAL = str.maketrans("選擇項確錯對應該為綜這題誤", "选择项确错对应该为综这题误")
_VOWEL_SIGNS = regex.compile(r"[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0640\u064b-\u0652\u0670]")
_GREEK = regex.compile(r"\p{Greek}")
_ACCENTS = regex.compile(r"(?<=\p{Greek})[\u0300\u0301\u0342]")
_SPACE = regex.compile(r"[\p{Zs}\t]")

SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}ー々〆"
"""Scripts whose words no space parts, as members of a character class: their tokens are characters."""
_TOKEN = regex.compile(rf"[{SPACELESS}]\p{{M}}*|[\p{{L}}\p{{M}}\p{{N}}--[{SPACELESS}]]+", regex.V1)

_SYMBOL = regex.compile(r"[\p{So}\p{Sk}\p{Emoji_Presentation}--[\x00-\x7f]]", regex.V1)


def fold(text: str) -> str:
    """Return ``text`` in one spelling (NFKC): full width, ligatures, dashes, quotes and spaces made plain.

    Case, line breaks and punctuation stay. A superscript keeps its meaning: "10²" is "10^2", not "102".
    """
    if text.isascii():
        return text.replace("\t", " ").replace("\r\n", "\n")
    text = _SUPERSCRIPT_RUN.sub(lambda m: "^" + unicodedata.normalize("NFKC", m.group()), text)
    text = _mixed_fractions(text)
    text = unicodedata.normalize("NFKC", text).translate(_SAME)
    return _SPACE.sub(" ", _INVISIBLE.sub("", text.replace("\r\n", "\n")))


def folded_case(text: str) -> str:
    """Return :func:`fold` of ``text`` without case ("Straße" and "STRASSE" become one).

    Vowel signs that Arabic and Hebrew leave out at will are left out.
    """
    text = fold(text).casefold()
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", _VOWEL_SIGNS.sub("", text.replace("i\u0307", "i")))


def spelled_alike(text: str) -> str:
    """Return :func:`folded_case` of ``text`` for a closed set of words: without what capitals leave out.

    Those are the accents of Greek and the dot by which Turkish tells i from ı.
    """
    text = folded_case(text).replace("ı", "i")
    if not _GREEK.search(text):
        return text
    return unicodedata.normalize("NFC", _ACCENTS.sub("", unicodedata.normalize("NFD", text)))


def simplified(text: str) -> str:
    """Return ``text`` with the traditional characters by which answers are stated (選擇, 正確) simplified."""
    return text if text.isascii() else text.translate(_TRADITIONAL)


def words(text: str) -> list[str]:
    """Return the tokens of ``text``: runs of letters, marks and digits, without case.

    Where a script has no spaces (:data:`SPACELESS`) a token is one character with its marks. Of ASCII text
    these are the tokens of the package rouge-score. A text without any (emoji alone) has its symbols.
    """
    folded = folded_case(text)
    return _TOKEN.findall(folded) or _SYMBOL.findall(folded)


def _mixed_fractions(text: str) -> str:
    """Part the whole number from a fraction of one character: "2½" is "2 1/2", not "21/2"."""
    return regex.sub(r"(?<=\d)([¼½¾⅐-⅞])", r" \1", text)
