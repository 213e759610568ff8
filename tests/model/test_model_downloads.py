"""torchvision's weights, downloaded from a server on this machine."""

import contextlib
import hashlib
import http.server
import io
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image

from optimizer import work
from optimizer.errors import InputError, UnavailableError
from optimizer.model import catalogue
from optimizer.model.sources import torchvision_hub
from optimizer.system.downloads import DOWNLOADS_VARIABLE

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
        torchvision_hub._listed.cache_clear()
        yield answers
        torchvision_hub._listed.cache_clear()
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


def test_threads_that_load_one_model_get_their_own_weights_one_after_the_other() -> None:
    weights = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    first, second = {"first": 1}, {"second": 2}

    def load() -> object:
        with torchvision_hub._giving(weights, second):
            return weights.get_state_dict()

    with ThreadPoolExecutor(1) as pool:
        with torchvision_hub._giving(weights, first):
            other = pool.submit(load)
            wait([other], 0.1)
            assert not other.done()
            assert weights.get_state_dict() is first
        assert other.result(60) is second
    assert "get_state_dict" not in vars(weights)


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


def test_a_damaged_file_is_refused_and_can_be_fetched_again(site: Site) -> None:
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


def serve_weights(site: Site, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    port = int(torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1.url.split(":")[2].split("/")[0])
    site.body = body
    serve(monkeypatch, body, port)


def test_a_weights_file_that_ends_at_once_is_said(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_weights(site, b"\x80\x02", monkeypatch)
    with pytest.raises(InputError, match=r"can't be read \(EOFError\)"):
        catalogue.load(NAME)


def test_code_in_a_weights_file_does_not_run(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    buffer = io.BytesIO()
    torch.save({"weight": Payload()}, buffer)
    serve_weights(site, buffer.getvalue(), monkeypatch)
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


def test_a_list_that_was_kept_is_as_one_made_anew_and_needs_no_torchvision(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_torchvision() -> None:
        raise AssertionError("it is imported")

    torchvision_hub._listed.cache_clear()
    made = torchvision_hub.cards()
    assert len(made) > 50
    assert not any(one.ready for one in made.values())
    torchvision_hub._listed.cache_clear()
    path = torchvision_hub.weights_path(NAME)
    assert path is not None
    path.parent.mkdir(parents=True)
    path.touch()
    monkeypatch.setattr(torchvision_hub, "_registry", no_torchvision)
    kept = torchvision_hub.cards()
    assert [name for name, one in kept.items() if one.ready] == [NAME]
    assert kept == made | {NAME: replace(made[NAME], ready=True)}
    torchvision_hub._listed.cache_clear()
