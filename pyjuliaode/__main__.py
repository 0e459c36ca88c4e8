"""``python -m pyjuliaode``: the command ``pyjuliaode``."""

from .cli import main

if __name__ == "__main__":
    main()
