"""A session with many sockets: what comes at the same moment is written to each of them in one go."""

from __future__ import annotations

from gateway.hub import _CROWD
from tests.unit.gateway.fakes import settle
from tests.unit.gateway.test_hub import World


async def test_a_crowds_messages_are_gathered() -> None:
    """Many batches of one read are one write for each socket, in order."""
    world = World()
    sockets = [await world.open() for _ in range(_CROWD + 1)]
    for _ in range(20):
        world.say(2)
    await settle()
    for socket in sockets:
        assert socket.seqs == list(range(1, 41))
        assert len(socket.written) == 1
    assert world.hub.gaps == 0


async def test_a_few_sockets_are_written_to_at_once() -> None:
    """Nothing waits where there is no crowd."""
    world = World()
    sockets = [await world.open() for _ in range(_CROWD)]
    world.say()
    assert all(socket.seqs == [1] for socket in sockets)


async def test_a_gap_in_what_was_gathered_is_filled() -> None:
    """A batch that was never published is found, as with one socket."""
    world = World()
    sockets = [await world.open() for _ in range(_CROWD + 1)]
    world.say()
    world.log.append(1)  # not published
    world.say()
    await settle()
    for socket in sockets:
        assert socket.seqs == [1, 2, 3]


async def test_a_crowd_that_shrinks_keeps_its_order() -> None:
    """What comes when most have left stands behind what was gathered for all."""
    world = World()
    sockets = [await world.open() for _ in range(_CROWD + 1)]
    world.say()
    for socket in sockets[1:]:
        socket.leave()
    world.say()
    await settle()
    assert sockets[0].seqs == [1, 2]
    assert world.hub.gaps == 0
    assert "read" not in world.log.calls
