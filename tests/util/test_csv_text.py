"""No cell of a csv file is a formula to a spreadsheet."""

from __future__ import annotations

import pandas as pd

from cme_bench.util.csv_text import csv_text, frame_csv

ROWS = [["=1+1", 2], ["-", -1.5], ["-1.5", "@a"]]
TEXT = "a,b\n'=1+1,2\n-,-1.5\n-1.5,'@a"


def test_formulas_get_apostrophes_and_numbers_stay() -> None:
    assert csv_text(["a", "b"], ROWS) == TEXT
    assert frame_csv(pd.DataFrame(ROWS, columns=["a", "b"])) == TEXT + "\n"
