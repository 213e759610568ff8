"""Content keys: equal for two requests that would give the same result on this machine."""

from optimizer import __version__
from optimizer.environment import environment
from optimizer.folders import fingerprint
from optimizer.records import SCHEMA, Request, digest


def request_key(request: Request) -> str:
    """Changes with the request, the files in its image folders, the code, the libraries and the machine."""
    return digest([SCHEMA, __version__, request, fingerprint(request.data), environment().key])
