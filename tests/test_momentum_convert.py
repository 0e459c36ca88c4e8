"""Residual networks turned into momentum networks: what is found, what is kept, the way back."""

from __future__ import annotations

import copy
import io
import pickle
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pyjuliaode as pjo
from pyjuliaode import InvalidArgumentError
from pyjuliaode.momentum.blocks import MomentumBlocks, Residual
from pyjuliaode.momentum.structure import examine

# ---------------------------------------------------------------- ResNets as they are written


class BasicBlock(nn.Module):
    """Two convolutions; the activation follows the sum (He et al. 2016)."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int, downsample: nn.Module | None):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    """Three convolutions, the middle one narrow."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int, downsample: nn.Module | None):
        super().__init__()
        outputs = planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """Stem, two stages of 3 and 2 blocks, head."""

    def __init__(self, block: type[nn.Module]):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.channels = 8
        self.layer1 = self._stage(block, 8, 3, 1)
        self.layer2 = self._stage(block, 16, 2, 2)
        self.fc = nn.Linear(self.channels, 5)

    def _stage(self, block, planes, n, stride):
        outputs, downsample = planes * block.expansion, None
        if stride != 1 or self.channels != outputs:
            downsample = nn.Sequential(
                nn.Conv2d(self.channels, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        blocks = [block(self.channels, planes, stride, downsample)]
        self.channels = outputs
        blocks += [block(outputs, planes, 1, None) for _ in range(n - 1)]
        return nn.Sequential(*blocks)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        return self.fc(x.mean((2, 3)))


@pytest.fixture(params=[BasicBlock, Bottleneck], ids=lambda block: block.__name__)
def resnet(request):
    """A ResNet whose running statistics are not those of the beginning."""
    model = ResNet(request.param)
    with torch.no_grad():
        model(torch.randn(8, 3, 8, 8))
    return model


def pictures():
    return torch.randn(4, 3, 8, 8)


class Tanh(nn.Module):
    """x + tanh(W x)."""

    def __init__(self, width: int = 4):
        super().__init__()
        self.map = nn.Linear(width, width)

    def forward(self, x):
        return x + torch.tanh(self.map(x))


# ---------------------------------------------------------------- what is a residual block


def block(forward, **modules):
    """A module with that forward."""
    made = type("Block", (nn.Module,), {"forward": forward})()
    for name, module in modules.items():
        setattr(made, name, module)
    return made


def two_sums(self, x):
    x = x + self.a(self.norm(x))
    return x + self.b(self.norm(x))


def post_norm(self, x, mask=None):
    if mask is not None:
        raise NotImplementedError
    return self.norm(torch.add(x, F.gelu(self.a(x))))


def branch(self, x, scale=None):
    if scale:  # a value, as the drop_connect_rate of an EfficientNet
        x = x * scale
    return self.b(self.a(x)).add(x)


def half(self, x):
    return torch.add(self.a(x), x, alpha=0.5)


def on_values(self, x):
    return x + self.a(x) if x.sum() > 0 else x


def forward_of_three(self, x):
    return x + self.empty(self.a(x)) + self.b(x)


def a_and_b():
    return {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "norm": nn.LayerNorm(4)}


@pytest.mark.parametrize(
    "forward",
    [
        two_sums,
        post_norm,
        branch,
        forward_of_three,
        lambda self, x: F.relu(self.empty(x) + self.a(x)),
        lambda self, x: x + self.gain * torch.tanh(F.linear(x, self.a.weight)),
    ],
)
def test_blocks_whose_input_reaches_their_value_by_sums_are_residual(forward):
    made = block(forward, **a_and_b(), empty=nn.Sequential(), gain=nn.Parameter(torch.ones(4)))
    assert examine(made).residual, examine(made).reason


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda self, x: self.b(torch.tanh(self.a(x))), "not the sum"),
        (lambda self, x: self.a(x) + self.b(x), r"'a' \(Linear\) and 'b' \(Linear\)"),
        (lambda self, x: torch.tanh(x) + self.a(x), "not the identity"),
        (lambda self, x: 2 * (x + self.a(x)), "not the sum"),
        (lambda self, x: x + x, "its input and its input"),
        (lambda self, x: x + 1.0, "not the identity"),
        (lambda self, x: torch.softmax(x + self.a(x), -1), "not the sum"),
        (lambda self, x: (x + self.a(x), x), "tuple"),
        (half, "not the identity"),
    ],
)
def test_other_modules_are_not_residual_blocks_and_it_is_said_why(forward, reason):
    finding = examine(block(forward, **a_and_b()))
    assert finding.residual is False
    assert re.search(reason, finding.reason)


def test_a_block_that_branches_on_values_cannot_be_told():
    finding = examine(block(on_values, **a_and_b()))
    assert finding.residual is None
    assert "cannot be traced" in finding.reason


# ---------------------------------------------------------------- ResNets


def test_a_resnet_without_momentum_is_itself_to_the_last_bit(resnet):
    x = pictures()
    momentum = pjo.to_momentum(resnet, gamma=0)
    for training in (False, True):
        resnet.train(training)
        momentum.train(training)
        assert torch.equal(momentum(x), resnet(x))


def test_blocks_after_a_downsampling_one_are_converted_and_reported(resnet):
    momentum = pjo.to_momentum(resnet, gamma=0.5)
    narrow = isinstance(resnet.layer1[0], BasicBlock)
    runs = {run.path: (run.first, run.last) for run in momentum.momentum_report.converted}
    assert runs == {"layer1": (0 if narrow else 1, 2), "layer2": (1, 1)}
    kept = {block.path: block.reason for block in momentum.momentum_report.kept}
    assert kept.keys() == ({"layer2.0"} if narrow else {"layer1.0", "layer2.0"})
    assert "'downsample' (Sequential)" in kept["layer2.0"]
    assert isinstance(momentum.layer2[0], type(resnet.layer2[0]))
    assert len(momentum.layer2) == 2
    text = str(momentum.momentum_report)
    assert f"{4 if narrow else 3} blocks in 2 momentum networks, gamma = 0.5" in text
    assert "layer2.0" in text


def test_momentum_follows_its_equation(resnet):
    """Against the loop written down; the same operations in the same order, so to the last bit."""
    momentum = pjo.to_momentum(resnet.eval(), layers="layer1", gamma=0.5)
    x = torch.randn(4, resnet.layer2[0].conv1.in_channels, 8, 8)
    run = momentum.layer1[-1]
    assert isinstance(run, pjo.MomentumNet)
    state, v = x, torch.zeros_like(x)
    for function in resnet.layer1[-run.depth :]:
        v = 0.5 * v + 0.5 * (function(state) - state)
        state = state + v
    assert torch.equal(run(x), state)


def test_the_original_is_untouched_and_shares_nothing_with_a_copy(resnet):
    before = {key: value.clone() for key, value in resnet.state_dict().items()}
    momentum = pjo.to_momentum(resnet, gamma=0)
    with torch.no_grad():
        for tensor in (*momentum.parameters(), *momentum.buffers()):
            tensor.zero_()
    assert list(before) == list(resnet.state_dict())
    assert all(torch.equal(before[key], value) for key, value in resnet.state_dict().items())
    assert not hasattr(resnet, "momentum_report")


def test_without_copy_parameters_and_buffers_are_the_same_objects(resnet):
    for new in (
        pjo.to_momentum(resnet, copy=False),
        pjo.from_momentum(pjo.to_momentum(resnet, copy=False), copy=False),
    ):
        assert list(map(id, new.parameters())) == list(map(id, resnet.parameters()))
        assert list(map(id, new.buffers())) == list(map(id, resnet.buffers()))
    assert type(resnet.layer1[2]) is type(resnet.layer1[0])
    assert new.layer1[2] is not resnet.layer1[2]


def test_there_and_back_is_the_original(resnet):
    back = pjo.from_momentum(pjo.to_momentum(resnet))
    states = resnet.state_dict(), back.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(map(torch.equal, states[0].values(), states[1].values()))
    x = pictures()
    assert torch.equal(back(x), resnet(x))
    assert not hasattr(back, "momentum_report")
    assert not back.layer2._load_state_dict_pre_hooks


def test_a_state_is_loaded_from_another_conversion_and_from_the_original(resnet):
    other = ResNet(type(resnet.layer1[0]))
    x = pictures()
    for state in (resnet.state_dict(), pjo.to_momentum(resnet).state_dict()):
        momentum = pjo.to_momentum(other, gamma=0).eval()
        momentum.load_state_dict(state)
        assert torch.equal(momentum(x), resnet.eval()(x))
    state.pop("layer2.1.functions.0.conv1.weight")
    with pytest.raises(RuntimeError, match=r"layer2\.1\.functions\.0\.conv1\.weight"):
        momentum.load_state_dict(state)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_a_converted_model_is_copied_and_saved_with_its_report(how):
    resnet = ResNet(BasicBlock).eval()
    momentum = pjo.to_momentum(resnet, mode="reversible")
    x = pictures()
    momentum(x).sum().backward()
    if how == "deepcopy":
        new = copy.deepcopy(momentum)
    elif how == "pickle":
        new = pickle.loads(pickle.dumps(momentum))
    else:
        file = io.BytesIO()
        torch.save(momentum, file)
        file.seek(0)
        new = torch.load(file, weights_only=False)
    assert str(new.momentum_report) == str(momentum.momentum_report)
    assert torch.equal(new(x), momentum(x))
    new.load_state_dict(resnet.state_dict())
    assert list(pjo.from_momentum(new).state_dict()) == list(resnet.state_dict())


def gradients(model, loss):
    model.zero_grad()
    loss(model).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def agree(ours, theirs):
    """Float32 rounds to 6e-8; some ten layers amplify it by less than a hundred."""
    scale = max(float(g.abs().max()) for g in theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * scale)


def test_a_reversible_step_of_a_resnet_is_that_of_backprop(resnet):
    x, y = pictures(), torch.tensor([0, 1, 2, 3])
    models = [pjo.to_momentum(resnet, mode=mode) for mode in ("reversible", "backprop")]
    assert models[0].layer1[-1].mode == "reversible"
    found = [gradients(model, lambda m: F.cross_entropy(m(x), y)) for model in models]
    agree(*found)
    statistics = [dict(model.named_buffers()) for model in models]
    for name, value in statistics[0].items():
        # counters exactly; means and variances of activations that are rounded differently
        assert torch.allclose(value, statistics[1][name], rtol=1e-5, atol=1e-6), name
    assert models[0].layer2[1].functions[0].bn1.num_batches_tracked == 2


# ---------------------------------------------------------------- transformers

# torch says so where an encoder takes nested tensors, and of nn.Transformer, which asks for them
pytestmark = [
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True"),
]


def encoder(norm_first=False, dropout=0.1, n=3):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, n, enable_nested_tensor=not norm_first)


def sequences():
    return torch.randn(2, 5, 8)


CAUSAL = nn.Transformer.generate_square_subsequent_mask(5)
PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])


@pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])
def test_an_encoder_without_momentum_is_itself_to_the_last_bit(norm_first):
    model = encoder(norm_first).eval()
    momentum = pjo.to_momentum(model, gamma=0)
    assert len(momentum.layers) == 1
    x = sequences()
    # with gradients, since without torch may take nested tensors, whose padded places are zero
    for options in ({}, {"mask": CAUSAL, "is_causal": True}, {"src_key_padding_mask": PADDING}):
        assert torch.equal(momentum(x, **options), model(x, **options))
    with torch.no_grad():
        assert torch.equal(momentum(x), model(x))
        padded = momentum(x, src_key_padding_mask=PADDING), model(x, src_key_padding_mask=PADDING)
    # the fused kernel of torch for nested tensors rounds differently
    assert torch.allclose(padded[0][~PADDING], padded[1][~PADDING], atol=1e-5)


def test_an_encoder_there_and_back_takes_nested_tensors_again():
    model = encoder().eval()
    momentum = pjo.to_momentum(model)
    assert not momentum.use_nested_tensor
    back = pjo.from_momentum(momentum)
    assert back.use_nested_tensor
    x = sequences()
    with torch.no_grad():
        padded = back(x, src_key_padding_mask=PADDING), model(x, src_key_padding_mask=PADDING)
    assert torch.equal(*padded)
    assert list(back.state_dict()) == list(model.state_dict())
    assert len(back.layers) == 3


@pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])
def test_a_transformer_without_momentum_is_itself_to_the_last_bit(norm_first):
    model = nn.Transformer(8, 2, 2, 2, 16, 0.0, batch_first=True, norm_first=norm_first)
    momentum = pjo.to_momentum(model, gamma=0)
    paths = [run.path for run in momentum.momentum_report.converted]
    assert paths == ["encoder.layers", "decoder.layers"]
    options = {"tgt_mask": CAUSAL, "tgt_is_causal": True, "memory_key_padding_mask": PADDING}
    source, target = sequences(), sequences()
    assert torch.equal(momentum(source, target, **options), model(source, target, **options))
    momentum.load_state_dict(model.state_dict())
    only = pjo.to_momentum(model, "decoder.layers").momentum_report
    assert [run.path for run in only.converted] == ["decoder.layers"]


@pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])
def test_reversible_gradients_of_a_transformer_with_dropout_are_those_of_backprop(norm_first):
    model = nn.Transformer(8, 2, 3, 3, 16, 0.1, batch_first=True, norm_first=norm_first)
    models = [pjo.to_momentum(model, mode=mode) for mode in ("reversible", "backprop")]
    source, target, weight = sequences(), sequences(), torch.randn(2, 5, 8)
    options = {
        "tgt_mask": CAUSAL,
        "src_key_padding_mask": PADDING,
        "memory_key_padding_mask": PADDING,
    }

    def loss(m):
        torch.manual_seed(1)
        return (m(source, target, **options) * weight).sum()

    found = [gradients(m, loss) for m in models]
    agree(*found)
    # through the memory alone do they come to the encoder
    assert float(models[0].encoder.layers[0].functions[0].linear1.weight.grad.abs().max()) > 0


def test_a_causal_mask_holds_with_momentum():
    momentum = pjo.to_momentum(encoder(dropout=0.0), mode="reversible")
    x = sequences().requires_grad_()
    (momentum(x, mask=CAUSAL)[:, 2] * torch.arange(8.0)).sum().backward()
    assert torch.equal(x.grad[:, 3:], torch.zeros(2, 2, 8))
    assert float(x.grad[:, :3].abs().min(dim=-1).values.min()) > 0


# ---------------------------------------------------------------- by name, and other containers


class Looped(nn.Module):
    """A list of blocks that it loops over, with an argument for all."""

    def __init__(self, blocks):
        super().__init__()
        self.body = nn.Module()
        self.body.blocks = nn.ModuleList(blocks)

    def forward(self, x, scale=1.0):
        for block in self.body.blocks:
            x = block(x, scale)
        return x


class Scaled(Tanh):
    def forward(self, x, scale):
        return x + scale * torch.tanh(self.map(x))


class Opaque(Scaled):
    def forward(self, x, scale):
        if x.isnan().any():
            raise ArithmeticError
        return x + scale * torch.tanh(self.map(x))


class Straight(Scaled):
    def forward(self, x, scale):
        return scale * self.map(x)


def test_a_list_is_converted_where_it_is_named():
    model = Looped([Straight(), Scaled(), Opaque(), Straight(), Scaled()])
    with pytest.raises(InvalidArgumentError, match=r"nn\.ModuleList is looked into where"):
        pjo.to_momentum(model)
    momentum = pjo.to_momentum(model, layers=["body.blocks"], gamma=0)
    blocks = momentum.body.blocks
    assert [type(m) for m in blocks] == [Straight, MomentumBlocks, Straight, MomentumBlocks]
    assert [run.kind for run in momentum.momentum_report.converted] == ["Scaled, Opaque", "Scaled"]
    x = torch.randn(3, 4)
    assert torch.equal(momentum(x, 0.5), model(x, 0.5))
    # children have moved: keys of the original are those of others here
    other = Looped([Straight(), Scaled(), Opaque(), Straight(), Scaled()])
    momentum.load_state_dict(other.state_dict())
    assert torch.equal(momentum(x, 0.5), other(x, 0.5))
    back = pjo.from_momentum(momentum)
    assert list(back.state_dict()) == list(model.state_dict())
    assert torch.equal(back(x, 0.5), other(x, 0.5))


def test_children_of_a_sequence_keep_their_names():
    model = nn.Sequential(nn.Linear(4, 4), Tanh(), Tanh(), nn.Linear(4, 2))
    momentum = pjo.to_momentum(model)
    assert [name for name, _ in momentum.named_children()] == ["0", "1", "3"]
    assert momentum[2].out_features == 2
    assert [name for name, _ in pjo.from_momentum(momentum).named_children()] == list("0123")


def test_blocks_inside_a_converted_block_are_left_alone():
    inner = nn.Sequential(Tanh(), Tanh())
    outer = nn.Sequential(block(lambda self, x: x + self.body(x), body=inner))
    momentum = pjo.to_momentum(outer)
    assert [run.path for run in momentum.momentum_report.converted] == [""]
    momentum = pjo.to_momentum(outer, layers=["", "0.body"], gamma=0)
    assert isinstance(momentum[0].functions[0].body[0], pjo.MomentumNet)
    x = torch.randn(3, 4)
    assert torch.equal(momentum(x), outer(x))
    assert list(pjo.from_momentum(momentum).state_dict()) == list(outer.state_dict())


def test_a_container_of_two_names_is_converted_once():
    model = nn.ModuleDict({"a": nn.Sequential(Tanh(), Tanh())})
    model["b"] = model["a"]
    momentum = pjo.to_momentum(model, layers=["a", "b"])
    assert momentum["a"] is momentum["b"]
    assert momentum.momentum_report.blocks == 2


def test_tied_blocks_stay_tied():
    tied = Tanh()
    momentum = pjo.to_momentum(nn.Sequential(tied, tied, tied))
    assert len(list(momentum.parameters())) == 2
    back = pjo.from_momentum(momentum)
    assert back[0] is back[2]


def test_the_first_speed_is_made_of_the_blocks():
    model = nn.Sequential(Tanh())
    momentum = pjo.to_momentum(
        model, gamma=0.5, init_speed=lambda blocks: nn.Sequential(blocks[0].map, nn.Tanh())
    )
    x = torch.randn(3, 4)
    # v0 = f(x), so that the one block adds f(x) whole; three roundings of numbers below 8
    assert torch.allclose(momentum(x), model(x), atol=3e-6)
    with pytest.raises(InvalidArgumentError, match="init_speed to None"):
        pjo.from_momentum(momentum)
    momentum[0].init_speed = None
    assert torch.equal(pjo.from_momentum(momentum)(x), model(x))


def test_other_momentum_networks_become_sums():
    functions = [nn.Linear(4, 4), nn.Tanh()]
    net = pjo.MomentumNet(functions, gamma=0.5)
    model = nn.Sequential(nn.Linear(4, 4), net)
    x = torch.randn(3, 4)
    for back in (pjo.from_momentum(model)[1], pjo.from_momentum(net)):
        assert [type(m) for m in back] == [Residual, Residual]
        h = x + functions[0](x)
        assert torch.equal(back(x), h + torch.tanh(h))
    inside = pjo.MomentumNet([Tanh(), Tanh()], residual=False)
    assert [type(m) for m in pjo.from_momentum(inside)] == [Tanh, Tanh]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("choice", "match"),
    [
        ({"layers": "layer3"}, "Did you mean 'layer[12]' or"),
        ({"layers": "fc"}, "must be an nn.Sequential or an nn.ModuleList, got Linear"),
        (
            {"layers": "layer2.0.downsample"},
            r"downsample\.0 \(Conv2d\): is an nn\.Conv2d, no residual block",
        ),
        ({"layers": []}, "at least one container"),
        ({"gamma": 1.5}, "gamma must be"),
        ({"gamma": 0, "mode": "reversible"}, "gamma must be positive"),
        ({"mode": "revertible"}, "reversible"),
        ({"init_speed": nn.Identity()}, "init_speed must be 0 or a function"),
        ({"init_speed": 1}, "init_speed must be 0 or a function"),
    ],
)
def test_wrong_arguments_are_refused(choice, match):
    with pytest.raises(InvalidArgumentError, match=match):
        pjo.to_momentum(ResNet(BasicBlock), **choice)


def test_models_with_nothing_to_convert_are_refused_with_the_reasons():
    with pytest.raises(InvalidArgumentError, match=r"0 \(Linear\): is an nn\.Linear"):
        pjo.to_momentum(nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
    with pytest.raises(InvalidArgumentError, match=r"has no nn\.Sequential"):
        pjo.to_momentum(nn.Linear(4, 4))
    with pytest.raises(InvalidArgumentError, match="is a momentum network already"):
        pjo.to_momentum(pjo.to_momentum(nn.Sequential(Tanh())))
    with pytest.raises(InvalidArgumentError, match="has no MomentumNet"):
        pjo.from_momentum(nn.Linear(4, 4))
    for convert in (pjo.to_momentum, pjo.from_momentum):
        with pytest.raises(InvalidArgumentError, match=r"model must be a torch\.nn\.Module"):
            convert("resnet")
