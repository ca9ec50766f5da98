"""The end of an adapter's answers by its training, where it ends none of its base."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from cme_bench.prompts.ending import trained_end

EOS = 271  # </s> of the toy tokenizer


@pytest.mark.parametrize(
    ("recorded", "tokens", "said"),
    [
        ([EOS], None, ""),
        ([7], None, ""),  # the generation config's
        ([EOS, 10], None, ""),
        (
            [270],
            (270,),
            "end its answers with '<s>', which does not end its base's: generation stops",
        ),
        ([270, 10], (270,), "generation stops there too"),
        ([65], (65,), "generation stops there too"),
        ([65, 66], (), "answers may run on"),
        (None, None, ""),
        ([], None, ""),
        ("270", None, ""),
        ([True], None, ""),
        ([2.0], None, ""),
    ],
)
def test_it_counts_where_the_base_does_not_end_so(
    toy_tokenizer: PreTrainedTokenizerFast, recorded: Any, tokens: tuple[int, ...] | None, said: str
) -> None:
    found = trained_end({"end_of_answer": recorded}, toy_tokenizer, [7])
    assert (None if found is None else found.tokens) == tokens
    assert said in ("" if found is None else found.note)
