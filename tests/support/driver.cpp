// driver.cpp - a stand-in for libcuda.so and libnvrtc.so on top of the emulator: just the functions that the program uses, with the checks
// that matter for using them rightly. So the driver path (contexts, streams, memory, modules, launches, and every way in which a machine
// lacks something) is tested where there is no GPU. It proves nothing about NVIDIA's driver.
//
// What is queued runs as late as it may: when the stream is waited for. So a copy from memory of the host that was reused too early brings the
// wrong numbers.
//
// SORFT_STANDIN names the machine: `gpu`, `no_device`, `turing` (compute capability 7.5), `cuda11` (a driver older than the compiler),
// `no_pools` (no stream-ordered allocation), `no_memory`, `no_pinned` (no page-locked memory), `no_compiler` (NVRTC fails on everything),
// `no_capture`, `broken_capture`, `no_instantiate` (which step on the way to a graph fails), `no_early` (no launch of a graph begins early). Compiled with OLD_DRIVER it lacks a function, with
// OLD_GRAPHS one that graphs take.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "api.hpp"

namespace {

enum Result { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NOT_FOUND = 500, LAUNCH_FAILED = 719,
              CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901 };

using Entry = void (*)(void **);

struct Function {
  Entry entry = nullptr;
  uint64_t pointers = 0;
  uint32_t arguments = 0, cluster = 1;
  int shared_limit = 48 * 1024;
  std::vector<size_t> sizes;  // of the arguments
};

// A launch with its arguments, as the driver takes them when it is called.
struct Call {
  Entry entry;
  emu::Launch launch;
  std::vector<std::vector<uint8_t>> arguments;
};

struct Stream {
  bool captures = false;
  std::vector<Call> captured;
};

struct Graph {
  std::vector<Call> calls;
};

// The driver may be called from any thread; the emulator's device by one at a time.
std::mutex mutex;
#define ONE_AT_A_TIME std::lock_guard<std::mutex> guard(mutex)

// Handles: what lies there does not matter, that it is the right one does.
int context_object, module_object, pool_object;
thread_local void *current = nullptr;
thread_local Stream *capturing = nullptr;
emu::Device *device = nullptr;
std::set<unsigned long long> allocated;
std::set<void *> streams, graphs, pinned;
std::vector<std::function<int()>> queued;
int modules_open = 0;
bool lost = false;  // a launch has failed: everything after it fails too

bool machine(const char *name) {
  const char *set = getenv("SORFT_STANDIN");
  return set && strcmp(set, name) == 0;
}

int usable() {
  if (current != &context_object) return INVALID_CONTEXT;
  if (capturing) return CAPTURE_INVALIDATED;  // a thread that captures launches, and does nothing else
  return lost ? LAUNCH_FAILED : SUCCESS;
}

int usable(void *stream) {
  return !streams.count(stream) || static_cast<Stream *>(stream)->captures ? INVALID_VALUE : usable();
}

// Does what was queued.
int drain() {
  std::vector<std::function<int()>> now;
  now.swap(queued);
  for (const auto &work : now) {
    if (!lost && work()) {
      fprintf(stderr, "stand-in driver: %s\n", emu_error(device));
      lost = true;
    }
  }
  return lost ? LAUNCH_FAILED : SUCCESS;
}

int run(Call call) {
  std::vector<void *> arguments;
  for (auto &bytes : call.arguments) arguments.push_back(bytes.data());
  const emu::Options options{0, 0, 0, 0, 1};  // unchecked: a device whose elements' size it does not know cannot tell neighbours apart
  emu::Stats stats;
  return emu_launch(device, call.entry, &call.launch, arguments.data(), &options, &stats);
}

int allocate(unsigned long long *out, size_t bytes) {
  if (bytes == 0) return INVALID_VALUE;
  if (machine("no_memory")) return OUT_OF_MEMORY;
  *out = reinterpret_cast<unsigned long long>(emu_alloc(device, bytes, 1));
  allocated.insert(*out);
  return SUCCESS;
}

int release(unsigned long long address) {
  if (!allocated.erase(address)) return INVALID_VALUE;
  queued.push_back([address] { return emu_free(device, reinterpret_cast<void *>(address)); });
  return SUCCESS;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// ---- the driver
int cuInit(unsigned) { return machine("no_device") ? NO_DEVICE : SUCCESS; }
int cuDriverGetVersion(int *version) {
  *version = machine("cuda11") ? 11040 : 13000;
  return SUCCESS;
}
int cuGetErrorName(int, const char **text) {
  *text = "CUDA_ERROR_STANDIN";
  return SUCCESS;
}
int cuGetErrorString(int result, const char **text) {
  *text = result == OUT_OF_MEMORY ? "out of memory" : "stand-in error";
  return SUCCESS;
}
int cuDeviceGetCount(int *count) {
  *count = 1;
  return SUCCESS;
}
int cuDeviceGet(int *handle, int ordinal) {
  *handle = 7;
  return ordinal == 0 ? SUCCESS : INVALID_VALUE;
}
int cuDeviceGetName(char *name, int bytes, int) {
  snprintf(name, static_cast<size_t>(bytes), "Stand-in");
  return SUCCESS;
}
int cuDeviceTotalMem_v2(size_t *bytes, int) {
  *bytes = (size_t)80 << 30;
  return SUCCESS;
}
int cuDeviceGetAttribute(int *value, int attribute, int) {
  switch (attribute) {
    case 13: *value = 1980000; return SUCCESS;                    // clock in kHz
    case 16: *value = 132; return SUCCESS;                        // multiprocessors
    case 75: *value = machine("turing") ? 7 : 9; return SUCCESS;  // compute capability
    case 76: *value = machine("turing") ? 5 : 0; return SUCCESS;
    case 97: *value = 227 * 1024; return SUCCESS;                     // shared memory of a block, on request
    case 115: *value = machine("no_pools") ? 0 : 1; return SUCCESS;  // memory pools
    default: return INVALID_VALUE;
  }
}
int cuDeviceGetDefaultMemPool(void **pool, int) {
  *pool = &pool_object;
  return SUCCESS;
}
int cuMemPoolSetAttribute(void *pool, int attribute, void *value) {
  return pool == &pool_object && attribute == 4 && *static_cast<uint64_t *>(value) == UINT64_MAX ? SUCCESS : INVALID_VALUE;
}
int cuDevicePrimaryCtxRetain(void **context, int) {
  ONE_AT_A_TIME;
  device = emu_open();
  *context = &context_object;
  return SUCCESS;
}
int cuDevicePrimaryCtxRelease_v2(int) {
  ONE_AT_A_TIME;
  // Everything that was opened must have been closed by now.
  if (!allocated.empty() || !pinned.empty() || !streams.empty() || !graphs.empty() || modules_open || !queued.empty()) {
    fprintf(stderr, "stand-in driver: released with %zu allocations, %zu of the host, %zu streams, %zu graphs, %d modules and %zu pieces of work left\n",
            allocated.size(), pinned.size(), streams.size(), graphs.size(), modules_open, queued.size());
    abort();
  }
  emu_close(device);
  fprintf(stderr, "stand-in driver: all released\n");
  return SUCCESS;
}
int cuCtxSetCurrent(void *context) {
  current = context;
  return context == &context_object ? SUCCESS : INVALID_CONTEXT;
}
int cuStreamCreate(void **stream, unsigned) {
  ONE_AT_A_TIME;
  streams.insert(*stream = new Stream);
  return usable();
}
int cuStreamSynchronize(void *stream) {
  ONE_AT_A_TIME;
  const int result = usable(stream), done = drain();
  return result ? result : done;
}
int cuStreamDestroy_v2(void *stream) {
  ONE_AT_A_TIME;
  const int result = usable(stream);
  if (streams.erase(stream)) delete static_cast<Stream *>(stream);
  return result;
}

// ---- graphs
int cuStreamBeginCapture_v2(void *stream, int mode) {
  ONE_AT_A_TIME;
  if (usable(stream) || mode != 1) return INVALID_VALUE;  // of this thread alone
  if (machine("no_capture")) return CAPTURE_UNSUPPORTED;
  fprintf(stderr, "stand-in driver: begins a capture\n");
  capturing = static_cast<Stream *>(stream);
  capturing->captures = true;
  return SUCCESS;
}
int cuStreamEndCapture(void *stream, void **graph) {
  ONE_AT_A_TIME;
  if (!capturing || stream != capturing) return INVALID_VALUE;
  size_t early = 0;
  for (const Call &call : capturing->captured) early += call.launch.early;
  fprintf(stderr, "stand-in driver: ends a capture of %zu launches, %zu of them early\n", capturing->captured.size(), early);
  Graph *made = new Graph{std::move(capturing->captured)};
  capturing->captures = false;
  capturing = nullptr;
  *graph = nullptr;
  if (machine("broken_capture")) {
    delete made;
    return CAPTURE_INVALIDATED;
  }
  graphs.insert(*graph = made);
  return SUCCESS;
}
#if !defined(OLD_GRAPHS)
int cuGraphInstantiateWithFlags(void **made, void *graph, unsigned long long flags) {
  ONE_AT_A_TIME;
  if (usable() || !graphs.count(graph) || flags) return INVALID_VALUE;
  if (machine("no_instantiate")) return OUT_OF_MEMORY;
  fprintf(stderr, "stand-in driver: instantiates\n");
  graphs.insert(*made = new Graph(*static_cast<Graph *>(graph)));
  return SUCCESS;
}
#endif
int cuGraphDestroy(void *graph) {
  ONE_AT_A_TIME;
  if (!graphs.erase(graph)) return INVALID_VALUE;
  delete static_cast<Graph *>(graph);
  return usable();
}
int cuGraphExecDestroy(void *made) { return cuGraphDestroy(made); }
int cuGraphLaunch(void *made, void *stream) {
  ONE_AT_A_TIME;
  if (!graphs.count(made)) return INVALID_VALUE;
  if (usable(stream)) return usable(stream);
  fprintf(stderr, "stand-in driver: launches a graph\n");
  for (const Call &call : static_cast<Graph *>(made)->calls) queued.push_back([call] { return run(call); });
  return SUCCESS;
}

// ---- memory
int cuMemHostAlloc(void **out, size_t bytes, unsigned flags) {
  ONE_AT_A_TIME;
  if (usable() || flags) return INVALID_VALUE;
  if (machine("no_pinned")) return OUT_OF_MEMORY;
  pinned.insert(*out = malloc(bytes));
  return SUCCESS;
}
int cuMemFreeHost(void *memory) {
  ONE_AT_A_TIME;
  if (!pinned.erase(memory)) return INVALID_VALUE;
  free(memory);
  return SUCCESS;
}
#if !defined(OLD_DRIVER)
int cuMemAllocAsync(unsigned long long *out, size_t bytes, void *stream) {
  ONE_AT_A_TIME;
  if (machine("no_pools")) return INVALID_VALUE;
  const int result = usable(stream);
  return result ? result : allocate(out, bytes);
}
#endif
int cuMemFreeAsync(unsigned long long address, void *stream) {
  ONE_AT_A_TIME;
  const int result = usable(stream);
  const int released = release(address);
  return result ? result : released;
}
int cuMemAlloc_v2(unsigned long long *out, size_t bytes) {
  ONE_AT_A_TIME;
  const int result = usable();
  return result ? result : allocate(out, bytes);
}
int cuMemFree_v2(unsigned long long address) {
  ONE_AT_A_TIME;
  const int result = usable();
  const int released = release(address);
  drain();
  return result ? result : released;
}
int cuMemcpyHtoDAsync_v2(unsigned long long to, const void *host, size_t bytes, void *stream) {
  ONE_AT_A_TIME;
  const int result = usable(stream);
  if (!result) queued.push_back([=] { return emu_write(device, reinterpret_cast<void *>(to), host, bytes); });
  return result;
}
int cuMemcpyDtoHAsync_v2(void *host, unsigned long long from, size_t bytes, void *stream) {
  ONE_AT_A_TIME;
  const int result = usable(stream);
  if (!result) queued.push_back([=] { return emu_read(device, host, reinterpret_cast<void *>(from), bytes); });
  return result;
}
int cuMemcpyDtoDAsync_v2(unsigned long long to, unsigned long long from, size_t bytes, void *stream) {
  ONE_AT_A_TIME;
  const int result = usable(stream);
  if (!result)
    queued.push_back([=] {
      std::vector<char> through(bytes);
      const int failed = emu_read(device, through.data(), reinterpret_cast<void *>(from), bytes);
      return failed ? failed : emu_write(device, reinterpret_cast<void *>(to), through.data(), bytes);
    });
  return result;
}
int cuMemsetD8Async(unsigned long long to, unsigned char value, size_t bytes, void *stream) {
  ONE_AT_A_TIME;
  const int result = usable(stream);
  if (result || value != 0) return INVALID_VALUE;
  queued.push_back([=] { return emu_zero(device, reinterpret_cast<void *>(to), bytes); });
  return SUCCESS;
}
int cuModuleLoadData(void **module, const void *image) {
  ONE_AT_A_TIME;
  if (usable()) return usable();
  if (memcmp(image, "\x7f" "ELF", 4) != 0) return INVALID_IMAGE;
  modules_open++;
  *module = &module_object;
  return SUCCESS;
}
int cuModuleUnload(void *module) {
  ONE_AT_A_TIME;
  modules_open--;
  return module == &module_object ? SUCCESS : INVALID_VALUE;
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
  ONE_AT_A_TIME;
  if (module != &module_object) return INVALID_VALUE;
  Dl_info self;
  if (!dladdr(&context_object, &self)) return NOT_FOUND;
  void *library = dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  void *entry = library ? dlsym(library, (std::string(name) + "__emu").c_str()) : nullptr;
  if (!entry) return NOT_FOUND;
  const auto spell = reinterpret_cast<const char *(*)()>(dlsym(library, (std::string(name) + "__emu_signature").c_str()));
  Function *made = new Function;
  made->entry = reinterpret_cast<Entry>(entry);
  if (void *cluster = dlsym(library, (std::string(name) + "__emu_cluster").c_str())) made->cluster = reinterpret_cast<uint32_t (*)()>(cluster)();
  const char *letters = spell();
  while (*letters) {
    const size_t length = strcspn(letters, " ");
    if (length == 2) made->pointers |= (uint64_t)1 << made->arguments;
    made->sizes.push_back(*letters == 't' ? 128 : length == 2 || *letters == 'l' ? 8 : 4);
    made->arguments++;
    letters += length + (letters[length] == ' ');
  }
  *function = made;
  return SUCCESS;
}
int cuFuncSetAttribute(void *function, int attribute, int value) {
  if (attribute != 8) return INVALID_VALUE;  // dynamic shared memory
  static_cast<Function *>(function)->shared_limit = value;
  return SUCCESS;
}
// As kernels/emulator/engine.hpp reads it, where NVIDIA's driver has a form of its own.
int cuTensorMapEncodeTiled(uint64_t *map, int type, unsigned rank, void *address, const uint64_t *dims, const uint64_t *strides, const unsigned *box,
                           const unsigned *steps, int interleave, int swizzle, int, int fill) {
  if (type != 9 || (rank != 2 && rank != 3) || interleave != 0 || swizzle != 3 || fill != 0) return INVALID_VALUE;
  if (reinterpret_cast<uintptr_t>(address) % 16 || strides[0] % 16 || box[0] != 64 || box[1] > 256 || steps[0] != 1 || steps[1] != 1) return INVALID_VALUE;
  uint64_t words[16] = {0x70616d20656c6974ull, reinterpret_cast<uintptr_t>(address), dims[0], dims[1], strides[0], box[1]};
  if (rank == 3) {
    if (strides[1] % 16 || box[2] > 256 || steps[2] != 1) return INVALID_VALUE;
    words[6] = dims[2], words[7] = strides[1], words[8] = box[2];
  }
  memcpy(map, words, sizeof(words));
  return SUCCESS;
}
int launch(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *stream, void **arguments,
           void **extra, bool early) {
  ONE_AT_A_TIME;
  const bool captured = capturing && stream == capturing;
  const int result = captured ? SUCCESS : usable(stream);
  if (result) return result;
  const Function &kernel = *static_cast<Function *>(function);
  if (extra || static_cast<int>(shared) > kernel.shared_limit) return INVALID_VALUE;
  Call call{kernel.entry, {{gx, gy, gz}, {bx, by, bz}, shared, kernel.arguments, kernel.cluster, early, kernel.pointers}, {}};
  for (uint32_t i = 0; i < kernel.arguments; i++) {
    const uint8_t *value = static_cast<const uint8_t *>(arguments[i]);
    call.arguments.emplace_back(value, value + kernel.sizes[i]);
  }
  if (captured) capturing->captured.push_back(std::move(call));
  else queued.push_back([call] { return run(call); });
  return SUCCESS;
}
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *stream,
                   void **arguments, void **extra) {
  return launch(function, gx, gy, gz, bx, by, bz, shared, stream, arguments, extra, false);
}
struct Attribute {
  int id;
  char pad[4];
  union {
    char all[64];
    int number;
  };
};
struct Config {
  unsigned gx, gy, gz, bx, by, bz, shared;
  void *stream;
  const Attribute *attributes;
  unsigned count;
};
// Of its attributes only programmaticStreamSerializationAllowed.
int cuLaunchKernelEx(const Config *c, void *function, void **arguments, void **extra) {
  if (machine("no_early") || c->count != 1 || c->attributes[0].id != 6 || c->attributes[0].number != 1) return INVALID_VALUE;
  return launch(function, c->gx, c->gy, c->gz, c->bx, c->by, c->bz, c->shared, c->stream, arguments, extra, true);
}

// ---- the compiler: a "CUBIN" that the driver above takes
int nvrtcVersion(int *major, int *minor) {
  *major = 13;
  *minor = 0;
  return 0;
}
int nvrtcGetNumSupportedArchs(int *count) {
  *count = 2;
  return 0;
}
int nvrtcGetSupportedArchs(int *archs) {
  archs[0] = 80;
  archs[1] = 90;
  return 0;
}
const char *nvrtcGetErrorString(int) { return "NVRTC_ERROR_STANDIN"; }
int nvrtcCreateProgram(void **program, const char *, const char *, int, const char *const *, const char *const *) {
  *program = &module_object;
  return 0;
}
int nvrtcDestroyProgram(void **program) {
  *program = nullptr;
  return 0;
}
int nvrtcCompileProgram(void *, int, const char *const *) { return machine("no_compiler") ? 6 : 0; }
int nvrtcGetProgramLogSize(void *, size_t *bytes) {
  *bytes = 15;
  return 0;
}
int nvrtcGetProgramLog(void *, char *log) {
  memcpy(log, "stand-in's log", 15);
  return 0;
}
int nvrtcGetPTXSize(void *, size_t *bytes) {
  *bytes = 1;
  return 0;
}
int nvrtcGetPTX(void *, char *ptx) {
  *ptx = 0;
  return 0;
}
int nvrtcGetCUBINSize(void *, size_t *bytes) {
  *bytes = 8;
  return 0;
}
int nvrtcGetCUBIN(void *, char *cubin) {
  memcpy(cubin, "\x7f" "ELFcode", 8);
  return 0;
}
}
#pragma GCC visibility pop
