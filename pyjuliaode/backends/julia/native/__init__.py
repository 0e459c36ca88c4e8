"""Native mode: a network's own operations run in Julia, without a call into Python.

translate: a module's graph of torch operations -> Tape. field: a Tape in Julia, checked against
torch before it is used, for as long as the module stays as it is.
"""
