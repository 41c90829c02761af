"""Plans of steps: applied in order, undone in reverse, never half."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from control.plan import Step, execute, reapply, undo


class World:
    """Notes what is done, and refuses what is in `broken` (as "apply b")."""

    def __init__(self, *broken: str) -> None:
        self.done: list[str] = []
        self.broken = set(broken)
        self.seen: list[tuple[str, str]] = []

    def steps(self, names: str = "abc") -> list[Step]:
        return [Step(name, self._act("apply", name), self._act("revert", name)) for name in names]

    def _act(self, phase: str, name: str) -> Callable[[], None]:
        def act() -> None:
            self.done.append(f"{phase} {name}")
            if f"{phase} {name}" in self.broken:
                raise OSError(f"no {phase} of {name}")

        return act

    def observe(self, phase: str, step: Step) -> None:
        self.seen.append((phase, step.name))


def test_steps_are_applied_in_order_and_reverted_in_reverse() -> None:
    world = World()
    execute(world.steps())
    undo(world.steps())
    assert world.done == ["apply a", "apply b", "apply c", "revert c", "revert b", "revert a"]


def test_a_failing_step_and_those_before_it_are_reverted_and_its_error_says_which() -> None:
    world = World("apply b")
    with pytest.raises(OSError, match="no apply of b") as caught:
        execute(world.steps())
    assert world.done == ["apply a", "apply b", "revert b", "revert a"]
    assert caught.value.__notes__ == ["while applying: b"]


def test_what_fails_while_undoing_is_noted_and_stops_nothing() -> None:
    world = World("apply c", "revert b")
    with pytest.raises(OSError, match="no apply of c") as caught:
        execute(world.steps())
    assert world.done == ["apply a", "apply b", "apply c", "revert c", "revert b", "revert a"]
    assert caught.value.__notes__ == ["while applying: c", "and while undoing: no revert of b"]


def test_undoing_goes_on_past_errors_and_raises_them_together() -> None:
    world = World("revert c", "revert a")
    with pytest.raises(ExceptionGroup) as caught:
        undo(world.steps())
    assert world.done == ["revert c", "revert b", "revert a"]
    assert [str(error) for error in caught.value.exceptions] == ["no revert of c", "no revert of a"]
    assert [error.__notes__ for error in caught.value.exceptions] == [["while reverting: c"], ["while reverting: a"]]


def test_what_works_already_is_not_torn_down_when_applying_it_again_fails() -> None:
    world = World("apply b")
    with pytest.raises(OSError, match="no apply of b") as caught:
        reapply(world.steps())
    assert world.done == ["apply a", "apply b"]
    assert caught.value.__notes__ == ["while applying again: b"]


def test_the_observer_sees_every_step_before_it_is_taken() -> None:
    world = World()
    execute(world.steps("ab"), world.observe)
    reapply(world.steps("a"), world.observe)
    undo(world.steps("ab"), world.observe)
    assert world.seen == [("apply", "a"), ("apply", "b"), ("apply", "a"), ("revert", "b"), ("revert", "a")]


def test_a_step_that_the_observer_stops_is_not_taken_but_undone() -> None:
    """As a test stops linkspand at a step: whether it was taken is then not known."""
    world = World()

    def stop(phase: str, step: Step) -> None:
        if (phase, step.name) == ("apply", "b"):
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        execute(world.steps(), stop)
    assert world.done == ["apply a", "revert b", "revert a"]


def test_nothing_to_do_is_no_error() -> None:
    execute([])
    reapply([])
    undo([])


def test_an_exit_is_not_taken_for_a_failing_step() -> None:
    """KeyboardInterrupt and SystemExit pass; what was done is dealt with at the next start."""
    done: list[str] = []

    def leave() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute([Step("a", leave, lambda: done.append("revert a"))])
    assert done == []
