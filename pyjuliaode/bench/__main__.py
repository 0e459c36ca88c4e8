"""``python -m pyjuliaode.bench``."""

import sys

from ..errors import PyJuliaODEError
from .command import main

try:
    main()
except PyJuliaODEError as error:
    sys.exit(f"error: {error}")
