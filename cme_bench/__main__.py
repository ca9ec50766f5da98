"""``python -m cme_bench``: what ``accelerate launch -m cme_bench train ...`` starts."""

from cme_bench.cli import main

if __name__ == "__main__":
    main()
