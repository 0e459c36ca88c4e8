"""``pyjuliaode bench``: what a solve and a gradient cost here, beside other packages.

Absolute seconds belong to one machine on one day. The figures to read are ratios: to torchdiffeq,
and to the bare cost of the evaluations that were made. All competitors run in one process, in
turns (round-robin, each round from another starting point), after a warm-up and with the garbage
collector off while the clock runs; medians are reported.
"""

from .command import bench as bench
