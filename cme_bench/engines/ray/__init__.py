"""The ray engine: persistent workers on one machine or many, one engine of another kind each.

    requests -> shards (shards.py) -> work left (work.py) -> workers (pool.py, worker.py) -> responses

``engine.py`` drives it from the one process that stores. State after a crash of a worker or node: none; what
it had not sent is asked again. After a crash of the driver: its workers end with it.
"""
