"""Guards around one flight: once for the flight, however many callers wait for it.

`before` guards that are remote are asked first. `during` guards are asked beside the upstream's call, whose bytes
wait in the intake's gate; a block cancels the call in the tick in which it is known. `after` guards judge the answer:
a whole one when it is complete, a stream in windows (`screening_answers`). What built-in `before` guards have to say
was said before the fingerprint (`vetting`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from proxy.config.guards import Guard
from proxy.errors import Kind, ProxyError
from proxy.guard.base import merge_findings
from proxy.guard.run import GuardRunner, Matter
from proxy.guard.texts import read_answer, read_request
from proxy.guarded_intake import GuardedIntake, HeldBytes, note_flags
from proxy.protocol.call import parse_call
from proxy.screening_answers import AnswerStages
from proxy.work import Work

Ask = Callable[[], Awaitable[None]]


class Screening:
    """Guards flights. One for the process; everything about a flight is on its intake."""

    __slots__ = ("_note_bug", "held", "runner")

    def __init__(self, runner: GuardRunner, note_bug: Callable[[str, BaseException], None]) -> None:
        self.runner = runner
        self._note_bug = note_bug
        self.held = HeldBytes()

    async def fly(self, intake: GuardedIntake, ask: Ask) -> None:
        """Fill the intake's flight by ``ask``, which calls the upstream, as far as its guards let it. Raises
        ``ProxyError``."""
        work: Work = intake.flight.work
        guards = work.plan.guards
        assert guards is not None
        remote = [guard for guard in guards.before if guard.is_remote]
        matter = _read_matter(intake, work) if remote or guards.during else None
        if remote:
            assert matter is not None
            error = await self._rule(intake, remote, matter)
            if error is not None:
                raise error
        stages = AnswerStages(self.runner, guards.after, intake, self._note_bug) if guards.after else None
        if stages is not None:
            intake.screen(stages)
        failure = None
        try:
            if guards.during:
                assert matter is not None
                failure = await self._ask_beside(intake, guards.during, matter, ask)
            else:
                failure = await _ask_and_keep(intake, ask)
            if failure is not None:
                intake.break_off()
            if stages is not None:
                await stages.finish()
        finally:
            if stages is not None:
                stages.close()
        if intake.answer is not None and stages is not None and failure is None:
            await self._judge_answer(intake, stages, intake.answer[1])
        if failure is not None:
            raise failure

    # -- the request -----------------------------------------------------------------------------------------

    async def _ask_beside(
        self, intake: GuardedIntake, guards: Sequence[Guard], matter: Matter, ask: Ask
    ) -> ProxyError | None:
        """Call the upstream while the request is judged. The upstream's failure is returned where something of its
        answer waits to be let through."""
        intake.hold()
        judging = asyncio.get_running_loop().create_task(self._judge_request(intake, guards, matter))
        try:
            failure = await _ask_and_keep(intake, ask)
            await judging
        finally:
            judging.cancel()  # nothing, if it is done
        return failure

    async def _judge_request(self, intake: GuardedIntake, guards: Sequence[Guard], matter: Matter) -> None:
        try:
            error = await self._rule(intake, guards, matter)
            if error is None:
                intake.let_go()
            else:
                intake.block(error)
        except Exception as bug:  # noqa: BLE001 - the gate must not stay closed
            self._note_bug("screening", bug)
            intake.block(ProxyError(Kind.BUG, "Internal error.", detail=repr(bug)))

    async def _rule(self, intake: GuardedIntake, guards: Sequence[Guard], matter: Matter) -> ProxyError | None:
        ruling = await self.runner.rule_later(guards, matter)
        note_flags(intake, ruling.flagged)
        return ruling.error

    # -- the answer ------------------------------------------------------------------------------------------

    async def _judge_answer(self, intake: GuardedIntake, stages: AnswerStages, body: bytes) -> None:
        """Judge a whole answer and let go what is left of it. Raises ``ProxyError``."""
        answer = read_answer(body, intake.route)
        if answer is None:
            error = stages.unreadable("answer")
            if error is not None:
                raise error
            intake.finish(body)
            return
        matter = stages.matter._replace(texts=[text for _, text in answer.texts])
        ruling = await self.runner.rule_later(stages.guards, matter)
        note_flags(intake, ruling.flagged)
        if ruling.error is not None:
            raise ruling.error
        if ruling.found:
            body = answer.redact({at: merge_findings(found) for at, found in ruling.found.items()})
        intake.finish(body)


async def _ask_and_keep(intake: GuardedIntake, ask: Ask) -> ProxyError | None:
    """The upstream's failure, if something that came before it is still to be let through."""
    try:
        await ask()
    except ProxyError as error:
        if not intake.holds:
            raise
        return error
    return None


def _read_matter(intake: GuardedIntake, work: Work) -> Matter:
    plan, body = work.plan, work.body
    assert isinstance(body, bytes)
    texts = [text for _, text in read_request(parse_call(plan.route, body), plan.route)]
    request_id = f"flight_{intake.flight.id}"
    return Matter("request", texts, plan.route.name, plan.model, work.principal.key_id, request_id)
