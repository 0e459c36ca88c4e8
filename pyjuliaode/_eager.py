"""Imported before everything else: with PYJULIAODE_EAGER=1 Julia is started before torch."""

from ._juliacall import load_if_eager

load_if_eager()
