"""Pages opened at an address, and work that they ask for and nobody does."""

from collections.abc import Mapping
from pathlib import Path

from streamlit.testing.v1 import AppTest

from optimizer import work
from optimizer.errors import ParetoscopeError
from optimizer.progress import quiet
from optimizer.recipe import Recipe
from optimizer.records import Request
from optimizer.system.process_pool import SERVER, Job
from optimizer.work import Catalogue

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.stem for path in (ROOT / "pages").glob("*.py") if "(Not a page.)" not in path.read_text())


def entry() -> AppTest:
    """The dashboard before it is run."""
    return AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)


def open_page(name: str, link: Mapping[str, str | list[str]]) -> AppTest:
    """A page of a new visit, as a link opens it."""
    page = entry()
    page.query_params |= link
    return go_to(page, name)


def go_to(page: AppTest, name: str) -> AppTest:
    """The page of that name, in the same visit."""
    page.switch_page(f"pages/{name}.py").run()
    assert not page.exception
    return page


class Idle:
    """What works off sweeps, and does not."""

    problem = ""

    def ring(self) -> None:
        pass


class Started:
    """A pool that only lists what it was asked for; the catalogue is the true one."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.listed: dict[str, Job] = {}
        self.catalogue = catalogue

    def submit(
        self, lane: str, task: str, request: object, key: str, priority: float = 0, visitor: str = SERVER
    ) -> Job:
        job = self.listed.setdefault(key, Job(key, task, request, lane, priority))
        job.visitors |= {visitor}
        if task == "catalogue":
            job.state, job.result = "done", self.catalogue
        return job

    def get(self, key: str) -> Job | None:
        return self.listed.get(key)

    def jobs(self) -> list[Job]:
        return list(self.listed.values())

    def wait(self, job: Job, timeout: float | None = None) -> Job:
        return job

    def wait_news(self, jobs: list[Job], known: list[object], timeout: float | None) -> bool:
        return False

    def before(self, job: Job) -> int:
        return [one for one in self.listed.values() if one.lane == job.lane and not one.over].index(job)

    def idle(self, lane: str) -> bool:
        return True

    def may_stop(self, job: Job, visitor: str) -> bool:
        return True

    def withdraw(self, key: str, visitor: str = SERVER, grace: float = 0) -> bool:
        return self.listed.pop(key, None) is not None

    def do(self, task: str) -> None:
        """What was asked for of a task, done in this process as a worker does it."""
        for job in self.listed.values():
            if job.task == task and not job.over:
                try:
                    job.result, job.state = work.run(task, job.request, quiet), "done"
                except ParetoscopeError as error:
                    job.error, job.state = str(error), "failed"

    def forget(self, key: str) -> None:
        self.listed.pop(key, None)

    def tasks(self) -> list[str]:
        return [job.task for job in self.listed.values() if job.task != "catalogue"]

    def requests(self) -> list[Request]:
        """Each position that is to be measured."""
        found = [job.request for job in self.listed.values() if job.task == "measure"]
        return [request for request in found if isinstance(request, Request)]

    def recipes(self) -> list[Recipe]:
        return [request.recipe for request in self.requests()]

    def steps(self) -> list[int]:
        """Fine-tuning steps of each."""
        return [recipe.finetune_steps for recipe in self.recipes()]
