"""What programs made of a module notice: every change of what its code can read."""

from __future__ import annotations

import functools
import gc
import types
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrize

import pyjuliaode as pjo
from pyjuliaode.backends.fingerprint import Fingerprint
from pyjuliaode.backends.numbers_read import UnknownRead, numbers_read

LEVEL, PAIR, TABLE, FACTORS, ARRAY = 1.0, (1.0, 2.0), {"a": 1.0}, [1.0, [2.0]], np.ones(2)
WEIGHT = torch.ones(2)
SPACE = types.SimpleNamespace(inner=types.SimpleNamespace(gain=1.0))
SIDE = types.ModuleType("side")
SIDE.gain = 1.0


class Config:
    gain = 1.0


class Slots:
    __slots__ = ("gain",)

    def __init__(self):
        self.gain = 1.0


SLOTS = Slots()


def helper(y, gain=1.0, *, powers=(1.0,)):
    return y * DEEP * gain * powers[0]


DEEP = 3.0


@functools.lru_cache
def remembered():
    return CACHED


CACHED = 1.0


def closure():
    k = 1.0

    def field(y):
        return k * y

    def change(value):
        nonlocal k
        k = value

    return field, change


class Reads(nn.Module):
    """A field that reads in every way."""

    level = 1.0

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
        self.function, self.change = closure()
        self.bound = functools.partial(helper, gain=1.0)
        self.scale, self.scales = 1.0, [1.0, {"b": [1.0]}]
        self.register_buffer("held", torch.ones(1))

    @property
    def gain(self):
        return IN_PROPERTY

    def forward(self, t, y):
        y = helper(y) * LEVEL * PAIR[0] * TABLE["a"] * FACTORS[1][0] * ARRAY[0] * WEIGHT
        y = y * SPACE.inner.gain * SIDE.gain * Config.gain * SLOTS.gain * remembered()
        y = self.function(self.bound(y)) * self.level * self.gain * getattr(self, "scale")  # noqa: B009
        return self.net(y) * self.scales[1]["b"][0] * self.held


IN_PROPERTY = 1.0


def new_forward(self, t, y):
    return y


HERE = globals()
# name: (change, and back)
CHANGES = {
    "a global": (lambda m: HERE.update(LEVEL=5.0), lambda m: HERE.update(LEVEL=1.0)),
    "a tuple": (lambda m: HERE.update(PAIR=(1, 2.0)), lambda m: HERE.update(PAIR=(1.0, 2.0))),
    "a global tensor": (
        lambda m: HERE.update(WEIGHT=torch.zeros(2), OLD=WEIGHT),
        lambda m: HERE.update(WEIGHT=HERE.pop("OLD")),
    ),
    "of a helper": (lambda m: HERE.update(DEEP=5.0), lambda m: HERE.update(DEEP=3.0)),
    "of a property": (lambda m: HERE.update(IN_PROPERTY=2), lambda m: HERE.update(IN_PROPERTY=1.0)),
    "behind a cache": (lambda m: HERE.update(CACHED=5.0), lambda m: HERE.update(CACHED=1.0)),
    "a dict": (lambda m: TABLE.update(a=2.0), lambda m: TABLE.update(a=1.0)),
    "a new key": (lambda m: TABLE.update(b=2.0), lambda m: TABLE.pop("b")),
    "a nested list": (
        lambda m: FACTORS[1].__setitem__(0, 3.0),
        lambda m: FACTORS[1].__setitem__(0, 2.0),
    ),
    "an array": (lambda m: ARRAY.__setitem__(0, 3.0), lambda m: ARRAY.__setitem__(0, 1.0)),
    "an object in an object": (
        lambda m: setattr(SPACE.inner, "gain", 2.0),
        lambda m: setattr(SPACE.inner, "gain", 1.0),
    ),
    "of a Python module": (
        lambda m: setattr(SIDE, "gain", 2),
        lambda m: setattr(SIDE, "gain", 1.0),
    ),
    "of a class": (lambda m: setattr(Config, "gain", 2.0), lambda m: setattr(Config, "gain", 1.0)),
    "a slot": (lambda m: setattr(SLOTS, "gain", 2.0), lambda m: setattr(SLOTS, "gain", 1.0)),
    "of its own class": (
        lambda m: setattr(Reads, "level", 2.0),
        lambda m: setattr(Reads, "level", 1.0),
    ),
    "hidden by its own": (lambda m: setattr(m, "level", 2.0), lambda m: delattr(m, "level")),
    "a closure": (lambda m: m.change(2.0), lambda m: m.change(1.0)),
    "a default": (
        lambda m: setattr(helper, "__defaults__", (2.0,)),
        lambda m: setattr(helper, "__defaults__", (1.0,)),
    ),
    "of a partial": (
        lambda m: m.bound.keywords.update(gain=2.0),
        lambda m: m.bound.keywords.update(gain=1.0),
    ),
    "an attribute": (lambda m: setattr(m, "scale", 2.0), lambda m: setattr(m, "scale", 1.0)),
    "deep in one": (
        lambda m: m.scales[1]["b"].__setitem__(0, 2.0),
        lambda m: m.scales[1]["b"].__setitem__(0, 1.0),
    ),
    "its mode": (lambda m: m.eval(), lambda m: m.train()),
    "a submodule's mode": (lambda m: m.net[1].eval(), lambda m: m.net[1].train()),
    "what is learned": (
        lambda m: m.net[0].weight.requires_grad_(False),
        lambda m: m.net[0].weight.requires_grad_(),
    ),
    "forward of its class": (
        lambda m: setattr(Reads, "forward", (new_forward, HERE.update(OLD=Reads.forward))[0]),
        lambda m: setattr(Reads, "forward", HERE.pop("OLD")),
    ),
    "forward of its own": (
        lambda m: setattr(m, "forward", lambda t, y: y),
        lambda m: delattr(m, "forward"),
    ),
    "forward of torch's": (
        lambda m: setattr(
            nn.Linear, "forward", (lambda s, y: y, HERE.update(OLD=nn.Linear.forward))[0]
        ),
        lambda m: setattr(nn.Linear, "forward", HERE.pop("OLD")),
    ),
    "a hook": (
        lambda m: HERE.update(HOOK=m.net.register_forward_hook(lambda *args: None)),
        lambda m: HERE.pop("HOOK").remove(),
    ),
    "a hook of all modules": (
        lambda m: HERE.update(
            HOOK=nn.modules.module.register_module_forward_hook(lambda *args: None)
        ),
        lambda m: HERE.pop("HOOK").remove(),
    ),
}
FINAL = {
    "a weight": lambda m: setattr(m.net[0], "weight", nn.Parameter(torch.ones(3, 2))),
    "a buffer": lambda m: setattr(m, "held", torch.zeros(1)),
    "a submodule": lambda m: m.net.append(nn.Tanh()),
    "a parametrisation": lambda m: parametrize.register_parametrization(
        m.net[0], "weight", nn.Identity()
    ),
    "an attribute less": lambda m: delattr(m, "scale"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_what_is_read_is_noticed(name):
    module = Reads()
    seen = Fingerprint(module)
    assert seen.unchanged()
    change, back = CHANGES[name]
    change(module)
    noticed = not seen.unchanged()
    back(module)
    assert noticed
    assert Fingerprint(module).unchanged()


@pytest.mark.parametrize("name", FINAL)
def test_a_change_of_the_module_is_noticed(name):
    module = Reads()
    seen = Fingerprint(module)
    FINAL[name](module)
    assert not seen.unchanged()


def test_equal_numbers_are_no_change():
    module = Reads()
    seen = Fingerprint(module)
    HERE.update(LEVEL=float("1.0"), PAIR=tuple([1.0, 2.0]), UNREAD=object())
    module.scale = float("1.0")
    with torch.no_grad():  # a step of an optimizer
        module.net[0].weight.add_(1.0)
        module.held.add_(1.0)
    assert seen.unchanged()
    module.scale = 1  # which divides otherwise
    assert not seen.unchanged()


def test_the_models_are_theirs_that_override_their_methods():
    class Damped(pjo.HBNODE):
        def damping(self):
            return super().damping() * LEVEL

    model = Damped(nn.Linear(2, 2))
    seen = Fingerprint(model)
    assert seen.unchanged()
    HERE.update(LEVEL=2.0)
    noticed = not seen.unchanged()
    HERE.update(LEVEL=1.0)
    assert noticed


def test_it_keeps_no_module_alive():
    module = Reads()
    module.itself, module.later = [module], functools.partial(new_forward, module)
    module.net.parent = [module]
    seen, alive = Fingerprint(module), weakref.ref(module)
    assert seen.unchanged()
    del module
    gc.collect()
    assert alive() is None
    assert not seen.unchanged()


# ------------------------------------------------------------------------------- numbers of tensors


HELD = torch.tensor(2.0)
LISTED = torch.tensor([1.0, 2.0])
READERS = {
    "item": (HELD, lambda y: y * HELD.item()),
    "float": (HELD, lambda y: y * float(HELD)),
    "branch": (HELD, lambda y: y if HELD else -y),
    "alpha": (HELD, lambda y: torch.add(y, y, alpha=HELD)),
    "slice": (HELD, lambda y: y[: int(HELD)]),
    "equal": (HELD, lambda y: y if torch.equal(HELD, HELD) else -y),
    "tolist": (LISTED, lambda y: y * LISTED.tolist()[0]),
    "numpy": (LISTED, lambda y: y * float(LISTED.numpy()[0])),
    "iteration": (LISTED, lambda y: y * LISTED.numpy().sum().item()),
}


# with pre_dispatch, as native mode traces, a branch is refused by the trace itself
@pytest.mark.parametrize(
    ("name", "pre_dispatch"),
    [(name, before) for name in READERS for before in (False, True)[: 1 + (name != "branch")]],
)
def test_numbers_that_a_trace_keeps_are_noted(name, pre_dispatch):
    tensor, function = READERS[name]
    with torch.no_grad(), numbers_read(lambda x: x is LISTED) as numbers:
        make_fx(function, pre_dispatch=pre_dispatch)(torch.ones(3))
    assert numbers.unchanged()
    tensor.data.add_(1)  # which no version counter tells
    noticed = not numbers.unchanged()
    tensor.data.sub_(1)
    assert noticed
    assert numbers.unchanged()


def test_numbers_of_the_state_are_refused():
    with torch.no_grad(), pytest.raises(UnknownRead, match="tolist"), numbers_read(lambda x: False):
        make_fx(lambda y: y * y.tolist()[0])(torch.ones(3))
