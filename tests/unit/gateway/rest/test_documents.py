"""Documents of server and models: what Triton 2.51 answers on its own HTTP port, for the same messages."""

import json

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from tritonclient.grpc import model_config_pb2 as config
from tritonclient.grpc import service_pb2 as oip

from gateway.rest import documents

ZERO = {"count": 0, "ns": 0}


def test_the_server_tells_its_name_version_and_extensions() -> None:
    response = oip.ServerMetadataResponse(name="triton", version="2.51.0", extensions=["classification", "sequence"])

    assert documents.server_metadata(response) == (
        b'{"name":"triton","version":"2.51.0","extensions":["classification","sequence"]}'
    )


def test_a_models_shapes_are_numbers() -> None:
    response = oip.ModelMetadataResponse(
        name="odd",
        versions=["1", "2"],
        platform="python",
        inputs=[oip.ModelMetadataResponse.TensorMetadata(name="X", datatype="FP32", shape=[-1, 4])],
        outputs=[oip.ModelMetadataResponse.TensorMetadata(name="Y", datatype="FP32", shape=[-1, 4])],
    )

    assert documents.model_metadata(response) == (
        b'{"name":"odd","versions":["1","2"],"platform":"python","inputs":[{"name":"X","datatype":"FP32",'
        b'"shape":[-1,4]}],"outputs":[{"name":"Y","datatype":"FP32","shape":[-1,4]}]}'
    )


def test_a_configuration_has_every_field_that_can_not_be_unset() -> None:
    response = oip.ModelConfigResponse(
        config=config.ModelConfig(
            name="odd",
            backend="python",
            version_policy=config.ModelVersionPolicy(all=config.ModelVersionPolicy.All()),
            max_batch_size=8,
            input=[config.ModelInput(name="X", data_type="TYPE_FP32", dims=[4])],
            output=[config.ModelOutput(name="Y", data_type="TYPE_FP32", dims=[4], label_filename="labels.txt")],
            optimization=config.ModelOptimizationPolicy(
                input_pinned_memory=config.ModelOptimizationPolicy.PinnedMemoryBuffer(enable=True)
            ),
            dynamic_batching=config.ModelDynamicBatching(
                preferred_batch_size=[4],
                max_queue_delay_microseconds=100,
                default_queue_policy=None,
            ),
            instance_group=[config.ModelInstanceGroup(name="odd_0", kind="KIND_CPU", count=1)],
            default_model_filename="model.py",
            parameters={"note": config.ModelParameter(string_value="x")},
        )
    )

    assert json.loads(documents.model_config(response)) == json.loads(
        '{"name":"odd","platform":"","backend":"python","runtime":"","version_policy":{"all":{}},"max_batch_size":8,'
        '"input":[{"name":"X","data_type":"TYPE_FP32","format":"FORMAT_NONE","dims":[4],"is_shape_tensor":false,'
        '"allow_ragged_batch":false,"optional":false,"is_non_linear_format_io":false}],"output":[{"name":"Y",'
        '"data_type":"TYPE_FP32","dims":[4],"label_filename":"labels.txt","is_shape_tensor":false,'
        '"is_non_linear_format_io":false}],"batch_input":[],"batch_output":[],"optimization":{"priority":'
        '"PRIORITY_DEFAULT","input_pinned_memory":{"enable":true},"gather_kernel_buffer_threshold":0,'
        '"eager_batching":false},"dynamic_batching":{"preferred_batch_size":[4],"max_queue_delay_microseconds":100,'
        '"preserve_ordering":false,"priority_levels":0,"default_priority_level":0,"priority_queue_policy":{}},'
        '"instance_group":[{"name":"odd_0","kind":"KIND_CPU","count":1,"gpus":[],"secondary_devices":[],"profile":[],'
        '"passive":false,"host_policy":""}],"default_model_filename":"model.py","cc_model_filenames":{},'
        '"metric_tags":{},"parameters":{"note":{"string_value":"x"}},"model_warmup":[]}'
    )


def test_a_float_is_written_with_as_few_digits_as_it_needs() -> None:
    direct = config.ModelSequenceBatching.StrategyDirect(minimum_slot_utilization=0.1)
    response = oip.ModelConfigResponse(
        config=config.ModelConfig(sequence_batching=config.ModelSequenceBatching(direct=direct))
    )

    assert b'"minimum_slot_utilization":0.1}' in documents.model_config(response)


def test_maps_with_numbers_for_keys_have_texts_in_json() -> None:
    policies = {7: config.ModelQueuePolicy(timeout_action="DELAY", max_queue_size=3)}
    batching = config.ModelDynamicBatching(priority_queue_policy=policies)

    told = json.loads(
        documents.model_config(oip.ModelConfigResponse(config=config.ModelConfig(dynamic_batching=batching)))
    )

    assert told["dynamic_batching"]["priority_queue_policy"] == {
        "7": {
            "timeout_action": "DELAY",
            "default_timeout_microseconds": 0,
            "allow_timeout_override": False,
            "max_queue_size": 3,
        }
    }


def test_an_enum_value_that_nobody_knows_is_its_number() -> None:
    response = oip.ModelConfigResponse(config=config.ModelConfig(input=[config.ModelInput(data_type=99)]))

    assert json.loads(documents.model_config(response))["input"][0]["data_type"] == 99


def test_counts_of_64_bits_are_numbers() -> None:
    response = oip.ModelStatisticsResponse(
        model_stats=[
            oip.ModelStatistics(
                name="odd",
                version="1",
                last_inference=2**63,
                inference_stats=oip.InferStatistics(success=oip.StatisticDuration(count=1, ns=2**53 + 1)),
                batch_stats=[oip.InferBatchStatistics(batch_size=1, compute_infer=oip.StatisticDuration())],
            )
        ]
    )

    assert json.loads(documents.model_statistics(response)) == {
        "model_stats": [
            {
                "name": "odd",
                "version": "1",
                "last_inference": 2**63,
                "inference_count": 0,
                "execution_count": 0,
                "inference_stats": {"success": {"count": 1, "ns": 2**53 + 1}},
                "batch_stats": [{"batch_size": 1, "compute_infer": ZERO}],
                "memory_usage": [],
                "response_stats": {},
            }
        ]
    }


def test_the_repository_is_an_array_without_what_is_empty() -> None:
    model = oip.RepositoryIndexResponse.ModelIndex
    response = oip.RepositoryIndexResponse(
        models=[
            model(name="each", version="1", state="READY"),
            model(name="echo", version="1", state="UNAVAILABLE", reason="unloaded"),
            model(name="never"),
        ]
    )

    assert documents.repository_index(response) == (
        b'[{"name":"each","version":"1","state":"READY"},'
        b'{"name":"echo","version":"1","state":"UNAVAILABLE","reason":"unloaded"},{"name":"never"}]'
    )
    assert documents.repository_index(oip.RepositoryIndexResponse()) == b"[]"


def test_no_document_has_bytes_which_json_has_not() -> None:
    """Triton would write them in base64; nothing here does."""
    pending: list[Descriptor] = [
        each.DESCRIPTOR
        for each in (oip.ServerMetadataResponse, oip.ModelMetadataResponse, config.ModelConfig, oip.ModelStatistics)
    ]
    seen: set[str] = set()
    while pending:
        message = pending.pop()
        if message.full_name in seen:
            continue
        seen.add(message.full_name)
        assert all(field.type != FieldDescriptor.TYPE_BYTES for field in message.fields)
        pending += [field.message_type for field in message.fields if field.message_type is not None]
    assert len(seen) > 30
