"""The right-hand sides of :mod:`.problems` said again in JAX, with torch's weights.

JAX is imported where a function is translated, not before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..dynamics import HBNODE, GNesterovNODE
from ..errors import UnsupportedError
from .problems import Autonomous, OfTheCube, Reactions

Params = dict[str, Any]  # JAX arrays by the names of torch's parameters
RightHandSide = Callable[[Params, Any, Any], Any]  # of (params, t, y)
Network = Callable[[Params, Any], Any]  # of (params, x)


def field(func: nn.Module) -> RightHandSide:
    """func(t, y) as a JAX function of (params, t, y).

    Raises:
        UnsupportedError: it is none of the right-hand sides of :mod:`.problems`.
    """
    return _translation(_FIELDS, func)(func)


def _translation(known: dict[type[nn.Module], Callable], module: nn.Module) -> Callable:
    if type(module) not in known:
        raise UnsupportedError(f"{type(module).__name__} has no translation to JAX")
    return known[type(module)]


def _autonomous(func: Autonomous) -> RightHandSide:
    net = _network(func.net, "net.")
    return lambda params, t, y: net(params, y)


def _of_the_cube(func: OfTheCube) -> RightHandSide:
    net = _network(func.net, "net.")
    return lambda params, t, y: net(params, y**3)


def _heavy_ball(func: HBNODE) -> RightHandSide:
    """With a learned γ = sigmoid(ω)."""
    from jax import nn as jnn
    from jax import numpy as jnp

    net = _network(func.field, "field.")

    def forward(params: Params, t: Any, y: Any) -> Any:
        h, m = y
        return jnp.stack((m, net(params, h) - jnn.sigmoid(params["omega"]) * m))

    return forward


def _nesterov(func: GNesterovNODE) -> RightHandSide:
    """With tanh as every activation, and a learned ξ = softplus(χ)."""
    from jax import nn as jnn
    from jax import numpy as jnp

    net, r = _network(func.field, "field."), func.r

    def forward(params: Params, t: Any, y: Any) -> Any:
        x, m = y
        h = jnp.tanh(t ** (-r / 2) * jnp.exp(t / 2)) * x
        force = -jnp.tanh(net(params, h)) - jnn.softplus(params["chi"]) * h
        return jnp.stack((jnp.tanh(m), force - m))

    return forward


def _reactions(func: Reactions) -> RightHandSide:
    from jax import numpy as jnp

    def forward(params: Params, t: Any, y: Any) -> Any:
        k1, k2, k3 = jnp.exp(params["log_rates"])
        a, b, c = y
        slow, fast, back = k1 * a, k2 * b * b, k3 * b * c
        return jnp.stack((back - slow, slow - back - fast, fast))

    return forward


_FIELDS: dict[type[nn.Module], Callable[[Any], RightHandSide]] = {
    Autonomous: _autonomous,
    OfTheCube: _of_the_cube,
    HBNODE: _heavy_ball,
    GNesterovNODE: _nesterov,
    Reactions: _reactions,
}


def _network(net: nn.Module, prefix: str) -> Network:
    """A Sequential of layers; ``prefix`` begins the names of its parameters."""
    layers = [
        _translation(_LAYERS, layer)(layer, f"{prefix}{name}.")
        for name, layer in net.named_children()
    ]

    def network(params: Params, x: Any) -> Any:
        for layer in layers:
            x = layer(params, x)
        return x

    return network


def _linear(layer: nn.Linear, prefix: str) -> Network:
    return lambda params, x: x @ params[f"{prefix}weight"].T + params[f"{prefix}bias"]


def _convolution(layer: nn.Conv2d, prefix: str) -> Network:
    """Channels first, as in equinox.

    Of solves on a CPU, channels last made the forward one 3 times as fast, and the gradient 6 times
    as slow.
    """
    from jax import lax

    padding = [(n, n) for n in layer.padding]
    order = ("NCHW", "OIHW", "NCHW")

    def forward(params: Params, x: Any) -> Any:
        weight, bias = params[f"{prefix}weight"], params[f"{prefix}bias"]
        out = lax.conv_general_dilated(
            x, weight, window_strides=(1, 1), padding=padding, dimension_numbers=order
        )
        return out + bias[:, None, None]

    return forward


def _elementwise(name: str) -> Callable[[nn.Module, str], Network]:
    def translation(layer: nn.Module, prefix: str) -> Network:
        from jax import nn as jnn

        function = getattr(jnn, name)
        return lambda params, x: function(x)

    return translation


_LAYERS: dict[type[nn.Module], Callable[[Any, str], Network]] = {
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    nn.Tanh: _elementwise("tanh"),
    nn.ReLU: _elementwise("relu"),
    nn.ELU: _elementwise("elu"),
}
