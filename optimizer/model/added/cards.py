"""The models that were added to this machine: a card and a file of each in the data folder. No torch.

The file is ours: written by the process that read the user's (:mod:`optimizer.model.added.child`), under the
digest of its content. Two cards may share one.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from optimizer.errors import InputError, UnavailableError
from optimizer.model.added.declared import Declared
from optimizer.model.preprocessing import IMAGENET, Preprocessing
from optimizer.records import ModelCard, digest
from optimizer.system.paths import home, home_path
from optimizer.system.whole_files import write_whole

SOURCE_NAME, FOLDER = "added", "models"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_CARD_BYTES = 8 << 20
TRAINING_ONLY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
"""Of torchvision's architectures: what runs in training alone, and may be missing in a file."""


@dataclass(frozen=True, slots=True)
class AddedModel:
    """What is known of an added model.

    ``file`` is the name of its content. ``architecture`` builds a checkpoint's module, by ``config`` (JSON)
    where it is a repository's; an ONNX file brings its own. ``classes`` is the number of classes, 0 for a
    network that is no classifier; ``class_names`` are theirs, where they are known. ``for_one``: it takes one
    image at a time. ``by_choice``: its outputs would be a classifier's, and it is said to be none.
    ``unused``: parts of it never run, and are left out.
    """

    name: str
    kind: str
    file: str
    preprocessing: Preprocessing
    parameters: int = 0
    classes: int = 0
    class_names: tuple[str, ...] = ()
    architecture: str = ""
    description: str = ""
    for_one: bool = False
    config: str = ""
    by_choice: bool = False
    unused: bool = False

    @property
    def version(self) -> str:
        """Equal for two that compute the same, whatever their names."""
        about = [self.kind, self.file, self.architecture, self.preprocessing, self.class_names]
        # A network of classes without names is measured otherwise than one that is said to be no classifier.
        more = [*([self.config] if self.config else []), *([] if self.classes else ["no classifier"])]
        more += ["by choice"] if self.by_choice else []
        more += ["without what never runs"] if self.unused or self.architecture in TRAINING_ONLY else []
        return digest([*about, *more])[:20]

    @property
    def card(self) -> ModelCard:
        return ModelCard(
            name=self.name,
            source=SOURCE_NAME,
            description=self.description,
            parameters=self.parameters,
            input_shape=self.preprocessing.input_shape,
            classes=self.classes,
            ready=content_path(self.file).is_file(),
            version=self.version,
        )


@dataclass(frozen=True)
class Refused:
    """A user's own file that would be refused again, whenever it is looked into: why."""

    words: str


@dataclass(frozen=True)
class Examined:
    """What a user's file holds, before it is added: ``file`` is the name of its content here.

    ``facts`` are pairs of words to show. ``architecture`` fits a checkpoint exactly; without one ``problem``
    says what stands apart. ``preprocessing`` is as ``preprocessing_of`` says in words: as the file says, or
    as its architecture's own weights; where that is empty it is a guess, as is its size with ``asks_shape``.
    ``class_names`` are the file's, and ``made_of`` the model that it says it was exported from; ``config`` is
    as in the card. ``may_classify`` is False where a file says that its outputs are no logits.
    """

    kind: str
    file: str
    name: str
    facts: tuple[tuple[str, str], ...]
    preprocessing: Preprocessing = IMAGENET
    architecture: str = ""
    problem: str = ""
    asks_shape: bool = False
    preprocessing_of: str = ""
    class_names: tuple[str, ...] = ()
    made_of: str = ""
    config: str = ""
    may_classify: bool = True

    def with_declared(self, declared: Declared, usual: Preprocessing, usual_of: str = "") -> "Examined":
        """With what the file says of itself, in place of what is ``usual``."""
        where = "the repository" if self.config else "the file"
        of = f"{where} says" if declared.preprocessing else usual_of
        names = declared.class_names
        first = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        return replace(
            self,
            facts=(
                *self.facts,
                *([("class names", f"{len(names):,} in {where}: {first}")] if names else []),
                *(("left out", words) for words in declared.left_out),
            ),
            preprocessing=declared.preprocessing or usual,
            preprocessing_of=of,
            class_names=names,
            made_of=declared.made_of,
        )


@dataclass(frozen=True, slots=True)
class Choices:
    """What a user decides of a file: what is left out is the file's own, or the architecture's.

    Not a ``classifier``: outputs are compared with the uncompressed network's, whatever their shape.
    """

    name: str = ""
    architecture: str = ""
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] = ()
    classifier: bool = True


@dataclass(frozen=True, slots=True)
class Trial:
    """Of ``total`` labelled images, those answered rightly with the preprocessing that was chosen, and with
    what does far ``better``, where something does."""

    total: int
    right: int
    better: str = ""
    better_right: int = 0

    @property
    def words(self) -> str:
        if not self.total:
            return ""
        said = f"{self.right} of {self.total} labelled images are answered rightly with this preprocessing"
        if not self.better:
            return said
        points = 100 * (self.better_right - self.right) / self.total
        return (
            f"{said}, {self.better_right} with {self.better}: {points:.0f} points more. The one that is "
            "chosen is probably wrong"
        )


def is_empty() -> bool:
    """Whether nothing was ever added here. Makes no folder."""
    return not (home_path() / FOLDER).is_dir()


def folder() -> Path:
    """Where cards and files lie, made where it is not there. Raises UnavailableError."""
    place = home() / FOLDER
    try:
        place.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise UnavailableError(f"can't create the folder {place} ({error.strerror})") from error
    return place


def content_path(file: str) -> Path:
    return folder() / file


def check_name(name: str) -> str:
    """Raises InputError for what can't name a model."""
    if not NAME.fullmatch(name):
        raise InputError(
            f"{name!r} can't name a model: give 1 to 64 letters, digits, dots, dashes or underscores, with a "
            "letter or digit first"
        )
    return name


def suggested_name(file_name: str) -> str:
    """A name that is allowed, after a file's."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(file_name).stem).strip("._-")[:64]
    return plain or "model"


def added_models() -> dict[str, AddedModel]:
    """Those whose cards can be read, by name."""
    return {model.name: model for model in _read_all() if isinstance(model, AddedModel)}


def problems() -> tuple[str, ...]:
    """In words, each card that can't be read."""
    return tuple(str(error) for error in _read_all() if isinstance(error, InputError))


def _read_all() -> Iterator[AddedModel | InputError]:
    for path in _card_paths():
        try:
            yield read_card(path)
        except InputError as error:
            yield error


def added_model(name: str) -> AddedModel:
    """Raises InputError for one that was not added, or whose card is damaged."""
    return read_card(_path_of(name))


def _path_of(name: str) -> Path:
    """Where the card of a model lies. Raises InputError for one that was not added."""
    path = card_path(check_name(name))
    if not path.is_file():
        known = ", ".join(added_models()) or "none yet"
        raise InputError(f"no model {name!r} was added to this machine: there are {known}")
    return path


def version_of(name: str) -> str:
    """Of an added model; empty for any other."""
    if is_empty() or not NAME.fullmatch(name):
        return ""
    with suppress(InputError, UnavailableError):
        path = card_path(name)
        return read_card(path).version if path.is_file() else ""
    return ""


def read_card(path: Path) -> AddedModel:
    """Raises InputError for a card that is damaged."""
    try:
        model = msgspec.json.decode(path.read_bytes()[:MAX_CARD_BYTES], type=AddedModel)
        if model.name != path.stem or not re.fullmatch(r"[0-9a-f]{20}\.(safetensors|onnx)", model.file):
            raise ValueError("it is another model's")
    except (OSError, ValueError) as error:  # msgspec's are ValueErrors
        raise InputError(
            f"the card {path} of an added model can't be read ({error}): "
            f"`paretoscope remove {path.stem}`, and add it again"
        ) from error
    return model


def save_card(model: AddedModel) -> None:
    """Write a card whole, or not at all. Raises UnavailableError."""
    path = card_path(check_name(model.name))
    try:
        write_whole(path, msgspec.json.encode(model))
    except OSError as error:
        raise UnavailableError(f"can't write {path} ({error.strerror}): make room") from error


def remove(name: str) -> None:
    """Drop a card, and its file unless another card has it. What was measured stays. Raises InputError for
    a model that was not added."""
    path, file = _path_of(name), ""
    with suppress(InputError):  # a damaged card goes too
        file = read_card(path).file
    path.unlink()
    if file and file not in {other.file for other in added_models().values()}:
        content_path(file).unlink(missing_ok=True)


def changed() -> tuple[tuple[str, int], ...]:
    """Differs when a model was added or removed."""
    return tuple((path.name, path.stat().st_mtime_ns) for path in _card_paths())


def _card_paths() -> list[Path]:
    return [] if is_empty() else sorted(folder().glob("*.json"))


def card_path(name: str) -> Path:
    """Where the card of an added model lies, or would."""
    return folder() / f"{name}.json"
