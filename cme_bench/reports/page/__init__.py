"""One self-contained HTML page of several runs: :func:`cme_bench.reports.page.render.render_page`."""
