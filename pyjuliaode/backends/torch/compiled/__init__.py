"""options={"compile": True}: whole steps, and products through them, compiled by torch's inductor.

A step of a small network is a hundred short operations, each of which costs more to call than to
run. Traced once into a graph (make_fx) and compiled to C++, the step is one call.
"""

from .field import CompiledField, compiled_field
from .product import StepProduct
from .rhs import CompiledRHS
from .stepper import CompiledStepper

__all__ = ["CompiledField", "CompiledRHS", "CompiledStepper", "StepProduct", "compiled_field"]
