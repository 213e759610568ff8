"""Questions kept: asked of the ledger, answered once for whoever asks, and gone on with after a kill."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from optimizer.analysis import stored
from optimizer.errors import InputError, UnavailableError
from optimizer.methods import plugins
from optimizer.records import Result, decode, digest, encode
from optimizer.search.confirming import candidates, loses
from optimizer.search.records import NOT_BEGUN, Answer, Confirmed, Progress, Question
from optimizer.store import ledger
from optimizer.store.items import Sweep
from optimizer.store.keys import request_key
from optimizer.store.results import ANSWER, EARLY_ANSWER, SEARCH, Store


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer, and the stored ones of the results that it names, by their keys."""

    answer: Answer
    results: Mapping[str, Result]

    @property
    def best(self) -> Result | None:
        """What was found, with the time that was taken afresh; None where nothing keeps to the limits."""
        best = self.answer.best
        return best.timed(self.results[best.key]) if best else None

    @property
    def measured(self) -> list[Result]:
        """What was measured on the way, in order, as far as it is still stored."""
        keys = (trial.key for trial in self.answer.progress.trials)
        return [self.results[key] for key in keys if key in self.results]

    @property
    def shown(self) -> list[Result]:
        """Each once, the best with the time that was taken afresh."""
        best = self.best
        others = [one for one in self.measured if best is None or one.key != best.key]
        return [*([best] if best else []), *others]


def keys_of(question: Question) -> tuple[str, str]:
    """Of its search, which questions share that differ in their budget alone, and of its answer.

    They change with what the key of a result changes with (:mod:`optimizer.store.keys`). Raises InputError
    for images that can't be read.
    """
    settings = replace(question.settings, threads=question.space.threads[0])
    asked = decode(encode(replace(question, settings=settings)), Question)  # 5 and 5.0 are the same
    rest = [request_key(question.base), sorted(plugins.packages.items())]
    return digest([*rest, replace(asked, budget_seconds=1.0)]), digest([*rest, asked])


def ask(store: Store, question: Question, who: str) -> int:
    """The number of the question in the ledger, where it waits unless it has an answer.

    Raises what :func:`keys_of` and :func:`optimizer.store.ledger.ask` do.
    """
    return ledger.ask(store, encode(question), question.base, *keys_of(question), who)


def question_of(sweep: Sweep) -> Question:
    """Raises InputError for a sweep of another kind, and for what this version can't read."""
    if sweep.answer is None:
        raise InputError(
            f"{sweep.title} is no question: `paretoscope sweep --resume {sweep.id}` goes on with it"
        )
    try:
        return decode(sweep.asked, Question)
    except InputError as error:
        raise InputError(f"this version can't read what {sweep.title} asks: ask it anew") from error


def answer_of(store: Store, key: str | None, tried: bool = True) -> Answered | None:
    """What is stored under the key of an answer, else one that was ended early, with the results that it
    speaks of, and those of all that was ``tried``. One that speaks of what is stored no more, or can't be
    read, is dropped, so that the question can be asked again."""
    for kind in (ANSWER, EARLY_ANSWER) if key else ():
        answer = store.get_document(kind, str(key), Answer)
        if answer is None:
            continue
        others = [trial.key for trial in answer.progress.trials if tried]
        results = {result.key: result for result in stored.several(store, [*answer.keys, *others])}
        if results.keys() >= {*answer.keys}:
            return Answered(answer, results)
        with suppress(UnavailableError):
            store.forget_document(kind, str(key))
    return None


def progress_of(store: Store, search: str) -> Progress:
    """How far a search is, by its key, wherever it runs."""
    return store.get_document(SEARCH, search, Progress) or NOT_BEGUN


def so_far(store: Store, sweep: Sweep) -> Answered | None:
    """What the search of a question without an answer has found, by what it kept of its progress, as an
    answer that was ended early and timed nothing afresh; None where it tried nothing. Raises InputError as
    :func:`question_of` does."""
    question, (item,) = question_of(sweep), ledger.items(store, sweep.id)
    progress = progress_of(store, item.key)
    if not progress.trials:
        return None
    keys = [trial.key for trial in progress.trials]
    results = {result.key: result for result in stored.several(store, keys)}
    good, _ = candidates([results[key] for key in keys if key in results], question)
    best = next((Confirmed(one.key, one.latency) for one in good if not loses(one, question)), None)
    return Answered(Answer(question, progress, best, (), (), is_early=True), results)


def seconds_left(store: Store, numbers: Iterable[int]) -> float:
    """That questions of the ledger may still take, by their budgets."""
    seconds = 0.0
    for number in numbers:
        with suppress(InputError):  # of another version
            question, (item,) = question_of(ledger.find(store, number)), ledger.items(store, number)
            seconds += max(0.0, question.budget_seconds - progress_of(store, item.key).seconds)
    return seconds
