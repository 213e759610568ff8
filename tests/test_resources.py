"""Where the package's own files and the user's data folder are."""

import os
from pathlib import Path

import pytest

from optimizer import resources
from optimizer.errors import UnavailableError


def test_an_asset_of_the_checkout_is_found() -> None:
    assert resources.asset("fashion-test.npz").is_file()
    assert resources.asset("fashion-test.npz").parent == resources.assets_dir()


def test_a_wheel_s_bundle_is_used_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tmp_path / "optimizer" / "_bundle"
    (bundle / "assets").mkdir(parents=True)
    (bundle / "pages").mkdir()
    (bundle / "app.py").touch()
    (bundle / "assets" / "logo.svg").touch()
    (tmp_path / "assets").mkdir()  # of some other package beside ours in site-packages
    monkeypatch.setattr(resources, "PACKAGE", tmp_path / "optimizer")
    assert resources.asset("logo.svg") == bundle / "assets" / "logo.svg"
    assert resources.pages_dir() == bundle / "pages"
    assert resources.app_file() == bundle / "app.py"


def test_a_missing_asset_says_to_install_again() -> None:
    with pytest.raises(UnavailableError, match=r"nothing\.npz is missing.*install paretoscope again"):
        resources.asset("nothing.npz")


def test_home_is_the_variable_s_folder_and_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARETOSCOPE_HOME", str(tmp_path / "a" / "b"))
    assert resources.home() == tmp_path / "a" / "b"
    assert resources.home().is_dir()


@pytest.mark.skipif(os.name != "posix", reason="the platform's data folder is steered by HOME on POSIX")
def test_home_without_the_variable_is_the_platform_s_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARETOSCOPE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    folder = resources.home()
    assert folder.name == "paretoscope"
    assert tmp_path in folder.parents


def test_home_that_can_t_be_created_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PARETOSCOPE_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(UnavailableError, match=r"can't create the data folder .*PARETOSCOPE_HOME"):
        resources.home()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_home_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o500)
    monkeypatch.setenv("PARETOSCOPE_HOME", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"can't write to the data folder .*PARETOSCOPE_HOME"):
        resources.home()
