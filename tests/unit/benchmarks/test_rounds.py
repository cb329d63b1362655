"""In which order the peers have their turns."""

from benchmarks.peers import Peer
from benchmarks.rounds import turns

PEERS = [Peer(name=name, address="127.0.0.1:1", processes={}, relay=()) for name in "ABC"]


def test_every_round_begins_with_another_peer_and_has_each_once() -> None:
    orders = ["".join(peer.name for peer in turns(PEERS, number)) for number in range(4)]

    assert orders == ["ABC", "BCA", "CAB", "ABC"]
