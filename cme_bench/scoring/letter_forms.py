"""The forms in which the letter of an option is written."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

CLOSED = r"[)\]}\"'」】』》⟩〉*]*"
_ENDS = r"(?![A-Za-z0-9_À-ɏ]|'[a-z])"
_NAME = r"(?:option|choice|letter|answer|选项|第)?\s*"
_OPENED = r"[(\[{\"'「【『《⟨〈]*\s*"
_SURELY = r"(?:(?:probably|definitely|certainly|clearly|surely|most likely|likely|only|just)\s+)?"
_STOP = rf"{CLOSED}\s*(?:[.!。;]|$|\n|,(?!\s*(?:or|and|nor)\b))"
_IS = r"is|(?:seems|looks)(?: to be)?|must be|should be|would be|appears to be|are"
_DENIED_LATER = r"[^.\n]*?(?:\b(?:not|wrong|incorrect|false|except|never|no)\b|n't\b)"
_RIGHT = (
    rf"(?:(?:{_IS})\s+(?:(?:the|my|final|most|clearly|definitely|therefore|likely|probably|only|indeed"
    rf"|thus)\s+)*"
    r"(?:correct|right|best|answer|appropriate|accurate)\b|(?:fits|matches)\s+(?:the\s+\w+\s+)?best"
    rf"|(?:{_IS})\s+the only (?:one|option|choice|answer|statement)(?!{_DENIED_LATER})"
    r"|ist\s+(?:die\s+)?(?:richtige?|korrekte?)\b|est\s+(?:la\s+)?(?:bonne|correcte?|exacte?)\b"
    r"|es\s+(?:la\s+)?correct[ao]\b|—?\s*(?:верно|правильно)(?!\w)"
    r"|是?(?:正确|对(?=[的。,.!;]|$))|を選(?=[ばびぶべん択])|(?:를|을)\s*선택|が正解|が正しい|是答案)(?!\s*(?:\?|if\b|only\b|when\b))"
)

GOES_ON = re.compile(r"\s+(?!(?:is|as|and|or|for|with|because|since|seems|would|but|not|which)\b)[a-z]")
"""A sentence that goes on: "a" is then an article and "I" a pronoun, not a letter."""
NOT_ONE = re.compile(r"(?:either|both|neither|all|between)\b", re.IGNORECASE)
WRONG_LINE = re.compile(
    r"[).:\]]*\s*(?:(?:wrong|incorrect|false|no|not)\b|(?!.{0,60}\b(?:because|since|as|not [A-Z])\b)"
    r"[^.\n]*?\b(?:is|are)\s+(?:not (?:right|correct)|wrong|incorrect|false)\b)",
    re.IGNORECASE,
)
"""After a letter: its line says that it is wrong."""
OPTION_TAKEN_BACK = re.compile(
    r"[\s,.;!…—–-]+(?:(?:oh|hmm|no|wait|sorry|actually|i mean|rather|make that|it'?s|that'?s|the answer is)"
    r"[\s,.;:!…—–-]+)+",
    re.IGNORECASE,
)
PICK = re.compile(
    r"\b(?:choose|chose|pick|picked|select|selected|go(?:ing)? (?:with|for)|settl(?:e|ing) on|"
    r"stick(?:ing)? with|vote for|opt for|left with|that leaves|lean(?:ing)? towards?|"
    r"(?:i'd|i would|i'll) (?:say|answer|guess)|je choisis|ich (?:wähle|nehme)|elijo|escolho|scelgo"
    r"|выбираю|"
    r"wybieram|ik kies|tôi chọn|memilih)\s+|(?:เลือก|(?<!\w)[اأ]ختار)\s+"
    r"|(?:故|应|应该|本题)?选(?!项)择?\s*|选择\s*",
    re.IGNORECASE,
)
NOT_PICKED = re.compile(
    r"(?:\bnot|n't|never|cannot|不|别|没有?)\s*(?:\w+\s+)?(?:应该?|该|能|要|可以?)?$", re.IGNORECASE
)
NOT_MINE = re.compile(
    r"\b(?:someone|somebody|some|many|people|students|others|might|may|could|mistakes?|errors?|wrong"
    r"|incorrect|"
    r"tempt\w*|traps?|was going|almost|nearly|initially|originally|at first|why"
    r"|avoid)\b(?:(?!\bbut\b)[^,.;:!?\n])*$",
    re.IGNORECASE,
)
"""Before "choose B": the clause tells of another's choice, of a mistake or of an earlier one."""
BEFORE_RIGHT = re.compile(
    r"(?:\b(?:if|whether|neither|nor|either|not|is|are|doubt|unless|when)\b"
    r"|n't\b)(?:\s+[\w']+){0,3}\s*[(\[\"']*$"
    r"|\b[A-Z][)\]\"']*\s*(?:,|or|and|nor|/|&)+\s*(?:option|choice)?\s*[(\[\"']*$"
    r"|\bif\b[^.!?\n]*,\s*(?:\w+\s+)?$"
    r"|\b(?:false|wrong|untrue|incorrect|unlikely|doubtful)\s+(?:that"
    r"|to\s+\w+(?:\s+that)?)\s+(?:option\s+)?[(\[\"']*$"
    r"|(?:不是|如果|若|不认为|和|或|与)\s*(?:选项)?$",
    re.IGNORECASE,
)
"""Before "B is correct": it is doubted, a condition or one of several."""
OF_OPTIONS = re.compile(
    r"(?:^|[^A-Za-z\s]\s*|\n\s*|\b(?:options?|choice|letter|answer|that|think|believe|say|so|therefore"
    r"|thus|hence|"
    r"but|and|only|conclude|see|clearly|as|because|since|then|means)\s+)[(\[\"']*$",
    re.IGNORECASE,
)
"""Before "B is correct": B may be an option there, as it is not in "Student B is correct"."""
SAYS_SO = re.compile(
    r"\b(?:so|therefore|thus|hence|consequently|finally|conclusion|elimination|if i ha(?:d|ve) to \w+"
    r"|it)\b|因此|所以|故|综上|^\W*是",
    re.IGNORECASE,
)
TEXT_NEXT = re.compile(rf"{CLOSED}\s*[.):,、(-]*\s*[\"'(]*")
"""Between a letter and the text of its option."""

NO_IDEA = re.compile(
    r"\W*(?:sorry,?\s+)?(?:but\s+)?I\s+(?:do not|don't|cannot|can't|am not able to|am unable to)\s+"
    r"(?:know|tell|say|answer|determine|decide)\b",
    re.IGNORECASE,
)
"""After a letter: words that take every answer back."""


@dataclass(frozen=True, slots=True)
class Forms:
    """Where a letter (group ``x``) stands: ``alone`` as the whole, ``here`` at a place, and one a rule."""

    letters: tuple[str, ...]
    alone: re.Pattern[str]
    here: re.Pattern[str]
    several: re.Pattern[str]
    first: re.Pattern[str]
    right: re.Pattern[str]
    concluded: re.Pattern[str]
    lines: re.Pattern[str]
    possible: re.Pattern[str]
    instead: re.Pattern[str]
    corrected: re.Pattern[str]
    weighed: re.Pattern[str]
    behind: re.Pattern[str]


@functools.lru_cache(maxsize=64)
def forms(letters: tuple[str, ...]) -> Forms:
    """Return the patterns for upper-case ``letters``."""
    one = "|".join(re.escape(letter) for letter in letters)
    x = rf"(?P<x>{one})"
    return Forms(
        letters=letters,
        alone=re.compile(rf"[^\w¬!≠]*{_SURELY}{_NAME}{_OPENED}{x}\s*{CLOSED}[.:。!)]*\s*", re.IGNORECASE),
        here=re.compile(rf"(?P<x>{one}|[A-Z]){_ENDS}", re.IGNORECASE),
        several=re.compile(rf"(?:{one}){{2,}}{_ENDS}"),
        first=re.compile(
            rf"{_OPENED}{_NAME}{_OPENED}{x}(?:{CLOSED}(?:[.:、。](?=\s|$|[^\x00-\x7f])"
            r"|,(?!\s*(?:or\b|and\b|(?!I\s+[a-z])[A-Z]\b))|\s*(?:$|\n)|\s+[-—]\s)|[)\]】」]|\s+because\b"
            r"|\s+it\s+is\b|\s+\((?=~?\d|(?:very|high|fairly)?\s*(?:sure|certain|confiden)))",
            re.IGNORECASE,
        ),
        right=re.compile(rf"(?<![A-Za-z0-9_'])(?P<x>{one}){CLOSED}\s*(?:选?项)?\s*{_RIGHT}"),
        concluded=re.compile(
            r"(?:^|[.!?;,\n。]\s*|\b(?:and|think|believe|say)\s+)(?=[^\W_])"
            r"(?:(?:so|therefore|thus|hence|consequently|finally|in conclusion|by (?:process of"
            r" )?elimination|if i (?:had|have) to (?:guess|choose|pick)|因此|所以|故|综上所述)"
            r"[,:]?\s*)?"
            r"(?:(?:it(?:'s| is| must be| has to be| should be)|是|为)\s*"
            r"(?:(?:definitely|clearly|certainly|probably|most likely|obviously)\s+)?)?"
            rf"{_NAME}{_OPENED}{x}{_STOP}",
            re.IGNORECASE,
        ),
        possible=re.compile(
            rf"(?<![A-Za-z0-9_']){x}{CLOSED}\s+(?:is|are|could|might|may)\s+(?:be\s+)?(?:also|equally"
            rf"|possible|plausible)\b"
        ),
        instead=re.compile(
            rf"(?:\bnot\s+{_OPENED}{_NAME}{_OPENED}(?i:{one}){CLOSED}(?:\s[^.\n,;]{{0,30}})?,?\s+but\s+(?:rather\s+|instead\s+)?"
            rf"|不[是选]\s*(?:{one})\s*[,;]?\s*(?:而是|而选)\s*){_OPENED}{_NAME}{_OPENED}(?={x}{_ENDS})"
        ),
        corrected=re.compile(
            r"\b(?:actually|wait|no wait|sorry|correction|i mean|scratch that)\b\W{0,4}(?:no\b\W{0,3})?"
            r"(?:i(?:'d| would)? (?:say|meant?|think)\s+)?"
            r"(?:(?:it'?s|it is|the answer is|that should be)\s+)?"
            rf"{_OPENED}{_NAME}{_OPENED}(?-i:{x}){_STOP}",
            re.IGNORECASE,
        ),
        weighed=re.compile(rf"(?<!\w){x}\s*[:=(]\s*~?\d"),
        behind=re.compile(rf"\s*[(\[]\s*{_NAME}{x}\s*[)\]]", re.IGNORECASE),
        lines=re.compile(rf"^\s*[-*]?\s*{_OPENED}{x}(?:{CLOSED}[.):、]|{CLOSED}\s*$)", re.MULTILINE),
    )
