// A libcuda.so.1 without a GPU. Device memory is host memory, filled with NaN and followed by a guard page; a module is a
// shared object made by nvrtc.cpp, whose kernels run on the CPU. What is queued on a stream runs when somebody waits for
// it, so a host that reuses memory too early gets wrong results, as it would on a GPU.
//
// EMULATED_GPUS: devices (1); EMULATED_MEMORY: bytes of device memory (8 GiB); EMULATED_DRIVER: its CUDA (13000);
// EMULATED_INIT, EMULATED_CONTEXT and EMULATED_LOAD: what starting, making a context and loading a module return (0).
// EMULATED_FAULT_AT: the wait, counted from 1, that returns EMULATED_FAULT (700), as every later call does; with
// EMULATED_FAULT_ONCE only in the process that makes the file of this name. EMULATED_INIT_AFTER: a file; where it is,
// starting returns NO_DEVICE.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fcntl.h>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <ctime>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))
typedef int Result;
typedef unsigned long long Pointer;
enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, NO_DEVICE = 100, NOT_FOUND = 500, NOT_SUPPORTED = 801 };
typedef std::function<void()> Work;

struct Stream { std::vector<Work> queue; std::vector<Work>* recorded; };
struct Graph { std::vector<Work> work; };
struct Module { void* library; };
struct Function {
    void* (*bind)(void**);
    void (*release)(void*);
    void (*run)(void*, const unsigned*, const unsigned*, unsigned);
    unsigned shared;        // bytes of dynamic shared memory that were asked for
    bool large_clusters;    // whether more than 8 blocks to a cluster were asked for
};
struct Block { void* start; size_t mapped, size; };

static std::recursive_mutex lock;
static std::map<Pointer, Block> blocks;
static std::map<void*, size_t> pinned;
static std::set<Stream*> streams;
static std::set<Graph*> graphs;
static size_t used, limit;
static long launches, graph_launches, cluster_launches, refused;
static const size_t PAGE = 4096;
#define LOCKED std::lock_guard<std::recursive_mutex> guard(lock);

static long number(const char* name, long otherwise) { const char* text = getenv(name); return text ? atol(text) : otherwise; }
static int devices() { const char* visible = getenv("CUDA_VISIBLE_DEVICES"); return visible && !*visible ? 0 : (int)number("EMULATED_GPUS", 1); }
static size_t memory() { return limit ? limit : (size_t)number("EMULATED_MEMORY", 8l << 30); }

static bool there(const char* name) { const char* file = getenv(name); return file && !access(file, F_OK); }
static bool made_now(const char* name)
{
    const char* file = getenv(name);
    const int made = file ? open(file, O_CREAT | O_EXCL, 0600) : 0;
    if (file && made >= 0) close(made);
    return made >= 0;
}
static Result broken;
static Result fault_of_wait()
{
    static long waits;
    if (++waits == number("EMULATED_FAULT_AT", 0) && made_now("EMULATED_FAULT_ONCE")) broken = (Result)number("EMULATED_FAULT", 700);
    return broken;
}

API Result cuInit(unsigned) { return devices() && !there("EMULATED_INIT_AFTER") ? (Result)number("EMULATED_INIT", OK) : NO_DEVICE; }
API Result cuDriverGetVersion(int* version) { *version = (int)number("EMULATED_DRIVER", 13000); return OK; }
API Result cuDeviceGetCount(int* count) { *count = devices(); return OK; }
API Result cuDeviceGet(int* device, int ordinal) { *device = ordinal; return ordinal < devices() ? OK : INVALID_DEVICE; }
API Result cuDeviceGetName(char* name, int length, int) { snprintf(name, length, "Emulated GPU"); return OK; }
API Result cuDeviceTotalMem_v2(size_t* bytes, int) { *bytes = memory(); return OK; }
API Result cuDeviceGetAttribute(int* value, int attribute, int)
{
    switch (attribute) {
        case 75: *value = 9; break;            // compute capability
        case 76: *value = 0; break;
        case 16: *value = 132; break;          // multiprocessors
        case 13: *value = 1755000; break;      // kHz, of the processors and of the memory
        case 36: *value = 2619000; break;
        case 37: *value = 5120; break;         // bits of the memory's bus
        case 97: *value = 232448; break;       // shared memory of a block
        default: *value = 0;
    }
    return OK;
}
static thread_local void* current;
API Result cuDevicePrimaryCtxRetain(void** context, int device)
{
    *context = (void*)(0x100l + device);
    return (Result)number("EMULATED_CONTEXT", OK);
}
API Result cuDevicePrimaryCtxRelease_v2(int) { return OK; }
API Result cuCtxSetCurrent(void* context) { current = context; return OK; }
API Result cuCtxGetCurrent(void** context) { *context = current; return OK; }
API Result cuCtxGetDevice(int* device) { *device = (int)((long)current - 0x100); return current ? OK : 201; }
API Result cuMemGetInfo_v2(size_t* left, size_t* total) { LOCKED *total = memory(); *left = memory() > used ? memory() - used : 0; return OK; }
API Result cuMemAlloc_v2(Pointer* pointer, size_t size)
{
    LOCKED
    if (broken) return broken;
    if (used + size > memory()) {
        refused++;
        return OUT_OF_MEMORY;
    }
    const size_t rounded = (size + 15) & ~(size_t)15, mapped = (rounded + PAGE - 1) / PAGE * PAGE + PAGE;
    char* start = (char*)mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) return OUT_OF_MEMORY;
    mprotect(start + mapped - PAGE, PAGE, PROT_NONE);
    char* usable = start + mapped - PAGE - rounded;
    memset(usable, 0xff, rounded);
    *pointer = (Pointer)usable;
    blocks[*pointer] = {start, mapped, size};
    used += size;
    return OK;
}
static void flush(Stream* stream)
{
    for (size_t i = 0; i < stream->queue.size(); i++) stream->queue[i]();
    stream->queue.clear();
}
static void flush_all() { for (Stream* stream : streams) flush(stream); }
API Result cuMemFree_v2(Pointer pointer)
{
    LOCKED
    flush_all();   // freeing waits for the device
    auto found = blocks.find(pointer);
    if (found == blocks.end()) return INVALID_VALUE;
    munmap(found->second.start, found->second.mapped);
    used -= found->second.size;
    blocks.erase(found);
    return OK;
}
API Result cuMemHostAlloc(void** pointer, size_t size, unsigned) { LOCKED *pointer = malloc(size); pinned[*pointer] = size; memset(*pointer, 0xff, size); return OK; }
API Result cuMemFreeHost(void* pointer) { LOCKED flush_all(); pinned.erase(pointer); free(pointer); return OK; }
API Result cuMemcpyHtoD_v2(Pointer to, const void* from, size_t size) { memcpy((void*)to, from, size); return OK; }
API Result cuMemcpyDtoH_v2(void* to, Pointer from, size_t size) { memcpy(to, (void*)from, size); return OK; }

static bool is_pinned(const void* at, size_t size)
{
    auto next = pinned.upper_bound((void*)at);
    if (next == pinned.begin()) return false;
    --next;
    return (char*)at + size <= (char*)next->first + next->second;
}
static Result queue(void* handle, Work work)
{
    LOCKED
    if (broken) return broken;
    Stream* stream = (Stream*)handle;
    if (!streams.count(stream)) return INVALID_VALUE;   // the default stream would hold up the others
    (stream->recorded ? *stream->recorded : stream->queue).push_back(std::move(work));
    return OK;
}
API Result cuMemcpyHtoDAsync_v2(Pointer to, const void* from, size_t size, void* stream)
{
    LOCKED
    if (!is_pinned(from, size)) return INVALID_VALUE;
    return queue(stream, [=] { memcpy((void*)to, from, size); });
}
API Result cuMemcpyDtoHAsync_v2(void* to, Pointer from, size_t size, void* stream)
{
    LOCKED
    if (!is_pinned(to, size)) return INVALID_VALUE;
    return queue(stream, [=] { memcpy(to, (void*)from, size); });
}
API Result cuMemsetD8Async(Pointer to, unsigned char value, size_t size, void* stream)
{
    return queue(stream, [=] { memset((void*)to, value, size); });
}
API Result cuStreamCreate(void** stream, unsigned flags)
{
    LOCKED
    if (flags != 1) return INVALID_VALUE;   // only non-blocking ones
    streams.insert((Stream*)(*stream = new Stream{{}, nullptr}));
    return OK;
}
API Result cuStreamDestroy_v2(void* stream) { LOCKED flush((Stream*)stream); streams.erase((Stream*)stream); delete (Stream*)stream; return OK; }
API Result cuStreamSynchronize(void* stream)
{
    LOCKED
    if (((Stream*)stream)->recorded) return 900;
    flush((Stream*)stream);
    return fault_of_wait();
}
API Result cuCtxSynchronize() { LOCKED flush_all(); return OK; }
API Result cuStreamBeginCapture_v2(void* stream, int) { LOCKED ((Stream*)stream)->recorded = new std::vector<Work>; return OK; }
API Result cuStreamEndCapture(void* handle, void** graph)
{
    LOCKED
    Stream* stream = (Stream*)handle;
    if (!stream->recorded) return INVALID_VALUE;
    Graph* made = new Graph{std::move(*stream->recorded)};
    delete stream->recorded;
    stream->recorded = nullptr;
    graphs.insert(made);
    *graph = made;
    return OK;
}
API Result cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long)
{
    LOCKED
    Graph* made = new Graph(*(Graph*)graph);
    graphs.insert(made);
    *executable = made;
    return OK;
}
API Result cuGraphDestroy(void* graph) { LOCKED graphs.erase((Graph*)graph); delete (Graph*)graph; return OK; }
API Result cuGraphExecDestroy(void* graph) { return cuGraphDestroy(graph); }
API Result cuGraphLaunch(void* graph, void* stream)
{
    LOCKED
    if (broken) return broken;
    graph_launches++;
    for (const Work& work : ((Graph*)graph)->work)
        if (Result result = queue(stream, work)) return result;
    return OK;
}
// Events hold the time at which the work before them was done.
API Result cuEventCreate(void** event, unsigned) { *event = new timespec{}; return OK; }
API Result cuEventRecord(void* event, void* stream) { return queue(stream, [=] { clock_gettime(CLOCK_MONOTONIC, (timespec*)event); }); }
API Result cuEventDestroy_v2(void* event) { delete (timespec*)event; return OK; }
API Result cuEventElapsedTime(float* milliseconds, void* begin, void* end)
{
    const timespec a = *(timespec*)begin, b = *(timespec*)end;
    *milliseconds = (b.tv_sec - a.tv_sec) * 1e3f + (b.tv_nsec - a.tv_nsec) * 1e-6f;
    return OK;
}
API Result cuModuleLoadData(void** module, const void* image)
{
    LOCKED
    if (Result refusal = (Result)number("EMULATED_LOAD", OK)) return refusal;
    // The size is not told: sections end an ELF file, and their table is its last part.
    const char* bytes = (const char*)image;
    if (memcmp(bytes, "\177ELF", 4)) return 200;
    size_t table, size;
    unsigned short entry, count;
    memcpy(&table, bytes + 40, 8);
    memcpy(&entry, bytes + 58, 2);
    memcpy(&count, bytes + 60, 2);
    size = table + (size_t)entry * count;
    char name[] = "/tmp/emulated-module-XXXXXX";
    const int file = mkstemp(name);
    if (write(file, image, size) != (ssize_t)size) return 200;
    close(file);
    void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!library) fprintf(stderr, "emulated driver: %s\n", dlerror());
    unlink(name);
    *module = new Module{library};
    return library ? OK : 200;
}
API Result cuModuleUnload(void*) { LOCKED flush_all(); return OK; }
API Result cuModuleGetFunction(void** function, void* module, const char* name)
{
    LOCKED
    void* library = ((Module*)module)->library;
    void* bind = dlsym(library, (std::string("bind_") + name).c_str());
    if (!bind) return NOT_FOUND;
    *function = new Function{
        (void* (*)(void**))bind, (void (*)(void*))dlsym(library, "emulated_release"),
        (void (*)(void*, const unsigned*, const unsigned*, unsigned))dlsym(library, "emulated_run"), 0, false};
    return OK;
}
API Result cuFuncGetAttribute(int* value, int, void*) { *value = 64; return OK; }
API Result cuFuncSetAttribute(void* handle, int attribute, int value)
{
    Function* function = (Function*)handle;
    switch (attribute) {
        case 8: function->shared = value; return value >= 0 && value <= 232448 - 1024 ? OK : INVALID_VALUE;
        case 14: function->large_clusters = value; return OK;
        default: return INVALID_VALUE;
    }
}
static Result launch(void* handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                     unsigned shared, unsigned cluster, void* stream, void** parameters, void** extra)
{
    LOCKED
    launches++;
    const unsigned long threads = (unsigned long)bx * by * bz;
    if (!gx || !gy || !gz || !threads || gx > 2147483647 || gy > 65535 || gz > 65535 || bx > 1024 || by > 1024 || bz > 64 ||
        threads > 1024 || extra)
        return INVALID_VALUE;
    Function* function = (Function*)handle;
    if (shared > function->shared || !cluster || gx % cluster || cluster > (function->large_clusters ? 16 : 8))
        return INVALID_VALUE;
    std::shared_ptr<void> call(function->bind(parameters), function->release);
    return queue(stream, [=] {
        const unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
        function->run(call.get(), grid, block, cluster);
    });
}
API Result cuLaunchKernel(void* handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                          unsigned shared, void* stream, void** parameters, void** extra)
{
    return launch(handle, gx, gy, gz, bx, by, bz, shared, 1, stream, parameters, extra);
}
struct Attribute { int id; char padding[4]; union { unsigned cluster[3]; char room[64]; }; };
struct Config { unsigned grid[3], block[3], shared; void* stream; Attribute* attributes; unsigned count; };
static bool cluster_of(const Config& config, unsigned& cluster)
{
    cluster = 1;
    for (unsigned k = 0; k < config.count; k++) {
        const Attribute& given = config.attributes[k];
        if (given.id != 4 || given.cluster[1] != 1 || given.cluster[2] != 1) return false;   // only clusters along x
        cluster = given.cluster[0];
    }
    return true;
}
API Result cuLaunchKernelEx(const Config* config, void* handle, void** parameters, void** extra)
{
    unsigned cluster;
    if (!cluster_of(*config, cluster)) return INVALID_VALUE;
    cluster_launches++;
    const unsigned *grid = config->grid, *block = config->block;
    return launch(handle, grid[0], grid[1], grid[2], block[0], block[1], block[2], config->shared, cluster, config->stream,
                  parameters, extra);
}
// EMULATED_CLUSTERS: multiprocessors that run clusters (112).
API Result cuOccupancyMaxActiveClusters(int* clusters, void* handle, const Config* config)
{
    const Function* function = (Function*)handle;
    unsigned cluster;
    if (!cluster_of(*config, cluster) || config->shared > function->shared || cluster > (function->large_clusters ? 16 : 8))
        return INVALID_VALUE;
    *clusters = (int)number("EMULATED_CLUSTERS", 112) / (int)cluster;
    return OK;
}
API Result cuGetErrorName(Result code, const char** text) { *text = code == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR"; return OK; }
API Result cuGetErrorString(Result code, const char** text) { *text = code == OUT_OF_MEMORY ? "out of memory" : "emulated error"; return OK; }

static Result unknown() { return NOT_SUPPORTED; }
API Result cuGetProcAddress_v2(const char* name, void** function, int, unsigned long long, int* status)
{
    static void* self;
    if (!self) {
        Dl_info info;
        dladdr((void*)&unknown, &info);
        self = dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    }
    *function = nullptr;
    if (!strcmp(name, "cuGetProcAddress")) *function = (void*)cuGetProcAddress_v2;
    for (const char* suffix : {"_v2", "", "WithFlags"})
        if (!*function) *function = dlsym(self, (std::string(name) + suffix).c_str());
    if (!*function) *function = (void*)unknown;
    if (status) *status = 0;
    return OK;
}
API Result cuGetProcAddress(const char* name, void** function, int version, unsigned long long flags)
{
    return cuGetProcAddress_v2(name, function, version, flags, nullptr);
}

// For tests: what is in use and what was called, as JSON; and the memory there is from now on.
API void emulated_counts(char* text, size_t size)
{
    LOCKED
    snprintf(text, size, "{\"launches\": %ld, \"graph_launches\": %ld, \"cluster_launches\": %ld, \"refused\": %ld, \"bytes\": %zu, \"streams\": %zu, "
             "\"graphs\": %zu, \"pinned\": %zu}", launches, graph_launches, cluster_launches, refused, used, streams.size(), graphs.size(),
             pinned.size());
}
API void emulated_limit(size_t bytes) { LOCKED limit = bytes; }
