"""A page of the runs below a folder, served on this machine: :func:`cme_bench.view.serve.serve`."""
