"""A model file of one's own on Models and data, without a browser."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from page_runs import newest, press, words
from started import Started, go_to
from streamlit.testing.v1 import AppTest

from optimizer.errors import InputError
from optimizer.model.added import cards, files, onnx_file, tensors, uploads
from optimizer.model.added.cards import Examined
from optimizer.model.cifar_resnet import CifarResNet
from optimizer.search.answers import model_of
from optimizer.system.uploads import UPLOADS_VARIABLE
from pages import kept, sidebar, tasks

NAME = "my net (best).pt"


@pytest.fixture
def content() -> bytes:
    buffer = io.BytesIO()
    with torch.random.fork_rng(devices=[]):
        torch.save(CifarResNet(20, classes=3).state_dict(), buffer)
    return buffer.getvalue()


@pytest.fixture
def page(stored: AppTest, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    def read(reader: str, file: Path, name: str, target: str, external: bool) -> dict[str, object]:
        assert not external
        return tensors.rewrite(file, Path(target))

    monkeypatch.setattr(files, "read_limited", read)  # in this process: the process has tests of its own
    stored.query_params["model"] = "fashion-resnet"
    return stored.switch_page("pages/models_and_data.py").run()


def give(page: AppTest, started: Started, name: str, content: bytes) -> None:
    """A file that a worker has then looked into."""
    page.file_uploader[0].set_value((name, content, "application/octet-stream")).run()
    started.do("examine")
    assert not page.run().exception


@pytest.mark.slow
def test_a_checkpoint_is_looked_into_added_chosen_and_removed(
    page: AppTest, started: Started, content: bytes
) -> None:
    give(page, started, NAME, content)
    facts = page.dataframe[0].value.set_index("field")["value"]
    assert facts["fits"] == "cifar-resnet20"
    assert facts["classes"] == "3"
    assert "values from −2.12 to 2.64" in words(page)
    name = next(field for field in page.text_input if field.label == "Name")
    assert name.value == "my-net-best"
    name.set_value("mine").run()
    next(area for area in page.text_area if area.label == "Class names").set_value("a\nb\n\nc").run()
    press(page, "Add")
    finish_adding(started)
    page.run()
    assert not page.exception
    assert page.sidebar.selectbox[0].value == "mine"
    assert cards.added_model("mine").class_names == ("a", "b", "c")
    assert "cifar-resnet20, weights of your own" in words(page)
    press(page, "Remove")
    assert not cards.added_models()


def test_a_visitor_who_has_left_the_page_is_told_once_and_keeps_what_they_chose(
    page: AppTest, started: Started, content: bytes
) -> None:
    """A click of the run in which it is found ready is of the model that was chosen when they clicked."""
    give(page, started, NAME, content)
    press(page, "Add")
    page = go_to(page, "sweep")
    finish_adding(started)
    page = press(page, "Start")
    assert model_of(newest()) == tasks.FIRST_MODEL
    assert page.sidebar.selectbox(key="model").value == tasks.FIRST_MODEL
    page.selectbox(key="model").select("fashion-vit").run()
    assert page.selectbox(key="model").value == "fashion-vit"
    page = go_to(page, "models_and_data")
    assert page.selectbox(key="model").value == "fashion-vit"
    assert not page.toast, "it was told"
    cards.remove("my-net-best")


def test_on_the_page_a_model_is_chosen_after_what_was_clicked_in_the_meantime(
    page: AppTest, started: Started, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_of: list[str] = []
    monkeypatch.setattr(kept, "show", lambda told: drawn_of.append(sidebar.selection().card.name))
    give(page, started, NAME, content)
    press(page, "Add")
    drawn_of.clear()
    finish_adding(started)
    page.run()
    assert drawn_of == [tasks.FIRST_MODEL, "my-net-best"]
    assert page.selectbox(key="model").value == "my-net-best"
    assert not has_button(page, "Add"), "nothing lies in the uploader"
    page.selectbox(key="model").select("fashion-vit").run()
    assert page.run().selectbox(key="model").value == "fashion-vit", "it is chosen once"
    cards.remove("my-net-best")


def test_a_visitor_who_has_left_the_page_is_told_in_a_toast(
    page: AppTest, started: Started, content: bytes
) -> None:
    give(page, started, NAME, content)
    press(page, "Add")
    page = go_to(page, "complexity")
    assert not page.toast
    finish_adding(started)
    assert toasts(page.run()) == ["my-net-best is added: choose it in the sidebar."]
    assert "my-net-best" in page.selectbox(key="model").options
    assert not page.run().toast
    cards.remove("my-net-best")


def test_a_visitor_who_adds_several_is_told_of_each(page: AppTest, started: Started, content: bytes) -> None:
    add_several(page, started, content)
    page = go_to(page, "complexity")
    finish_adding(started)
    assert toasts(page.run()) == [
        f"{name} is added: choose it in the sidebar." for name in ("my-net-best", "second")
    ]
    assert not page.run().toast
    remove("my-net-best", "second")


def test_of_several_that_are_ready_at_once_the_last_is_chosen_and_the_others_are_told(
    page: AppTest, started: Started, content: bytes
) -> None:
    add_several(page, started, content)
    finish_adding(started)
    assert toasts(page.run()) == ["my-net-best is added: choose it in the sidebar."]
    assert page.selectbox(key="model").value == "second"
    assert not page.run().toast
    assert not has_button(page, "Add"), "nothing lies in the uploader"
    remove("my-net-best", "second")


def test_an_id_on_the_hub_that_is_given_meanwhile_stays(
    page: AppTest, started: Started, content: bytes
) -> None:
    add_of_the_hub(page, started, content)
    hub(page).set_value("timm/second").run()
    finish_adding(started)
    assert not page.run().exception
    assert page.selectbox(key="model").value == "my-net-best"
    assert hub(page).value == "timm/second"
    remove("my-net-best")


def test_of_the_hub_too_nothing_is_given_any_more_once_it_is_added(
    page: AppTest, started: Started, content: bytes
) -> None:
    add_of_the_hub(page, started, content)
    finish_adding(started)
    assert not page.run().exception
    assert not hub(page).value
    assert not has_button(page, "Add")
    remove("my-net-best")


def add_of_the_hub(page: AppTest, started: Started, content: bytes) -> None:
    """As if a repository had what a file has."""
    give(page, started, NAME, content)
    (looked_into,) = (job for job in started.jobs() if job.task == "examine")
    page.file_uploader[0].set_value([]).run()
    hub(page).set_value("timm/first").run()
    (job,) = (job for job in started.jobs() if job.task == "examine hub")
    job.state, job.result = "done", looked_into.result
    press(page.run(), "Add")


def hub(page: AppTest) -> Any:
    """The field for an id on the hub."""
    return next(one for one in page.text_input if "hub" in one.label)


def add_several(page: AppTest, started: Started, content: bytes) -> None:
    """One file after the other, each before the one before is added."""
    for name, one in ((NAME, content), ("second.pt", content + b"\0")):
        give(page, started, name, one)
        press(page, "Add")


def finish_adding(started: Started) -> None:
    """All that is being added is in the catalogue."""
    started.do("add")
    started.catalogue = listed()


def remove(*names: str) -> None:
    for name in names:
        cards.remove(name)


@pytest.mark.parametrize("where", ["complexity", "models_and_data"])
def test_why_a_model_could_not_be_added_is_told_once_on_whichever_page(
    page: AppTest, started: Started, content: bytes, where: str
) -> None:
    give(page, started, NAME, content)
    press(page, "Add")
    page = go_to(page, where)
    (job,) = (job for job in started.jobs() if job.task == "add")
    job.state, job.error = "failed", "adding failed: the disk is *full*"
    assert toasts(page.run()) == [r"adding failed: the disk is \*full\*"]
    assert not page.run().toast
    assert not page.exception


def test_a_visitor_who_stopped_it_is_told_nothing(page: AppTest, started: Started, content: bytes) -> None:
    give(page, started, NAME, content)
    press(page, "Add")
    (job,) = (job for job in started.jobs() if job.task == "add")
    job.state, job.visitors = "cancelled", frozenset()
    page = go_to(page, "complexity")
    assert not page.toast


def test_each_of_two_who_add_the_same_is_told_and_only_of_their_own(
    page: AppTest, started: Started, content: bytes
) -> None:
    """One may be told, and another job may bear the same key, before the other's browser asks again."""
    give(page, started, NAME, content)
    press(page, "Add")
    page = go_to(page, "complexity")
    (job,) = (job for job in started.jobs() if job.task == "add")
    finish_adding(started)
    started.forget(job.key)
    started.submit(job.lane, job.task, job.request, job.key, visitor="another")
    assert toasts(page.run()) == ["my-net-best is added: choose it in the sidebar."]
    (others,) = (job for job in started.jobs() if job.task == "add")
    others.state, others.error = "failed", "that name is taken"
    assert not page.run().toast
    cards.remove("my-net-best")


def toasts(page: AppTest) -> list[str]:
    return [toast.value for toast in page.toast]


def test_class_names_say_how_they_are_read(page: AppTest, started: Started, content: bytes) -> None:
    give(page, started, NAME, content)
    area = next(area for area in page.text_area if area.label == "Class names")
    area.set_value("cat 2\nairplane 0\n*ship* 1").run()
    assert "3 names, from airplane (output 0) to cat (output 2)." in words(page)
    assert has_button(page, "Add")
    next(area for area in page.text_area if area.label == "Class names").set_value('{"cat": "x"}').run()
    assert "what is written is no list of class names (entry 1 says no output)" in page.error[0].value
    assert not has_button(page, "Add")


def has_button(page: AppTest, label: str) -> bool:
    return any(button.label == label for button in page.button)


@pytest.mark.slow
def test_what_was_removed_is_looked_into_again(page: AppTest, started: Started, content: bytes) -> None:
    """A repository of the hub has one name, and its job one key; its file is gone with the model."""
    give(page, started, NAME, content)
    (examined,) = (job for job in started.jobs() if job.task == "examine")
    assert isinstance(examined.result, Examined)
    cards.content_path(examined.result.file).unlink()
    page.run()
    assert not page.exception
    assert [job.state for job in started.jobs() if job.task == "examine"] == ["queued"]


def listed() -> object:
    """The catalogue as a worker finds it now."""
    from optimizer import work
    from optimizer.progress import quiet

    return work.run("catalogue", None, quiet)


def test_what_is_refused_is_said_below_and_not_tried_again(page: AppTest, started: Started) -> None:
    give(page, started, "notes.pt", b"no weights")
    assert "it is no checkpoint as torch.save writes them: save the weights alone" in page.error[0].value
    assert not any(button.label == "Try again" for button in page.button)
    kinds = [(one.type, getattr(one, "label", "")) for one in drawn(page.main)]
    hub = next(index for index, (_, label) in enumerate(kinds) if "hub" in label)
    error = next(index for index, (kind, _) in enumerate(kinds) if kind == "error")
    assert error < hub


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("net.PT2", "net.PT2 is of no kind that is read: it is a program of torch.export, which can"),
        ("net.tflite", "net.tflite is of no kind that is read: give one of .safetensors, .pt, .pth, .onnx"),
    ],
)
def test_a_file_of_no_kind_that_is_read_is_refused_in_our_words_and_not_kept(
    page: AppTest, started: Started, name: str, refused: str
) -> None:
    page.file_uploader[0].set_value((name, b"content", "application/octet-stream")).run()
    assert refused in words(page)
    assert "examine" not in started.tasks()
    assert not [*cards.folder().glob("*.upload*")]


def drawn(block: Any) -> Iterator[Any]:
    """Every element, in the order in which they are drawn."""
    for child in block.children.values():
        if hasattr(child, "children"):
            yield from drawn(child)
        else:
            yield child


@pytest.mark.parametrize("may", [True, False])
def test_what_can_be_no_classifier_is_not_offered_as_one(
    page: AppTest, started: Started, monkeypatch: pytest.MonkeyPatch, may: bool
) -> None:
    def read(reader: str, file: Path, name: str, target: str, external: bool) -> dict[str, object]:
        Path(target).write_bytes(b"kept")
        return {"facts": [], "shape": [3, 8, 8], "asks_shape": False, "metadata": {}, "may_classify": may}

    monkeypatch.setattr(files, "read_limited", read)
    monkeypatch.setattr(onnx_file, "PACKAGES", ())
    give(page, started, "net.onnx", b"a network")
    (box,) = (one for one in page.checkbox if one.label == "It is a classifier")
    assert (box.value, box.disabled) == (may, not may)


def test_where_this_machine_lacks_something_a_file_can_be_tried_again(
    page: AppTest, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "PACKAGES", ("nosuchpackage",))
    give(page, started, "net.onnx", b"a network")
    assert "nosuchpackage" in page.error[0].value
    assert any(button.label == "Try again" for button in page.button)


def test_what_is_too_large_to_upload_has_another_way_in(page: AppTest) -> None:
    helps = {uploader.label: uploader.help for uploader in page.file_uploader}
    assert (
        "more than 300 MB comes in by a shell there: `paretoscope add NAME"
        in helps["A model file of yours (.safetensors, .pt, .pth, .onnx)"]
    )
    assert "`paretoscope dashboard --images FOLDER`" in helps["Your images"]


def test_an_id_that_can_be_none_of_the_hub_is_refused_at_once(page: AppTest, started: Started) -> None:
    field = next(one for one in page.text_input if "hub" in one.label)
    field.set_value("not a valid id!!").run()
    assert "is no id of the hub: give one such as timm/resnet18.a1_in1k" in words(page)
    assert "examine hub" not in started.tasks()
    next(one for one in page.text_input if "hub" in one.label).set_value("timm/resnet18.a1_in1k").run()
    assert "examine hub" in started.tasks()
    assert "queued behind" in words(page)


def test_a_preset_changes_what_the_network_will_see(page: AppTest, started: Started, content: bytes) -> None:
    give(page, started, NAME, content)
    preset = next(box for box in page.selectbox if box.label == "Preprocessing")
    preset.set_value("0 to 255, BGR").run()
    assert "BGR, values from 0 to 255" in words(page)
    mean = next(field for field in page.text_input if field.label == "Mean")
    mean.set_value("1, two").run()
    assert not page.exception
    assert "give numbers with commas between" in words(page)


@pytest.mark.slow
def test_a_size_that_is_given_is_cropped_to_in_proportion(
    page: AppTest, started: Started, content: bytes
) -> None:
    give(page, started, NAME, content)
    next(box for box in page.selectbox if box.label == "Preprocessing").set_value("ImageNet").run()
    assert "the shorter side to 37, the middle 32 x 32" in words(page)
    for label in ("Height", "Width"):
        next(field for field in page.number_input if field.label == label).set_value(64).run()
    assert not page.exception
    assert "the shorter side to 74, the middle 64 x 64" in words(page)


def test_uploads_are_bounded_one_by_one_and_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = uploads.keep_upload("../../x/a.pt", 3, io.BytesIO(b"abc"))
    assert cards.content_path(kept).read_bytes() == b"abc"
    assert cards.content_path(kept).parent == cards.folder()
    assert uploads.keep_upload("b.pt", 3, io.BytesIO(b"abc")) == kept
    with pytest.raises(InputError, match="a file may have 300 MB"):
        uploads.keep_upload("b.pt", 301 * 10**6, io.BytesIO())
    for limit in ("0", "5"):
        monkeypatch.setenv(UPLOADS_VARIABLE, limit)
        with pytest.raises(InputError, match=r"--uploads"):
            uploads.keep_upload("b.pt", 3, io.BytesIO(b"xyz"))
    assert len(list(cards.folder().iterdir())) == 1


def test_an_upload_of_the_same_file_takes_it_from_no_other_visitor() -> None:
    kept = uploads.keep_upload("a.pt", 3, io.BytesIO(b"uvw"))
    with cards.content_path(kept).open("rb") as reading:
        assert uploads.keep_upload("a.pt", 3, Interrupting(b"uvw", kept)) == kept
        assert reading.read() == b"uvw"
    uploads.forget_upload(kept)
    assert cards.content_path(kept).read_bytes() == b"uvw"
    uploads.forget_upload(kept)
    assert not list(cards.folder().iterdir())


class Interrupting(io.BytesIO):
    """While it is copied, what is there already stays whole."""

    def __init__(self, content: bytes, kept: str) -> None:
        super().__init__(content)
        self.kept = kept

    def read(self, size: int | None = -1) -> bytes:
        assert cards.content_path(self.kept).read_bytes() == b"uvw"
        return super().read(size)
