"""Server reflection, v1 and v1alpha, so that grpcurl and its like need no `.proto` files.

Both versions have the same messages under another package name, so one implementation over the v1alpha classes, which
grpcio-reflection has, serves both. The descriptor of v1 itself, which it lacks, is made from that of v1alpha.
"""

from collections.abc import AsyncIterator, Callable, Iterable
from typing import TypeVar

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection_pb2 as reflection

from gateway.errors import Refusal, RequestMalformed, RequestSlow
from gateway.status import Context, Handler, abort
from gateway.strangers import Anteroom

T = TypeVar("T")

V1 = "grpc.reflection.v1.ServerReflection"
V1_ALPHA = "grpc.reflection.v1alpha.ServerReflection"

_V1_FILE = "grpc/reflection/v1/reflection.proto"
_PLACES = 8
"""For streams at a time: who reads no answers keeps one, and what gRPC took of its stream."""


class Reflection:
    """Tells which services there are and what their messages look like.

    Open to anyone, since it is all public knowledge; so who asks is read as a stranger, and a stream is not kept open
    for who has nothing to ask.
    """

    def __init__(self, services: Iterable[str]) -> None:
        """Services are full names whose descriptors are in protobuf's default pool; reflection adds itself."""
        self._services = sorted({*services, V1, V1_ALPHA})
        self._pools = (descriptor_pool.Default(), _v1_pool())
        self._anteroom = Anteroom(places=_PLACES)

    def generic_handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """Both versions of the service, to be added to a server."""
        return tuple(
            grpc.method_handlers_generic_handler(service, {"ServerReflectionInfo": self._handler()})
            for service in (V1, V1_ALPHA)
        )

    def answer(self, request: reflection.ServerReflectionRequest) -> reflection.ServerReflectionResponse:
        """The answer to one question; that something is not known is an answer too."""
        response = reflection.ServerReflectionResponse(valid_host=request.host, original_request=request)
        try:
            self._fill(response, request)
        except KeyError:
            response.error_response.error_code = grpc.StatusCode.NOT_FOUND.value[0]
            response.error_response.error_message = "no descriptor of that name here"
        return response

    def _fill(self, response: reflection.ServerReflectionResponse, request: reflection.ServerReflectionRequest) -> None:
        match request.WhichOneof("message_request"):
            case "list_services":
                services = [reflection.ServiceResponse(name=name) for name in self._services]
                response.list_services_response.service.extend(services)
            case "file_by_filename":
                name = request.file_by_filename
                _add_file(response, self._found(lambda pool: pool.FindFileByName(name)))
            case "file_containing_symbol":
                symbol = request.file_containing_symbol
                _add_file(response, self._found(lambda pool: _symbol_file(pool, symbol)))
            case "file_containing_extension":
                wanted = request.file_containing_extension
                _add_file(response, self._found(lambda pool: _extension_file(pool, wanted)))
            case "all_extension_numbers_of_type":
                name = request.all_extension_numbers_of_type
                extensions = self._found(lambda pool: pool.FindAllExtensions(pool.FindMessageTypeByName(name)))
                numbers = sorted(extension.number for extension in extensions)
                response.all_extension_numbers_response.base_type_name = name
                response.all_extension_numbers_response.extension_number.extend(numbers)
            case _:
                response.error_response.error_code = grpc.StatusCode.INVALID_ARGUMENT.value[0]
                response.error_response.error_message = "the request asks nothing that is known here"

    def _found(self, look: Callable[[descriptor_pool.DescriptorPool], T]) -> T:
        for pool in self._pools:
            try:
                return look(pool)
            except KeyError:
                continue
        raise KeyError

    def _handler(self) -> Handler:
        async def answer_each(_: AsyncIterator[bytes], context: Context) -> None:
            is_answered = False
            try:
                async with self._anteroom.place() as place:
                    while (request := await place.read(context)) is not None:
                        await context.write(self.answer(_question(request)).SerializeToString())
                        is_answered = True
            except Refusal as refusal:
                if not (is_answered and isinstance(refusal, RequestSlow)):
                    await abort(context, refusal)

        return grpc.stream_stream_rpc_method_handler(answer_each)


def _question(request: bytes) -> reflection.ServerReflectionRequest:
    try:
        return reflection.ServerReflectionRequest.FromString(request)
    except DecodeError:
        raise RequestMalformed from None


def _symbol_file(pool: descriptor_pool.DescriptorPool, symbol: str) -> FileDescriptor:
    try:
        return pool.FindFileContainingSymbol(symbol)
    except KeyError:  # which knows no methods, and tools do ask for them
        return pool.FindFileContainingSymbol(pool.FindMethodByName(symbol).containing_service.full_name)


def _extension_file(pool: descriptor_pool.DescriptorPool, wanted: reflection.ExtensionRequest) -> FileDescriptor:
    message = pool.FindMessageTypeByName(wanted.containing_type)
    extension = pool.FindExtensionByNumber(message, wanted.extension_number)
    return pool.FindFileContainingSymbol(extension.full_name)


def _add_file(response: reflection.ServerReflectionResponse, file: FileDescriptor) -> None:
    """The file, then all that it imports, directly or not, each once."""
    files = {file.name: file}
    pending = [file]
    while pending:
        for dependency in pending.pop().dependencies:
            if dependency.name not in files:
                files[dependency.name] = dependency
                pending.append(dependency)
    response.file_descriptor_response.file_descriptor_proto.extend(each.serialized_pb for each in files.values())


def _v1_pool() -> descriptor_pool.DescriptorPool:
    file = FileDescriptorProto()
    reflection.DESCRIPTOR.CopyToProto(file)
    v1_alpha_package, v1_package = file.package, V1.rpartition(".")[0]
    file.name, file.package = _V1_FILE, v1_package
    for field in (field for message in file.message_type for field in message.field if field.type_name):
        field.type_name = field.type_name.replace(v1_alpha_package, v1_package)
    for method in (method for service in file.service for method in service.method):
        method.input_type = method.input_type.replace(v1_alpha_package, v1_package)
        method.output_type = method.output_type.replace(v1_alpha_package, v1_package)
    pool = descriptor_pool.DescriptorPool()  # of its own: another library may bring the real one into the default pool
    pool.AddSerializedFile(file.SerializeToString())
    return pool
