"""Files that travel with the package, and the one folder it writes to.

In a checkout ``assets/``, ``pages/`` and ``app.py`` lie beside ``optimizer/``; in an installed wheel they
lie in ``optimizer/_bundle/``.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from optimizer.errors import UnavailableError

APP = "paretoscope"
HOME_VARIABLE = "PARETOSCOPE_HOME"
STORE_VARIABLE = "PARETOSCOPE_STORE"
"""Names a database for the results, in place of a file in the data folder."""
JOB_LOG_VARIABLE = "PARETOSCOPE_JOB_LOG"
"""Names the file in which a dashboard's server notes what its jobs come to."""
NETWORKS = (
    "nfs", "cifs", "smb", "ncpfs", "afs", "9p", "virtiofs", "vboxsf", "vmhgfs", "prl_fs", "fuse.", "macfuse",
    "webdav", "lustre", "ceph", "gpfs", "beegfs", "gluster", "ocfs2", "gfs2", "orangefs", "pvfs2", "wekafs",
)  # fmt: skip
"""How the names of file systems begin that another machine, or the host of this virtual one, writes too."""
READ_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""For :func:`os.open`: without waiting for a pipe's other end."""
PACKAGE = Path(__file__).resolve().parents[1]


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


def app_file() -> Path:
    """The script that Streamlit serves. Raises UnavailableError."""
    return _existing(_bundle() / "app.py")


def home() -> Path:
    """The user's data folder, created where it is not there: ``PARETOSCOPE_HOME``, or the platform's place.

    Compiled code is kept in it and loaded from it, so nobody else may write there. Raises UnavailableError
    when they may, or when it can't be created or written.
    """
    return private(home_path())


def home_path() -> Path:
    """Where :func:`home` is or will be: nothing is created. Raises UnavailableError for a user who has no
    home, as in a container, and names none."""
    named = os.environ.get(HOME_VARIABLE)
    try:
        usual = Path(named) if named else platformdirs.user_data_path(APP, False)
        return usual.expanduser().absolute()
    except RuntimeError as error:
        raise UnavailableError(
            f"this user has no home folder for {named or 'the data'} ({error}): set {HOME_VARIABLE} to a "
            "folder of your own, as an absolute path"
        ) from error


def private(folder: Path, advice: str = f"set {HOME_VARIABLE} to a folder of your own") -> Path:
    """``folder``, created for this user alone where it is not there; others may read one that is.

    Raises UnavailableError, which ends in ``advice``, when it can't be created or written, when another user
    than root can write to it, or when everybody can put another folder in its place. (A user's own group, of
    which nobody else is a member, is the user. On Windows, whose modes don't tell, only the former.)
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        others = next(_others(folder), "") if os.name == "posix" else ""
    except (OSError, ValueError) as error:
        raise UnavailableError(f"can't create the folder {folder} ({error}): {advice}") from error
    if others:
        raise UnavailableError(
            f"won't use the folder {folder}, as others could change it: {others}, or {advice}"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UnavailableError(f"can't write to the folder {folder}: {advice}")
    return folder


def is_network(folder: Path) -> bool:
    """Whether a folder, which need not be there yet, is on a file system that other machines may write to."""
    import psutil

    real = folder.resolve()
    if str(real).startswith("\\\\"):  # a share of Windows without a letter
        return True
    found, longest = False, -1
    for disk in psutil.disk_partitions(all=True):  # of two at one place the later is what is seen
        if len(disk.mountpoint) >= longest and real.is_relative_to(disk.mountpoint):
            longest = len(disk.mountpoint)
            found = disk.fstype.lower().startswith(NETWORKS) or "remote" in disk.opts.split(",")
    return found


def _others(folder: Path) -> Iterator[str]:
    """In words, each way in which another user could change what is in a folder, and how to end it."""
    real = folder.resolve()
    for place, status in ((folder, folder.lstat()), (real, real.stat())):
        if status.st_uid not in (0, os.geteuid()):
            yield (
                f"{place} belongs to user {status.st_uid}, and this is user {os.geteuid()}. Run as that user,"
                f" or `chown -R {os.geteuid()} {place}`"
            )
    mode, group = real.stat().st_mode, real.stat().st_gid
    if mode & stat.S_IWOTH or (mode & stat.S_IWGRP and not _is_own_group(group)):
        yield f"{real} has mode {stat.S_IMODE(mode):04o}. Look what is in it and `chmod -R go-w {real}`"
    for place in dict.fromkeys((*folder.parents, *real.parents)):
        mode = place.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            yield f"{place} above it has mode {stat.S_IMODE(mode):04o}. `chmod o-w {place}`"


def _is_own_group(group: int) -> bool:
    """Whether nobody but this user is in a group, as where each user has one of the same name."""
    import grp
    import pwd

    try:
        user, found = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    return (found.gr_gid, found.gr_name) == (user.pw_gid, user.pw_name) and set(found.gr_mem) <= {
        user.pw_name
    }
