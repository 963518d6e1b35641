"""A model of checkpoint.py without I/O: workers that crash and start again, and a store that delays and loses answers.

In: the sizes and the rules of a `Model`. Out: every state that can be reached, explored exhaustively, or the first
wrong one with the way to it. Each program counter below is a step of checkpoint.py:

    list       CommitChain.load: list_commits, which refuses a gap
    check      CommitChain.load: the last and the first commit are read, check_data compares the data object of the last
    store      CommitChain._store: create NNNNNNNN.safetensors
    store-own  CommitChain._store_as_ours: create NNNNNNNN-<attempt>.safetensors
    publish    CommitChain._publish: create the commit; afterwards CommitChain._advance

A create is what storage's `create` is: the request lands and is answered; or it lands and the answer is lost; or it is
delayed, and lands at any later moment or never. In the last two cases the worker reads back (`?` after the step), and
what it sees decides: the same bytes are adopted, others are another's, nothing means to try again.

Content tells who made it: data are (batch, flavour), where workers on other hardware make another flavour; a commit is
(batch, attempt, data name, data). A wrong state is one in which the chain has a gap, or a commit is replaced, or names
data that are not there or are others.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

ALIVE = {"list", "check", "store", "store?", "store-own", "store-own?", "publish", "publish?"}


class Worker(NamedTuple):
    """`number` and `start` make the attempt id; `next_batch` is the cursor in memory; `data` what the commit names."""

    number: int
    start: int = 0
    at: str = "list"
    next_batch: int = 0
    data: tuple | None = None

    @property
    def attempt(self) -> tuple[int, int]:
        return (self.number, self.start)


class State(NamedTuple):
    """`store` holds (name, content); `delayed` the requests that may still land."""

    workers: tuple[Worker, ...]
    store: frozenset = frozenset()
    delayed: frozenset = frozenset()

    def find(self, name: tuple) -> tuple | None:
        return next((content for stored, content in self.store if stored == name), None)

    def with_worker(self, worker: Worker) -> "State":
        workers = tuple(worker if other.number == worker.number else other for other in self.workers)
        return self._replace(workers=workers)


class WrongState(AssertionError):
    """A state that must not be; `way` are the steps that led to it."""

    def __init__(self, what: str, way: list[str]):
        super().__init__(f"{what}: " + "; ".join(way))
        self.what, self.way = what, way


@dataclass(frozen=True)
class Model:
    """Sizes, and the rules that a test may break to see that the model notices."""

    num_workers: int = 2
    num_batches: int = 2
    num_starts: int = 2
    max_delayed: int = 2
    same_bytes: bool = True
    create_only: bool = True
    data_before_commit: bool = True
    waits_for_its_commit: bool = True
    knows_its_own: bool = True

    # ------------------------------------------------------------------------------------------ exploring

    def explore(self) -> int:
        """Visit every state. Returns how many there are; raises WrongState for the first that is wrong."""
        first = State(tuple(Worker(number) for number in range(self.num_workers)))
        seen, waiting, finished = {first: None}, deque([first]), set()
        while waiting:
            state = waiting.popleft()
            ends = state.store not in finished
            for step, following in self.steps(state):
                ends = False
                if following in seen:
                    continue
                seen[following] = (state, step)
                trouble = self.trouble(state, following)
                if trouble:
                    raise WrongState(trouble, _way(seen, following))
                waiting.append(following)
            if ends and not self.can_be_finished(state):
                raise WrongState("no later start can finish the stream", _way(seen, state))
            if ends:
                finished.add(state.store)
        return len(seen)

    def trouble(self, before: State, after: State) -> str | None:
        """What is wrong with a state that was reached in one step."""
        commits = {name[1]: content for name, content in after.store if name[0] == "commit"}
        if set(commits) != set(range(len(commits))):
            return "the chain has a gap"
        for number, (batch, _, data_name, data) in commits.items():
            if batch != number or data[0] != number or after.find(data_name) != data:
                return "a commit names data that are not there or are others"
        if any(after.find(name) != content for name, content in before.store if name[0] == "commit"):
            return "a commit was replaced"
        for worker in after.workers:
            if worker.at == "damaged":
                return "a worker finds damage"
            if worker.at == "fenced" and commits[worker.next_batch][1] == worker.attempt:
                return "a worker is fenced by itself"
            if worker.at == "done" and len(commits) != self.num_batches:
                return "a worker is done before the stream is"
        return None

    def can_be_finished(self, state: State) -> bool:
        """Whether one more start, left alone, brings the stream to its end."""
        state = state._replace(workers=(Worker(self.num_workers),), delayed=frozenset())
        while state.workers[0].at in ALIVE:
            _, state = next(self.worker_steps(state, state.workers[0]))
        return state.workers[0].at == "done"

    # ------------------------------------------------------------------------------------------ steps

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        for request in state.delayed:
            following = self.land(state._replace(delayed=state.delayed - {request}), *request)
            yield f"{request[0]} lands late", following
        for worker in state.workers:
            if worker.at in ALIVE:
                for step, following in self.worker_steps(state, worker):
                    yield f"{worker.attempt} {step}", following
                again = Worker(worker.number, worker.start + 1)
                gone = worker._replace(at="gone")
                yield f"{worker.attempt} is killed", state.with_worker(again if again.start < self.num_starts else gone)

    def land(self, state: State, name: tuple, content: tuple) -> State:
        there = state.find(name)
        if there is None or not self.create_only:
            state = state._replace(store=state.store - {(name, there)} | {(name, content)})
        if self.create_only:  # what is delayed for a name that is taken can change nothing any more
            state = state._replace(delayed=frozenset(request for request in state.delayed if request[0] != name))
        return state

    def worker_steps(self, state: State, worker: Worker) -> Iterator[tuple[str, State]]:
        """The steps that a worker may take from here; the first is the one without a fault."""
        if worker.at == "list":
            numbers = {name[1] for name, _ in state.store if name[0] == "commit"}
            gap = numbers != set(range(len(numbers)))
            yield "list", state.with_worker(worker._replace(at="damaged" if gap else "check", next_batch=len(numbers)))
        elif worker.at == "check":
            last = state.find(("commit", worker.next_batch - 1))
            damaged = last is not None and state.find(last[2]) != last[3]
            yield "check", state.with_worker(worker._replace(at="damaged") if damaged else self.begin(worker))
        elif worker.at.endswith("?"):
            there = state.find(self.request(worker)[0])
            again = worker._replace(at=worker.at.removesuffix("?"))
            yield "read back", state.with_worker(again if there is None else self.decide(worker, there))
        else:
            yield from self.create(state, worker)

    def create(self, state: State, worker: Worker) -> Iterator[tuple[str, State]]:
        name, content = self.request(worker)
        landed, unsure = self.land(state, name, content), worker._replace(at=worker.at + "?")
        yield f"create {name}", landed.with_worker(self.decide(worker, landed.find(name)))
        yield f"create {name}, answer lost", landed.with_worker(unsure)
        if len(state.delayed) < self.max_delayed:
            delayed = state._replace(delayed=state.delayed | {(name, content)})
            yield f"create {name}, delayed", delayed.with_worker(unsure)
            if worker.at == "publish" and not self.waits_for_its_commit:
                yield f"create {name}, not waited for", delayed.with_worker(self.advance(worker))

    # ------------------------------------------------------------------------------------------ what a worker knows

    def begin(self, worker: Worker) -> Worker:
        """At the beginning of the batch at the cursor, or at the end of the stream."""
        if worker.next_batch == self.num_batches:
            return worker._replace(at="done", data=None)
        if self.data_before_commit:
            return worker._replace(at="store", data=None)
        return worker._replace(at="publish", data=(("data", worker.next_batch), self.made_by(worker)))

    def made_by(self, worker: Worker) -> tuple:
        return (worker.next_batch, 0 if self.same_bytes else worker.number)

    def request(self, worker: Worker) -> tuple[tuple, tuple]:
        """Name and content of what a worker creates at this step."""
        step = worker.at.removesuffix("?")
        if step == "publish":
            return ("commit", worker.next_batch), (worker.next_batch, worker.attempt, *worker.data)
        own = (worker.attempt,) if step == "store-own" else ()
        return ("data", worker.next_batch, *own), self.made_by(worker)

    def decide(self, worker: Worker, there: tuple) -> Worker:
        """What a worker does after it knows what is stored under the name it created."""
        name, content = self.request(worker)
        step = worker.at.removesuffix("?")
        if step == "publish":
            ours = there == content or there[1] == worker.attempt
            return self.advance(worker) if ours and self.knows(worker) else worker._replace(at="fenced")
        if there == content:
            stored = worker._replace(at="publish", data=(name, content))
            return stored if self.data_before_commit else self.begin(worker._replace(next_batch=worker.next_batch + 1))
        return worker._replace(at="store-own" if step == "store" else "damaged")

    def knows(self, worker: Worker) -> bool:
        return self.knows_its_own or not worker.at.endswith("?")

    def advance(self, worker: Worker) -> Worker:
        if not self.data_before_commit and worker.at.startswith("publish"):
            return worker._replace(at="store")
        return self.begin(worker._replace(next_batch=worker.next_batch + 1))


def _way(seen: dict, state: State) -> list[str]:
    steps = []
    while seen[state] is not None:
        state, step = seen[state]
        steps.append(step)
    return steps[::-1]
