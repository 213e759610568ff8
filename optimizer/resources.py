"""Files that travel with the package, and the one folder it writes to.

In a checkout ``assets/``, ``pages/`` and ``app.py`` lie beside ``optimizer/``; in an installed wheel they
lie in ``optimizer/_bundle/``.
"""

import os
from pathlib import Path

import platformdirs

from optimizer.errors import UnavailableError

HOME_VARIABLE = "PARETOSCOPE_HOME"
PACKAGE = Path(__file__).resolve().parent


def _bundle() -> Path:
    wheel = PACKAGE / "_bundle"
    return wheel if wheel.is_dir() else PACKAGE.parent


def _existing(path: Path) -> Path:
    if not path.exists():
        raise UnavailableError(
            f"{path} is missing: this installation is not whole, install paretoscope again"
        )
    return path


def assets_dir() -> Path:
    """The folder of bundled models and images. Raises UnavailableError."""
    return _existing(_bundle() / "assets")


def asset(name: str) -> Path:
    """A file of :func:`assets_dir`. Raises UnavailableError where it is missing."""
    return _existing(assets_dir() / name)


def pages_dir() -> Path:
    """The folder of the dashboard's pages. Raises UnavailableError."""
    return _existing(_bundle() / "pages")


def app_file() -> Path:
    """The script that Streamlit serves. Raises UnavailableError."""
    return _existing(_bundle() / "app.py")


def home() -> Path:
    """The user's data folder, created where it is not there: ``PARETOSCOPE_HOME``, or the platform's place.

    Raises UnavailableError when it can't be created or written.
    """
    named = os.environ.get(HOME_VARIABLE)
    folder = (
        Path(named).expanduser().absolute() if named else platformdirs.user_data_path("paretoscope", False)
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise UnavailableError(f"can't create the data folder {folder} ({error}): {_ADVICE}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UnavailableError(f"can't write to the data folder {folder}: {_ADVICE}")
    return folder


_ADVICE = f"set {HOME_VARIABLE} to a folder that you can write to"
