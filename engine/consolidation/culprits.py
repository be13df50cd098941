"""Who spoils a candidate: after a refusal, fewer and fewer sessions are tried, until those are found that it is due to.

Names in, a verdict out; what trying is, the caller knows.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field

# A candidate of these sessions alone: why it was refused, or None where it was let in.
Trial = Callable[[tuple[str, ...]], Awaitable[str | None]]


@dataclass(frozen=True)
class Attempt:
    """A try with some of the sessions, and why it was refused; None where it was let in."""

    names: tuple[str, ...]
    refused: str | None


@dataclass(frozen=True)
class Verdict:
    """What came of all tries.

    Attributes:
        let_in: the largest choice of sessions that was let in; empty where none was.
        culprits: sessions that are refused by themselves, or that were suspects and without whom the rest was let in;
            each with the reason. None where nothing at all was let in: then it may be the gate.
        attempts: in order.
    """

    let_in: tuple[str, ...]
    culprits: dict[str, str]
    attempts: tuple[Attempt, ...]


async def judge(names: Sequence[str], suspects: Collection[str], trial: Trial, most_attempts: int) -> Verdict:
    """Finds what may be let in of these sessions, and who keeps the rest from it.

    All are tried first, then all but the suspects, then halves of those that were refused. A session that is neither
    let in nor a culprit when the tries run out is to wait.

    Args:
        names: the sessions, at least one.
        suspects: those of them that spoiled an earlier candidate.
        trial: tries some of them.
        most_attempts: bound on the tries, at least one.
    """
    search = _Search(trial, most_attempts)
    everyone = tuple(names)
    if (refused := await search.attempt(everyone)) is None:
        return search.verdict()
    waiting = tuple(name for name in everyone if name not in suspects)
    if 0 < len(waiting) < len(everyone) and search.may_go_on:
        if await search.attempt(waiting) is None:
            search.culprits |= {name: refused for name in everyone if name in suspects}
            return search.verdict()
    else:
        waiting = everyone
    while waiting and (culprit := await search.narrow(waiting)) is not None:
        waiting = tuple(name for name in waiting if name != culprit)
        if not waiting or not search.may_go_on or await search.attempt(waiting) is None:
            break
    return search.verdict()


@dataclass
class _Search:
    trial: Trial
    most_attempts: int
    attempts: list[Attempt] = field(default_factory=list)
    culprits: dict[str, str] = field(default_factory=dict)

    @property
    def may_go_on(self) -> bool:
        return len(self.attempts) < self.most_attempts

    async def attempt(self, names: tuple[str, ...]) -> str | None:
        """Tries them, unless that has been done."""
        known = next((one for one in self.attempts if set(one.names) == set(names)), None)
        if known is None:
            known = Attempt(names, await self.trial(names))
            self.attempts.append(known)
        return known.refused

    async def narrow(self, refused: tuple[str, ...]) -> str | None:
        """One of these, which are refused together, that is refused by itself; None where there is no such one."""
        while len(refused) > 1 and self.may_go_on:
            half = refused[: len(refused) // 2]
            well = set(half) <= set(self.let_in) or await self.attempt(half) is None
            refused = refused[len(half) :] if well else half
        if len(refused) > 1:
            return None
        (last,) = refused
        if not self.may_go_on and not any(one.names == refused for one in self.attempts):
            return None
        reason = await self.attempt(refused)
        if reason is not None:
            self.culprits[last] = reason
        return None if reason is None else last

    @property
    def let_in(self) -> tuple[str, ...]:
        """The largest choice that was let in so far."""
        return max((one.names for one in self.attempts if one.refused is None), key=len, default=())

    def verdict(self) -> Verdict:
        return Verdict(self.let_in, self.culprits if self.let_in else {}, tuple(self.attempts))
