"""A framed answer is the same message that protobuf would have written."""

from hypothesis import given
from hypothesis import strategies as st

from headrace.bus.answers.framing import LARGE_BYTES, framed, unframed
from headrace.bus.v1.reply_pb2 import AdminResult, AnswerBatch, AttachRequest

sequences = st.integers(1, 2**64 - 1)
call_ids = st.binary(max_size=20)
attempts = st.integers(0, 2**32 - 1)
large = st.integers(LARGE_BYTES, LARGE_BYTES + 70_000).map(lambda size: b'"' * size)


@given(sequences, call_ids, attempts, st.one_of(large, st.binary(max_size=300)))
def test_a_framed_answer_parses_as_protobuf_wrote_it(
    sequence: int, call_id: bytes, attempt: int, response: bytes
) -> None:
    """Either end may be one that frames, or one that does not."""
    message = framed(sequence, call_id, attempt, response)

    expected = AttachRequest()
    expected.answers.answers.add(sequence=sequence, call_id=call_id, attempt=attempt, response=response)
    assert AttachRequest.FromString(message) == expected
    assert expected.SerializeToString() == message


@given(sequences, call_ids, attempts, large)
def test_a_framed_answer_comes_out_as_it_went_in(sequence: int, call_id: bytes, attempt: int, response: bytes) -> None:
    """Whatever the bytes of the call id look like."""
    assert unframed(framed(sequence, call_id, attempt, response)) == (sequence, call_id, attempt, response)


def test_other_messages_are_left_to_the_parser() -> None:
    """Two answers, a result of a command, and anything small are not what `framed` makes."""
    two = AttachRequest(answers=AnswerBatch())
    for sequence in (1, 2):
        two.answers.answers.add(sequence=sequence, response=b"x" * LARGE_BYTES)
    result = AttachRequest(admin_result=AdminResult(command_id=1, response=b"x" * LARGE_BYTES))

    assert unframed(two.SerializeToString()) is None
    assert unframed(result.SerializeToString()) is None
    assert unframed(framed(1, b"id", 1, b"small")) is None
    assert unframed(framed(1, b"id", 1, b"x" * LARGE_BYTES) + two.SerializeToString()) is None
