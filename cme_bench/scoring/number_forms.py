"""The words and signs around numbers: what leads to one, joins two, or makes one inexact."""

from __future__ import annotations

import re

MARK = re.compile(r"####[ \t]*(.*)")
ONE_UNIT = re.compile(r"\s*(?:[a-z°€£¥₹]+(?:[ /][a-z]+)?)?\s*\.?\s*")
BOLD = re.compile(r"\*\*([^*\n]{1,40})\*\*|__([^_\n]{1,40})__")
CLAUSE_END = re.compile(r"\n|[;。!?](?=\s|$|[^\x00-\x7f])|[。;]|(?<!\bRs)\.(?=\s|$|[\"')])")
VARIABLE = r"[A-Za-z][A-Za-z_]{0,15}(?:\([a-z]\))?\s*="
FRONT = re.compile(
    rf"(?:[\s,:\"'(\[{{*≈~=#]|{VARIABLE}|\b(?:about|approximately|approx\.?|around|roughly|exactly|"
    r"precisely|equal to|equals|only|just|also|simply|indeed|clearly|therefore|thus|hence|then|the|number|"
    r"value|a|total|of|nearly|almost|that|is|environ|etwa|ungefähr|около|примерно|aproximadamente|circa)\b"
    r"|大约|约|共有?|一共有?|总共有?|等于|是|为|有)*",
    re.IGNORECASE,
)
JOINED = re.compile(r"\s*(?:[-+*/^]|[xX](?=\s*(?:\d|$)))\s*")
EQUALS = re.compile(r"\s*[a-z]{0,12}\s*[=≈]\s*(?:[=≈]\s*)?", re.IGNORECASE)
NEXT_STEP = re.compile(r"\s*(?:[,;]|and|then|so)[\s,]*(?:and|then|so)?\s*")
COMPOUND = re.compile(
    r"\s*(?!(?:after|in|for|from|of|with|by|per|over|at|on|since|because|as|minus|plus|times|than|out|when|"
    r"where|if|x|equals?|is|are|was|makes?|gives?|gets?|leaves?|yields?|becomes?|means?|leaving|giving"
    r"|making)\b)[^\W\d_]+\.?,?\s+(?:(?:and|or|to|und|et|y|oder|ou)\s+)?",
    re.IGNORECASE,
)
RANGE = re.compile(
    r"\s*(?:\((?:or|maybe|possibly|perhaps)\b|到|至|~|–|—|\bin\b(?!\s+(?:19|20)\d\d\b)|\bto\b|\bby\b"
    r"|\bper\b|\bbis\b|\bà\b|和|或者?|又は|か|또는|(?:\bout\s+)?\bof(?:\s+the)?\b|(?:[a-z]+\s+){1,2}out"
    r" of(?:\s+the)?\b)\s*"
)
SPACED = re.compile(r"[ ]+")
ASKED = re.compile(
    r"\s*(?:[a-z°%€]+\s*){0,2}(?:,\s*(?:right|correct|isn't it|is it not|no))?\s*\?", re.IGNORECASE
)
SECOND_CLAUSE = re.compile(
    r"\s*[,;]?\s*(?:and|while|but)\s+(?:the\s+)?(?!(?:answer|result|total|sum|final|so)\b)\w+\s+"
    r"(?:is|are|was|were|equals)\s*$"
)
TAKEN_BACK = re.compile(
    r"\s*(?:[a-z]+\s*)?[,.;!…—–-]*\s*(?:oh,?\s+|hmm,?\s+)?"
    r"(?:(?:no,?\s+)?wait|sorry|oops|just kidding|my mistake|scratch that|correction|i meant?|make that|no,"
    r"|(?:actually|or rather)(?=,?\s+(?:it'?s\s+)?[$€£]?\d[\d.,]*\s*(?:[a-z]+\s*)?(?:[.!]|$"
    r"|\n)))[\s,.:;!…—–-]+"
    r"(?:(?:no|wait|actually|sorry|i meant?|make that|it'?s|that'?s|it is|it should be|the answer is)"
    r"[\s,.:;!…—–-]+){0,3}",
    re.IGNORECASE,
)
"""What takes a number back: the next one holds."""
DENIED = re.compile(
    r"\s*(?:[a-z]+\s*)?[,;(]?\s*(?:and\s+)?\b(?:not|rather than|instead of)\s+", re.IGNORECASE
)
ANOTHER = re.compile(
    r"\s*(?:,|;|\band\b|\bor\b)\s*(?:and\s+|or\s+)?[A-Za-z]+(?:\s+\d+)?\s*[:=]\s*"
    r"|\s*\(?[a-z]\)\s*|\s*\n\s*\d{1,2}[.)]\s+"
    r"|\s*[a-z]*\.?\s*\n\s*(?:[Pp]art|[Qq]uestion)\s+(?:\d|[A-Za-z])\s*[:.)]\s*"
)
ANOTHER_HAS = re.compile(
    r"\s*[a-z]*\s*(?:,\s*(?:and|while|but)?|and|while|but)\s+(?:the\s+)?(?!(?:He|She|It|They|There|Total"
    r"|So)\b)[A-Z]\w+\s+([a-z]+)\s+"
)
"""Between two numbers of one clause: another one has the second ("Tom has 12, Ann has 13")."""
NOT_BUT = re.compile(
    r"\bnot\s+(?!only|just|merely)\S+(?:\s+[a-z]+)?,?\s+but\s+(?:rather\s+)?$", re.IGNORECASE
)
STATED = re.compile(
    r"\W*(?:(?:so|thus|therefore|hence|then),?\s+)?(?:(?:the|her|his|their|its|our)\s+)?"
    r"(?:grand\s+)?(?:total|sum|result|difference|remainder|product|average|profit|cost|price"
    r"|distance)\b(?:\s+[a-z]+){0,4}?\s+"
    r"(?:is|was|will be|would be|comes to|equals)\s+",
    re.IGNORECASE,
)
CIRCUMSTANCE = re.compile(
    r"(?:\s+[a-z]+){0,3}\s+(?:after|for|in|over|within|during|with|at|from|across|by)\s+(?:the\s+|all\s+)?",
    re.IGNORECASE,
)
"""What is said of the total, as in "The total is 12 apples after 7 days": the second number is no "
"answer."""
LIST_OF_BOLD = re.compile(r"\s*(?:[a-z]+\s*){0,2}(?:,\s*(?:and|or)?|and|or|&)\s*", re.IGNORECASE)
A_YEAR = re.compile(r"\b(?:in|since|until|by|before|after|of)\s+(?:19|20)\d\d$", re.IGNORECASE)
INEXACT = re.compile(
    r"(?:\b(?:not|never|nor|more than|less than|fewer than|greater than|at least|at most|over|under|up to|"
    r"above|below|between|either|neither|both|unknown|impossible|cannot|unclear|undefined|undetermined"
    r"|doubt|could|might|may|"
    r"maybe|perhaps|possibly|nicht|pas|не|no)\b|n't\b|!=|[<>±]|[不非]|至少|最多|超过|大于|小于|多于|少于)",
    re.IGNORECASE,
)
RELATED = re.compile(
    r"\b(?:half|twice|double|triple|thrice|thirds?|quarters?|fourths?|fifths?|root|page|step|close to"
    r"|same as|wrong|incorrect)\b",
    re.IGNORECASE,
)
"""Between a claim and a number: the answer has to do with the number, it is not the number."""
LABELLED = re.compile(
    r"\b(?:step|part|question|problem|equation|case|figure|table|line|rule|example|option|chapter|item"
    r"|round|day|week|trial)\s*#?\s*$",
    re.IGNORECASE,
)
