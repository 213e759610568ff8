"""The machine and the libraries that a number comes from."""

from dataclasses import dataclass, field

from optimizer.records.encoding import LATER, digest


@dataclass(frozen=True, slots=True)
class Environment:
    """The machine and the libraries that gave a number.

    ``threads`` can run at once where this machine's cores run several each (SMT). None where each runs one,
    so that they are ``cores``, and in what was stored before they were counted. ``variables`` are those set
    in the process that libraries read when they choose kernels or how threads wait.
    """

    cpu: str
    instruction_sets: tuple[str, ...]
    cores: int
    governor: str | None
    memory_bytes: int
    system: str
    python: str
    libraries: dict[str, str]
    threads: int | None = None
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Equal for two results whose latencies may share an axis."""
        later = [one for one in (self.threads, self.variables) if one]
        return digest([self.cpu, self.instruction_sets, self.cores, self.governor, self.libraries, *later])


LATER[Environment] = {"threads": (None, {}), "variables": ({}, {})}
