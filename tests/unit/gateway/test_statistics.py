"""Adding up what model servers counted."""

from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as oip

from gateway.statistics import summed


def counted(text: str) -> oip.ModelStatistics:
    return text_format.Parse(text, oip.ModelStatistics())


def test_everything_is_added_by_what_it_belongs_to() -> None:
    one = counted("""
        name: "m" version: "1" last_inference: 50 inference_count: 8 execution_count: 2
        inference_stats { success { count: 8 ns: 800 } queue { count: 8 ns: 80 } }
        batch_stats { batch_size: 4 compute_infer { count: 2 ns: 600 } }
        memory_usage { type: "CPU" id: 0 byte_size: 100 }
        response_stats { key: "0" value { success { count: 8 ns: 8 } } }
    """)
    two = counted("""
        name: "m" version: "1" last_inference: 40 inference_count: 3 execution_count: 3
        inference_stats { success { count: 2 ns: 200 } fail { count: 1 ns: 5 } }
        batch_stats { batch_size: 1 compute_infer { count: 3 ns: 30 } }
        batch_stats { batch_size: 4 compute_input { count: 1 ns: 7 } compute_infer { count: 1 ns: 1 } }
        memory_usage { type: "CPU" id: 0 byte_size: 11 }
        memory_usage { type: "GPU" id: 1 byte_size: 1 }
        response_stats { key: "0" value { success { count: 1 ns: 1 } } }
        response_stats { key: "1" value { empty_response { count: 1 ns: 1 } } }
    """)

    assert summed([one, two]) == [
        counted("""
            name: "m" version: "1" last_inference: 50 inference_count: 11 execution_count: 5
            inference_stats {
              success { count: 10 ns: 1000 } fail { count: 1 ns: 5 } queue { count: 8 ns: 80 }
            }
            batch_stats { batch_size: 4 compute_input { count: 1 ns: 7 } compute_infer { count: 3 ns: 601 } }
            batch_stats { batch_size: 1 compute_infer { count: 3 ns: 30 } }
            memory_usage { type: "CPU" id: 0 byte_size: 111 }
            memory_usage { type: "GPU" id: 1 byte_size: 1 }
            response_stats { key: "0" value { success { count: 9 ns: 9 } } }
            response_stats { key: "1" value { empty_response { count: 1 ns: 1 } } }
        """)
    ]


def test_versions_stay_apart_in_their_order() -> None:
    told = [oip.ModelStatistics(name="m", version=version, inference_count=1) for version in ("2", "1", "2")]

    assert [(each.version, each.inference_count) for each in summed(told)] == [("2", 2), ("1", 1)]


def test_what_was_told_is_not_changed() -> None:
    told = [oip.ModelStatistics(name="m", inference_count=1) for _ in range(2)]

    summed(told)

    assert [each.inference_count for each in told] == [1, 1]


@given(st.lists(st.tuples(st.sampled_from("mn"), st.sampled_from("12"), st.integers(0, 1 << 40))))
def test_nothing_is_lost_and_nothing_is_counted_twice(each: list[tuple[str, str, int]]) -> None:
    told = []
    for name, version, count in each:
        told.append(oip.ModelStatistics(name=name, version=version, inference_count=count))
        told[-1].inference_stats.queue.ns = count

    totals = summed(told)

    assert len({(total.name, total.version) for total in totals}) == len(totals)
    assert sum(total.inference_count for total in totals) == sum(count for *_, count in each)
    assert sum(total.inference_stats.queue.ns for total in totals) == sum(count for *_, count in each)
