"""Where the package's own files and the user's data folder are."""

import os
import stat
import tempfile
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from optimizer.errors import UnavailableError
from optimizer.system import machine_lock, paths


def test_an_asset_of_the_checkout_is_found() -> None:
    assert paths.asset("fashion-test.npz").is_file()
    assert paths.asset("fashion-test.npz").parent == paths.assets_dir()


def test_a_wheel_s_bundle_is_used_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tmp_path / "optimizer" / "_bundle"
    (bundle / "assets").mkdir(parents=True)
    (bundle / "pages").mkdir()
    (bundle / "app.py").touch()
    (bundle / "assets" / "logo.svg").touch()
    (tmp_path / "assets").mkdir()  # of some other package beside ours in site-packages
    monkeypatch.setattr(paths, "PACKAGE", tmp_path / "optimizer")
    assert paths.asset("logo.svg") == bundle / "assets" / "logo.svg"
    assert paths.app_file() == bundle / "app.py"


def test_a_missing_asset_says_to_install_again() -> None:
    with pytest.raises(UnavailableError, match=r"nothing\.npz is missing.*install paretoscope again"):
        paths.asset("nothing.npz")


def test_home_is_the_variable_s_folder_and_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARETOSCOPE_HOME", str(tmp_path / "a" / "b"))
    assert paths.home() == tmp_path / "a" / "b"
    assert paths.home().is_dir()


@pytest.mark.skipif(os.name != "posix", reason="the platform's data folder is steered by HOME on POSIX")
def test_home_without_the_variable_is_the_platform_s_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARETOSCOPE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    folder = paths.home()
    assert folder.name == "paretoscope"
    assert tmp_path in folder.parents


@pytest.mark.skipif(os.name != "posix", reason="elsewhere the user's folders are not in a variable")
@pytest.mark.parametrize("named", ["", "~/data"])
def test_a_user_without_a_home_is_told_to_name_one(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that runs under a number that it doesn't know."""
    import pwd

    def unknown(user: int) -> object:
        raise KeyError(f"getpwuid(): uid not found: {user}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for variable in ("HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PARETOSCOPE_HOME", named)
    with pytest.raises(UnavailableError, match=r"no home folder .*set PARETOSCOPE_HOME to a folder"):
        paths.home_path()
    monkeypatch.setenv("PARETOSCOPE_HOME", str(tmp_path / "data"))
    assert paths.home() == tmp_path / "data"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with machine_lock.machine_lock("named"):
        assert [*tmp_path.rglob("named.lock")]


def test_home_that_can_t_be_created_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PARETOSCOPE_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(UnavailableError, match=r"can't create the folder .*PARETOSCOPE_HOME"):
        paths.home()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_home_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o500)
    monkeypatch.setenv("PARETOSCOPE_HOME", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"can't write to the folder .*PARETOSCOPE_HOME"):
        paths.home()


POSIX = pytest.mark.skipif(os.name != "posix", reason="modes tell nothing on Windows")
ROOT = pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() != 0, reason="only root may give files away")


@POSIX
def test_home_is_created_for_its_user_alone(home: Path) -> None:
    assert stat.S_IMODE(paths.home().stat().st_mode) == 0o700


@POSIX
@pytest.mark.parametrize("mode", [0o755, 0o750, 0o711, 0o700])
def test_a_home_that_others_may_only_read_is_used_as_before(home: Path, mode: int) -> None:
    home.mkdir()
    home.chmod(mode)
    assert paths.home() == home
    assert stat.S_IMODE(home.stat().st_mode) == mode


@POSIX
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o757, 0o702])
def test_a_home_that_others_can_write_to_is_refused(home: Path, mode: int) -> None:
    home.mkdir()
    home.chmod(mode)
    with pytest.raises(UnavailableError, match=rf"mode {mode:04o}.*chmod -R go-w {home}.*PARETOSCOPE_HOME"):
        paths.home()


@POSIX
@pytest.mark.parametrize(
    ("name", "members", "used"), [("me", [], True), ("me", ["eve"], False), ("all", [], False)]
)
def test_a_group_may_write_only_where_it_is_the_user_s_own(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str, members: list[str], used: bool
) -> None:
    """As with the usual umask of 002, where each user has a group of the same name."""
    home.mkdir()
    home.chmod(0o775)
    group = home.stat().st_gid
    monkeypatch.setattr("pwd.getpwuid", lambda _: SimpleNamespace(pw_name="me", pw_gid=group))
    monkeypatch.setattr("grp.getgrgid", lambda gid: SimpleNamespace(gr_gid=gid, gr_name=name, gr_mem=members))
    if used:
        assert paths.home() == home
        return
    with pytest.raises(UnavailableError, match="mode 0775"):
        paths.home()


@POSIX
def test_a_home_that_everybody_can_put_another_in_place_of_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    above = tmp_path / "above"
    above.mkdir()
    monkeypatch.setenv("PARETOSCOPE_HOME", str(above / "home"))
    above.chmod(0o777)
    with pytest.raises(UnavailableError, match=rf"{above} above it has mode 0777.*chmod o-w {above}"):
        paths.home()
    above.chmod(0o1777)  # as the temporary folder: none but the owner renames
    assert paths.home() == above / "home"


@POSIX
def test_a_link_to_a_home_is_as_safe_as_where_it_leads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("PARETOSCOPE_HOME", str(tmp_path / "link"))
    assert paths.home() == tmp_path / "link"
    (tmp_path / "real").chmod(0o777)
    with pytest.raises(UnavailableError, match=f"{tmp_path / 'real'} has mode 0777"):
        paths.home()


@ROOT
def test_a_home_of_another_user_is_refused_as_a_link_of_theirs_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a volume of user 1000 in a container that runs as root."""
    for name in ("real", "theirs"):
        (tmp_path / name).mkdir(mode=0o755)
    os.chown(tmp_path / "theirs", 1000, 1000)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.chown(tmp_path / "link", 1000, 1000, follow_symlinks=False)
    for name in ("theirs", "link"):
        monkeypatch.setenv("PARETOSCOPE_HOME", str(tmp_path / name))
        with pytest.raises(UnavailableError, match=r"belongs to user 1000, and this is user 0.*chown -R 0"):
            paths.home()


@pytest.mark.parametrize(
    ("kind", "network"),
    [
        ("ext4", False),
        ("overlay", False),
        ("fuseblk", False),
        ("nfs4", True),
        ("fuse.sshfs", True),
        ("9p", True),
    ],
)
def test_a_network_s_file_system_is_told_by_where_a_folder_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, network: bool
) -> None:
    def disk(mountpoint: Path | str, fstype: str) -> SimpleNamespace:
        return SimpleNamespace(mountpoint=str(mountpoint), fstype=fstype, opts="rw")

    disks = [disk(tmp_path / "share", "autofs"), disk(tmp_path / "share", kind), disk("/", "ext4")]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: disks)
    assert paths.is_network(tmp_path / "share" / "not there yet") == network
    assert not paths.is_network(tmp_path / "shared")
    (tmp_path / "link").symlink_to(tmp_path / "share")
    assert paths.is_network(tmp_path / "link") == network


def test_this_machine_s_disks_are_no_network(tmp_path: Path) -> None:
    assert not paths.is_network(tmp_path)
