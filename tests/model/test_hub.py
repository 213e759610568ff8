"""Image classifiers of the hub, of small repositories in the layout of its cache: no network."""

import functools
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_preprocessing import picture

import optimizer as px
from optimizer.cli.main import main
from optimizer.errors import InputError, UnavailableError
from optimizer.model import catalogue
from optimizer.model.added import architectures, hub, transformers_files
from optimizer.system.downloads import DOWNLOADS_VARIABLE

timm: Any
huggingface_hub: Any
pytestmark = pytest.mark.skipif(
    not all(map(find_spec, ("timm", "huggingface_hub"))), reason="needs the packages timm and huggingface_hub"
)

REVISION = "a" * 40
NAME = "mobilenetv3_small_050"
CFG = {
    "input_size": [3, 64, 64],
    "crop_pct": 0.9,
    "interpolation": "bicubic",
    "mean": [0.4] * 3,
    "std": [0.2] * 3,
}
Repository = Callable[..., None]


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """Not in each process that collects these tests: it takes seconds."""
    global timm, huggingface_hub
    import huggingface_hub
    import timm


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """``repository(id, name=content)`` in an empty cache, without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def make(name: str, files: dict[str, bytes], absent: tuple[str, ...] = ()) -> None:
        folder = tmp_path / "cache" / f"models--{name.replace('/', '--')}"
        for place in ("refs", f"snapshots/{REVISION}", f".no_exist/{REVISION}"):
            (folder / place).mkdir(parents=True)
        (folder / "refs" / "main").write_text(REVISION)
        for file, content in files.items():
            (folder / "snapshots" / REVISION / file).write_bytes(content)
        for file in absent:
            (folder / ".no_exist" / REVISION / file).touch()

    return make


def timm_config(classes: int, **more: Any) -> bytes:
    return json.dumps({"architecture": NAME, "num_classes": classes, "pretrained_cfg": CFG, **more}).encode()


@functools.cache
def timm_weights(classes: int) -> bytes:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = timm.create_model(NAME, pretrained=False, num_classes=classes)
    return safetensors.torch.save(module.state_dict())


def timm_repository(classes: int, **more: Any) -> dict[str, bytes]:
    return {"config.json": timm_config(classes, **more), "model.safetensors": timm_weights(classes)}


@pytest.mark.slow
def test_a_classifier_of_timm_comes_from_the_cache_with_its_preprocessing_and_classes(
    repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    files = timm_repository(3, label_names=["cat", "dog", "cow"])
    repository("me/small", files)
    assert main(["add", "small", "--hub", "me/small"]) == 0
    said = capsys.readouterr().out
    assert f"timm/{NAME}" in said
    assert "the shorter side to 71, the middle 64 x 64 (bicubic)" in said
    loaded = catalogue.load("small")
    assert loaded.classes == ("cat", "dog", "cow")
    expected = timm.create_model(NAME, pretrained=False, num_classes=3).eval()
    expected.load_state_dict(safetensors.torch.load(files["model.safetensors"]))
    image = picture(100, 80)
    ours = loaded.preprocess(image)
    assert torch.equal(ours, timm.data.create_transform(**CFG, is_training=False)(image))
    with torch.inference_mode():
        assert torch.equal(loaded.module(ours[None]), expected(ours[None]))
    module = px.compress(
        "hf-hub:me/small", px.Recipe.of(threshold=0.01), progress=False, calibration=ours[None]
    )
    assert module(ours[None]).shape == (1, 3)


def test_what_is_missing_gated_or_no_classifier_is_explained(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository("me/text", {"config.json": b'{"architectures": ["BertForMaskedLM"]}'})
    repository("me/bare", {"config.json": timm_repository(3)["config.json"]}, hub.WEIGHTS)
    repository("me/damaged", {"config.json": b"{"})
    repository("me/list", {"config.json": b"[]"})
    for name, error, words in (
        ("me/absent", UnavailableError, "not in the hub's cache .*, and the hub can't be reached"),
        ("absent", UnavailableError, "timm/absent is not in the hub's cache"),
        ("me/text", InputError, "is no image classifier .*BertForMaskedLM"),
        ("me/bare", InputError, "neither model.safetensors nor pytorch_model.bin"),
        ("me/damaged", InputError, "config.json can't be read"),
        ("me/list", InputError, "holds no settings"),
        ("../../etc", InputError, "is no id of the hub"),
        ("a/b/c", InputError, "is no id of the hub"),
        ("me/model.git", InputError, "is no id of the hub"),
        ("me/my--model", InputError, "is no id of the hub"),
        ("me/model-", InputError, "is no id of the hub"),
    ):  # fmt: skip
        with pytest.raises(error, match=words) as refused:
            catalogue.examine_hub(name)
        assert "\n" not in str(refused.value)

    def answering(error: type[Exception]) -> Callable[..., Any]:
        def download(*arguments: object, **others: object) -> Any:
            response = huggingface_hub.utils.get_session().build_request("GET", "https://x.invalid")
            import httpx2

            raise error("no", response=httpx2.Response(401, request=response))  # type: ignore[call-arg]

        return download

    for kind, words in (
        ("GatedRepoError", "is gated: ask for access"),
        ("RepositoryNotFoundError", "there is no"),
    ):
        failing = answering(getattr(huggingface_hub.errors, kind))
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", failing)
        with pytest.raises((InputError, UnavailableError), match=words):
            catalogue.examine_hub("me/gated")


@pytest.mark.slow
def test_a_download_reports_and_keeps_to_the_operator_s_limit(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = timm_repository(3)
    repository("me/here", {"config.json": files["config.json"]})
    heard: list[tuple[float | None, str]] = []

    def download(
        name: str, file: str, dry_run: bool = False, tqdm_class: Any = None, **others: object
    ) -> Any:
        """As the hub's own, of which only the network is left out."""
        if file not in files:
            raise huggingface_hub.errors.EntryNotFoundError(file)
        if dry_run:
            return type("Info", (), {"file_size": len(files[file])})
        with tqdm_class(
            total=len(files[file]), unit="B", unit_scale=True, desc=file, name="hub", disable=None
        ) as bar:
            bar.update(len(files[file]) // 2)
            bar.refresh()
        path = tmp_path / file
        path.write_bytes(files[file])
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setenv(DOWNLOADS_VARIABLE, "1kB")
    with pytest.raises(UnavailableError, match="can't be downloaded: 1"):
        catalogue.examine_hub("me/here")
    monkeypatch.setenv(DOWNLOADS_VARIABLE, "1GB")
    about = catalogue.examine_hub("me/here", lambda share, words: heard.append((share, words)))
    assert about.architecture == f"timm/{NAME}"
    assert any(share == pytest.approx(0.5, abs=0.01) and "MB" in words for share, words in heard)


def test_a_classifier_of_transformers_answers_as_its_own_class_does(
    repository: Repository, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    names = {0: "cat, tom", 1: "dog", 2: "cow"}
    shape = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}
    network = transformers.ResNetForImageClassification(
        transformers.ResNetConfig(**shape, id2label=names)
    ).eval()
    network.save_pretrained(tmp_path / "saved")
    said = {"size": {"shortest_edge": 72}, "crop_size": 64, "do_center_crop": True, "image_mean": [0.5] * 3}
    files = {file: (tmp_path / "saved" / file).read_bytes() for file in ("config.json", "model.safetensors")}
    repository("me/resnet", {**files, "preprocessor_config.json": json.dumps(said).encode()})
    assert main(["add", "resnet", "--hub", "me/resnet"]) == 0
    assert "the shorter side to 72, the middle 64 x 64" in capsys.readouterr().out
    loaded = catalogue.load("resnet")
    assert loaded.classes == tuple(names.values())
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded.module(images), network(images).logits)
    result = px.measure("resnet", px.Recipe.of(sparsity=0.5), data=torch.rand(6, 3, 64, 64), progress=False)
    assert result.record.request.engine == "openvino"
    files["model.safetensors"] = safetensors.torch.save({"classifier.1.bias": torch.zeros(3)})
    repository("me/part", files)
    assert "missing" in catalogue.examine_hub("me/part").problem


def unreached() -> Callable[..., None]:
    """What stands for ``timm.create_model``, whose arguments are looked at."""
    return functools.wraps(timm.create_model)(lambda *_, **__: pytest.fail("timm was called"))


@pytest.mark.parametrize(
    "more",
    [
        {"checkpoint_path": "/etc/hostname"},
        {"checkpoint_path": "/not/there"},
        {"cache_dir": "/tmp"},
        {"pretrained": True},
        {"pretrained_cfg": {"file": "/etc/hostname"}},
        {"pretrained_custom_load": True},
        {"scriptable": True},
        {"features_only": True},
        {"kwargs_filter": ["num_classes"]},
    ],
    ids=lambda more: next(iter(more)),
)
def test_a_repository_s_settings_lead_timm_to_no_file(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    """Which is known before its weights are fetched."""
    repository("me/led", {"config.json": timm_config(3, model_args=more)})
    monkeypatch.setattr(timm, "create_model", unreached())
    words = f"{next(iter(more))} can't be set for timm/{NAME} by a repository"
    with pytest.raises(InputError, match=words):
        catalogue.examine_hub("me/led")
    with pytest.raises(InputError, match=words):  # as a card that was kept says
        architectures.build(f"timm/{NAME}", 3, config=json.dumps(more))


@pytest.mark.parametrize(
    "name", ["hf-hub:me/other", "local-dir:/tmp", "me/other", "mobilenetv3_small_050.a/b"]
)
def test_an_architecture_that_leads_elsewhere_is_unknown(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Which is known before its weights are fetched."""
    repository("me/led", {"config.json": timm_config(3, architecture=name)})
    monkeypatch.setattr(timm, "create_model", unreached())
    with pytest.raises(InputError, match="unknown architecture timm/"):
        catalogue.examine_hub("me/led")
    with pytest.raises(InputError, match="unknown architecture timm/"):
        architectures.build(f"timm/{name}", 3)


@pytest.mark.slow
def test_settings_that_build_a_network_reach_timm_and_those_that_build_none_are_named(
    repository: Repository,
) -> None:
    kept = {"in_chans": 3, "act_layer": "relu", "num_classes": 3, "pretrained": False, "checkpoint_path": ""}
    repository("me/fits", timm_repository(3, model_args=kept))
    assert catalogue.examine_hub("me/fits").architecture == f"timm/{NAME}"
    repository("me/odd", timm_repository(3, model_args={"act_layer": "absent"}))
    with pytest.raises(InputError, match=rf"timm can't build {NAME} with act_layer \(KeyError: 'absent'\)"):
        catalogue.examine_hub("me/odd")


def test_transformers_hands_nothing_on_to_timm_and_fetches_no_code(repository: Repository) -> None:
    pytest.importorskip("transformers")
    config = {
        "architectures": ["TimmWrapperForImageClassification"],
        "model_type": "timm_wrapper",
        "model_args": {"checkpoint_path": "/etc/hostname"},
    }
    repository("me/led", timm_repository(3) | {"config.json": json.dumps(config).encode()})
    with pytest.raises(InputError, match="has to name timm's architecture"):
        catalogue.examine_hub("me/led")


def test_a_configuration_leads_to_no_code() -> None:
    said = {
        "depths": [1, 2],
        "auto_map": {"AutoModel": "code.Model"},
        "_attn_implementation": "kernels-community/flash-attn",
        "vision_config": {"attn_implementation": "me/kernel", "parts": [{"auto_map": {}, "width": 8}]},
    }
    expected = {"depths": [1, 2], "vision_config": {"parts": [{"width": 8}]}}
    assert transformers_files.without_code(said) == expected


# timm's own


@pytest.mark.parametrize(
    "name", ["resnet18.a1_in1k", "vit_tiny_patch16_224", "convnext_atto", "efficientnet_b0"]
)
def test_the_preprocessing_of_timm_is_timm_s(name: str) -> None:
    cfg = timm.get_pretrained_cfg(name)
    config = timm.data.resolve_data_config(pretrained_cfg=cfg.to_dict())
    image = picture(300, 280)
    expected = timm.data.create_transform(**config, is_training=False)(image)
    ours = architectures.default_preprocessing(f"timm/{name}")(image)
    assert torch.equal(torch.from_numpy(ours), expected)


SIDES = st.integers(16, 90)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    SIDES,
    SIDES,
    st.integers(8, 64),
    st.floats(0.3, 1),
    st.sampled_from(["bilinear", "bicubic", "nearest"]),
    st.sampled_from(["center", "squash"]),
    st.floats(0.1, 0.9),
)
def test_what_timm_says_is_what_timm_does(
    width: int, height: int, side: int, crop: float, interpolation: str, mode: str, mean: float
) -> None:
    said = {
        **{"input_size": [3, side, side], "crop_pct": 1.0 if mode == "squash" else crop, "crop_mode": mode},
        **{"interpolation": interpolation, "mean": [mean, 0.5, 0.5], "std": [0.2, 0.3, mean]},
    }
    from optimizer.model.added import declared
    from optimizer.model.preprocessing import IMAGENET

    ours = declared.read(said, IMAGENET, fixed_size=False).preprocessing
    assert ours is not None
    image = picture(width, height)
    assert torch.equal(
        torch.from_numpy(ours(image)), timm.data.create_transform(**said, is_training=False)(image)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "vit_tiny_patch16_224", "convnext_atto"])
def test_a_checkpoint_of_timm_fits_its_architecture(name: str) -> None:
    weights = {k: tuple(v.shape) for k, v in timm.create_model(name, num_classes=9).state_dict().items()}
    fit = architectures.fit_of(f"timm/{name}", weights)
    assert (fit.exact, fit.classes) == (True, 9)
    with pytest.raises(
        InputError, match="unknown architecture timm/mobilenetv3_smal: use one such as mobilenet"
    ):
        architectures.build("timm/mobilenetv3_smal", 10)
