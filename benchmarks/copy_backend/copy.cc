// A Triton backend that answers with its input: OUTPUT0 is INPUT0, copied once.
//
// It makes Triton as cheap as a model server can be, so that a benchmark measures what stands in front of it.
// The few declarations of Triton's backend API (version 1) that it needs are written out here, so that it compiles
// without Triton's headers; tritonserver itself provides the functions when it loads this library.

#include <cstdint>
#include <cstring>
#include <ctime>

extern "C" {

struct TRITONSERVER_Error;
struct TRITONBACKEND_Input;
struct TRITONBACKEND_Output;
struct TRITONBACKEND_Request;
struct TRITONBACKEND_Response;
struct TRITONBACKEND_ModelInstance;

using DataType = int;    // TRITONSERVER_DataType
using MemoryType = int;  // TRITONSERVER_MemoryType

TRITONSERVER_Error* TRITONSERVER_ErrorNew(int code, const char* message);
void TRITONSERVER_ErrorDelete(TRITONSERVER_Error*);
TRITONSERVER_Error* TRITONBACKEND_RequestInputByIndex(TRITONBACKEND_Request*, uint32_t, TRITONBACKEND_Input**);
TRITONSERVER_Error* TRITONBACKEND_InputProperties(
    TRITONBACKEND_Input*, const char** name, DataType*, const int64_t** shape, uint32_t* dims, uint64_t* bytes,
    uint32_t* buffers);
TRITONSERVER_Error* TRITONBACKEND_InputBuffer(
    TRITONBACKEND_Input*, uint32_t index, const void** buffer, uint64_t* bytes, MemoryType*, int64_t* memory_id);
TRITONSERVER_Error* TRITONBACKEND_ResponseNew(TRITONBACKEND_Response**, TRITONBACKEND_Request*);
TRITONSERVER_Error* TRITONBACKEND_ResponseOutput(
    TRITONBACKEND_Response*, TRITONBACKEND_Output**, const char* name, DataType, const int64_t* shape, uint32_t dims);
TRITONSERVER_Error* TRITONBACKEND_OutputBuffer(
    TRITONBACKEND_Output*, void** buffer, uint64_t bytes, MemoryType*, int64_t* memory_id);
TRITONSERVER_Error* TRITONBACKEND_ResponseSend(TRITONBACKEND_Response*, uint32_t flags, TRITONSERVER_Error*);
TRITONSERVER_Error* TRITONBACKEND_RequestRelease(TRITONBACKEND_Request*, uint32_t flags);
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceReportStatistics(
    TRITONBACKEND_ModelInstance*, TRITONBACKEND_Request*, bool success, uint64_t start_ns, uint64_t compute_start_ns,
    uint64_t compute_end_ns, uint64_t end_ns);
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceReportBatchStatistics(
    TRITONBACKEND_ModelInstance*, uint64_t batch_size, uint64_t start_ns, uint64_t compute_start_ns,
    uint64_t compute_end_ns, uint64_t end_ns);

__attribute__((visibility("default"))) TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(
    TRITONBACKEND_ModelInstance*, TRITONBACKEND_Request**, uint32_t count);

}  // extern "C"

namespace {

constexpr int kInternal = 1;               // TRITONSERVER_ERROR_INTERNAL
constexpr MemoryType kHostMemory = 0;      // TRITONSERVER_MEMORY_CPU
constexpr uint32_t kFinalResponse = 1;     // TRITONSERVER_RESPONSE_COMPLETE_FINAL
constexpr uint32_t kReleaseAll = 1;        // TRITONSERVER_REQUEST_RELEASE_ALL

uint64_t NowNs() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000u + static_cast<uint64_t>(now.tv_nsec);
}

TRITONSERVER_Error* CopyTensor(TRITONBACKEND_Request* request, TRITONBACKEND_Response* response) {
  TRITONBACKEND_Input* input = nullptr;
  if (auto* failed = TRITONBACKEND_RequestInputByIndex(request, 0, &input)) return failed;
  const char* name = nullptr;
  DataType type = 0;
  const int64_t* shape = nullptr;
  uint32_t dims = 0, buffers = 0;
  uint64_t bytes = 0;
  if (auto* failed = TRITONBACKEND_InputProperties(input, &name, &type, &shape, &dims, &bytes, &buffers)) return failed;

  TRITONBACKEND_Output* output = nullptr;
  if (auto* failed = TRITONBACKEND_ResponseOutput(response, &output, "OUTPUT0", type, shape, dims)) return failed;
  void* to = nullptr;
  MemoryType memory = kHostMemory;
  int64_t memory_id = 0;
  if (auto* failed = TRITONBACKEND_OutputBuffer(output, &to, bytes, &memory, &memory_id)) return failed;
  if (memory != kHostMemory) return TRITONSERVER_ErrorNew(kInternal, "this backend writes host memory only");

  auto* place = static_cast<char*>(to);
  for (uint32_t index = 0; index < buffers; ++index) {
    const void* from = nullptr;
    uint64_t length = 0;
    memory = kHostMemory;
    if (auto* failed = TRITONBACKEND_InputBuffer(input, index, &from, &length, &memory, &memory_id)) return failed;
    if (memory != kHostMemory) return TRITONSERVER_ErrorNew(kInternal, "this backend reads host memory only");
    std::memcpy(place, from, length);
    place += length;
  }
  return nullptr;
}

void Forget(TRITONSERVER_Error* error) {
  if (error != nullptr) TRITONSERVER_ErrorDelete(error);
}

}  // namespace

TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(
    TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request** requests, uint32_t count) {
  const uint64_t start_ns = NowNs();
  for (uint32_t index = 0; index < count; ++index) {
    TRITONBACKEND_Request* request = requests[index];
    TRITONBACKEND_Response* response = nullptr;
    TRITONSERVER_Error* failed = TRITONBACKEND_ResponseNew(&response, request);
    if (failed == nullptr) {
      failed = CopyTensor(request, response);
      Forget(TRITONBACKEND_ResponseSend(response, kFinalResponse, failed));
    }
    const uint64_t end_ns = NowNs();
    Forget(TRITONBACKEND_ModelInstanceReportStatistics(
        instance, request, failed == nullptr, start_ns, start_ns, end_ns, end_ns));
    Forget(failed);
    Forget(TRITONBACKEND_RequestRelease(request, kReleaseAll));
  }
  const uint64_t end_ns = NowNs();
  Forget(TRITONBACKEND_ModelInstanceReportBatchStatistics(instance, 1, start_ns, start_ns, end_ns, end_ns));
  return nullptr;
}
