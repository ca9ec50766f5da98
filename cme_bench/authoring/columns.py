"""Tell columns apart: texts to read, names and descriptions of rows, and what gives the answer away."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cme_bench.authoring.table_files import Table
from cme_bench.tasks.values import as_text, is_blank

STRONG_ANSWERS = (
    "answer answers label target gold answerkey answer_key correct_answer right_answer answer_idx "
    "answer_index answer_label gold_label labels correct_option correct_choice ground_truth "
    "references reference summary highlights tldr correct_answers right_answers"
).split()
WEAK_ANSWERS = "correct solution output class category sentiment completion response abstract".split()
CONTEXTS = (
    "title headline context passage background premise document documents article support facts table story"
).split()
QUESTIONS = (
    "question query prompt text sentence input instruction problem stem question_stem dialogue "
    "dialog post ctx hypothesis claim evidence tweet review comment message utterance conversation "
    "content goal description body source email transcript sentence1 sentence2 question1 question2 "
    "text1 text2 text_a text_b sent1 sent2 sentence_1 sentence_2 sentence_a sentence_b question_1 "
    "question_2 s1 s2 statement argument paragraph"
).split()
LISTS_OF_OPTIONS = "choices options endings candidates alternatives answer_choices mc_options opts".split()
OPTION_COLUMNS = (
    r"[a-j]",
    r"(?:options?|choices?|opts?|endings?|answers?|sol|solution|candidate|alternative)[ _-]?"
    r"(?:[a-j]|\d{1,2})",
    r"op[a-j]",
)
WRONG_OPTIONS = r"(?:distractor|(?:incorrect|wrong|false)(?:_(?:answer|option|choice))?)s?_?\d*"
"""The name of a wrong option, in one spelling."""

_IDS = (
    "id uid guid idx ind index key qid pid question_id item_id sample_id example_id source_id "
    "pair_id pairid url link hash doc_id docid row uuid _id"
).split()
_DESCRIBES = (
    "subject category topic source domain dataset split split_type language lang difficulty level "
    "type subreddit author date year license licence activity_label question_concept "
    "question_source question_type genre tag tags task grade theme annotator"
).split()
_GIVES_AWAY = (
    "explanation explanations rationale rationales reason reasons reasoning solution cot "
    "chain_of_thought hint steps justification proof answer_explanation analysis label_text label_name "
    "answer_text class_name"
).split()

_ASKED_ABOUT = re.compile(
    r"(?:target_|head_|tail_|subject_|object_|opinion_)?(?:aspect|term|entity|word|phrase|span|mention|relation|"
    r"predicate|pronoun|quote|aspect_term|aspect_category)s?_?\d?"
)
"""Names of what a question is about beside its text: a few words, which may repeat, without which nobody can
answer."""
RIVALS = "stance polarity sentiment emotion verdict veracity".split()
"""Labels of something that another column, ``target``, names."""

PROSE_WORDS = 3
"""A column whose values have so many words in the mean is something to read."""


FEW_ROWS = 9
"""Of fewer rows nobody can say whether a column repeats itself."""


def named(table: Table, names: Sequence[str]) -> list[str]:
    """Return the columns of these names that are not empty, in that order, however they are spelled."""
    spelled: dict[str, str] = {}
    for name in table.columns:
        spelled.setdefault(in_one_spelling(name), name)
    spelled |= {name.lower(): name for name in table.columns}
    found = list(dict.fromkeys(spelled[name] for name in names if name in spelled))
    return [name for name in found if not all(map(is_blank, table.values(name)))]


def in_one_spelling(name: str) -> str:
    """Return ``Correct Answer``, ``correctAnswer`` and ``correct-answer`` as ``correct_answer``."""
    return re.sub(r"[\W_]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)).strip("_").lower()


def is_text(table: Table, name: str) -> bool:
    """Return whether the column's values are single values, some of them texts."""
    values = [value for value in table.values(name) if not is_blank(value)]
    return bool(values) and all(isinstance(value, str) for value in values)


def words(table: Table, name: str) -> float:
    """Return the mean number of words of a column's values; characters count for scripts without spaces."""
    texts = [as_text(value) for value in table.values(name) if not is_blank(value)]
    return sum(max(len(text.split()), len(_UNSPACED.findall(text)) / 2) for text in texts) / max(
        1, len(texts)
    )


_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f]")


def role(table: Table, name: str) -> str:
    """Return ``id``, ``describes`` or ``gives away`` for a column that is not read, else an empty text."""
    return named_role(name) or _role_by_values(table, name)


def named_role(name: str) -> str:
    """Return what a column's name says of its role; empty if it says nothing."""
    lower = in_one_spelling(name)
    if lower in _IDS or name.lower() in _IDS or re.search(r"(?:^|_)(?:id|idx|uid|url)s?$", lower):
        return "id"
    if lower in _GIVES_AWAY:
        return "gives away"
    return "describes" if lower in _DESCRIBES else ""


def _role_by_values(table: Table, name: str) -> str:
    """Guess a column's role: short values that never repeat and hold digits are ids, short values that repeat
    describe rows."""
    texts = [as_text(value).strip() for value in table.values(name)]
    distinct = len(set(texts))
    if distinct > 1 and _ASKED_ABOUT.fullmatch(in_one_spelling(name)):
        return ""
    if distinct == 1 and len(texts) > 1:
        return "describes"
    if words(table, name) >= PROSE_WORDS or any(" " in text for text in texts):
        return ""
    if distinct == len(texts) and all(re.search(r"\d", text) for text in texts):
        return "id"
    return "describes" if len(texts) >= FEW_ROWS and distinct <= len(texts) / 3 else ""


def holds_answer(table: Table, name: str, answer: str, others: Sequence[str]) -> bool:
    """Return whether every text of a column holds the prose of another column and the answer behind it, as a
    whole prompt with its answer does ("### Instruction: ... ### Response: ...")."""
    return any(
        all(
            isinstance(row[answer], str) and _follows(as_text(row[name]), as_text(row[other]), row[answer])
            for row in table.rows
        )
        for other in others
        if other != name and words(table, other) >= PROSE_WORDS
    )


def _follows(whole: str, first: str, then: str) -> bool:
    """Return whether both texts stand in the whole, the second behind the first."""
    if is_blank(first) or is_blank(then):
        return False
    place = whole.find(first.strip())
    return place >= 0 and whole.find(then.strip(), place + len(first.strip())) >= 0


def is_part(table: Table, name: str, shown: Sequence[str]) -> bool:
    """Return whether every text of a column stands in one of the columns shown, so that nothing of it is
    lost.

    A single word is no part of a text that holds it, since it may say which one is asked for, unless the
    column is named after the other (HellaSwag's ``ctx_b`` and ``ctx``).
    """
    reads = words(table, name) >= PROSE_WORDS
    wholes = [other for other in shown if other != name and (reads or name.startswith(other))]
    return any(
        all(
            is_blank(row[name]) or as_text(row[name]).strip().lower() in as_text(row[other]).lower()
            for row in table.rows
        )
        for other in wholes
    )
