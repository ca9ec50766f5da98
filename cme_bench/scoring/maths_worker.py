"""The process that compares expressions by math-verify: a JSON pair a line comes in, 1 or 0 goes out."""

from __future__ import annotations

import logging
import sys

import orjson


def main() -> None:
    """Answer pairs of (reference, answer) until the input ends."""
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    print("ready", flush=True)
    for line in sys.stdin.buffer:
        reference, answer = orjson.loads(line)
        try:
            gold = parse(f"${reference}$", parsing_timeout=None)
            read = parse(f"${answer}$", parsing_timeout=None)
            # "x >= 2" is the interval [2, oo)
            same = bool(gold and read) and verify(
                gold, read, float_rounding=14, timeout_seconds=None, allow_set_relation_comp=True
            )
        except Exception:  # sympy raises anything on what it cannot read: then it is not the same
            same = False
        print(int(same), flush=True)


if __name__ == "__main__":
    main()
