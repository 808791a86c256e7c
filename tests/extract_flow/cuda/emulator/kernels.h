// CUDA C++ on a CPU: what is put in front of a kernel's source so that the host's compiler takes it. Every thread of a
// block is a fibre; barriers and shuffles pass control on. Blocks run one after the other.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <tuple>
#include <utility>

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("emulated_shared")))

struct Three { int x, y, z; };
struct float2 { float x, y; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
template <class T> static inline T min(T a, T b) { return b < a ? b : a; }
template <class T> static inline T max(T a, T b) { return a < b ? b : a; }
static inline int min(int a, unsigned b) { return min(a, (int)b); }

// Where the linker puts shared memory.
extern "C" char __start_emulated_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_emulated_shared[] __attribute__((weak, visibility("hidden")));

namespace emulated {
constexpr int MOST = 1024, STACK = 1 << 17;

struct Group { int arrived, generation, size; };
struct Fibre { void* stack_pointer; bool done; };

static Fibre fibres[MOST];
static void* scheduler;
static char* stacks;
static int me, threads, alive;
static Group block_group, warp_groups[MOST / 32];
static long long slots[2][MOST];
static int parity[MOST], votes[2];
struct Call { virtual void run() = 0; virtual ~Call() {} };
static Call* kernel;
}  // namespace emulated

// One name per thread, as CUDA's built-in variables.
static Three threadIdx, blockIdx, blockDim, gridDim;

extern "C" void emulated_switch(void** save, void* to);
asm(R"(
.text
.local emulated_switch
emulated_switch:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
)");

namespace emulated {
static void set_index(int thread)
{
    me = thread;
    threadIdx.x = thread % blockDim.x;
    threadIdx.y = thread / blockDim.x % blockDim.y;
    threadIdx.z = thread / blockDim.x / blockDim.y;
}

static void go_to(int thread)
{
    void** save = &fibres[me].stack_pointer;
    const int self = me;
    set_index(thread);
    emulated_switch(save, fibres[thread].stack_pointer);
    set_index(self);
}

[[noreturn]] static void fail(const char* what)
{
    fprintf(stderr, "emulated kernel: %s\n", what);
    abort();
}

// Pass control on until the group is complete; the next thread is one of the warp, or of the block.
static void wait(Group& group, int first, int count)
{
    const int generation = group.generation;
    if (++group.arrived == group.size) {
        group.arrived = 0;
        group.generation++;
        return;
    }
    int next = me;
    for (int rounds = 0; group.generation == generation; rounds++) {
        do {
            next = next + 1 == first + count ? first : next + 1;
            if (next == me && ++rounds > 4) fail("a barrier that not every thread reaches");
        } while (next == me || fibres[next].done);
        go_to(next);
        if (rounds > 100000000) fail("a barrier that not every thread reaches");
    }
}

static void wait_warp()
{
    const int first = me & ~31;
    wait(warp_groups[me >> 5], first, min(32, threads - first));
}

template <class T> static T shuffle(T value, int lane)
{
    const int side = parity[me] ^= 1;
    long long bits = 0;
    memcpy(&bits, &value, sizeof(T));
    slots[side][me] = bits;
    wait_warp();
    memcpy(&value, &slots[side][(me & ~31) + lane], sizeof(T));
    return value;
}

static void entry()
{
    kernel->run();
    fibres[me].done = true;
    // A thread that ends counts at the barriers of those that go on, as on a GPU.
    alive--;
    for (int i = 0; i < threads; i++)
        if (!fibres[i].done) go_to(i);
    void* nowhere;
    emulated_switch(&nowhere, scheduler);
    fail("a finished thread was continued");
}

static void run_block()
{
    // Nobody may count on what shared memory holds.
    memset(__start_emulated_shared, 0xff, __stop_emulated_shared - __start_emulated_shared);
    block_group = {0, 0, threads};
    alive = threads;
    votes[0] = votes[1] = 0;
    for (int w = 0; w * 32 < threads; w++) warp_groups[w] = {0, 0, min(32, threads - 32 * w)};
    for (int i = 0; i < threads; i++) {
        parity[i] = 0;
        void** top = (void**)(stacks + (size_t)(i + 1) * STACK) - 2;
        *top = (void*)entry;   // where the first switch returns to
        fibres[i] = {top - 6, false};
    }
    set_index(0);
    emulated_switch(&scheduler, fibres[0].stack_pointer);
}
}  // namespace emulated

static inline void __syncthreads() { emulated::wait(emulated::block_group, 0, emulated::threads); }
static inline int __syncthreads_or(int value)
{
    static int any;
    __syncthreads();
    if (emulated::me == 0) any = 0;
    __syncthreads();
    any |= value != 0;
    __syncthreads();
    return any;
}
template <class T> static inline T __shfl_up_sync(unsigned, T value, int by)
{
    const int lane = emulated::me & 31;
    return emulated::shuffle(value, lane >= by ? lane - by : lane);
}
template <class T> static inline T __shfl_down_sync(unsigned, T value, int by)
{
    const int lane = emulated::me & 31;
    return emulated::shuffle(value, lane + by < 32 ? lane + by : lane);
}
template <class T> static inline T __shfl_xor_sync(unsigned, T value, int mask)
{
    return emulated::shuffle(value, (emulated::me & 31) ^ mask);
}
template <class T> static inline T atomicAdd(T* at, T value) { T old = *at; *at += value; return old; }
static inline int atomicMin(int* at, int value) { int old = *at; *at = min(old, value); return old; }
template <class T> static inline T __ldg(const T* at) { return *at; }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float rsqrtf(float x) { return 1.f / sqrtf(x); }

namespace emulated {
// A kernel with a copy of its arguments, as a launch makes it.
template <class... A> struct Bound : Call {
    void (*function)(A...);
    std::tuple<A...> values;
    Bound(void (*f)(A...), A... a) : function(f), values(a...) {}
    void run() override { std::apply(function, values); }
};
template <class... A, size_t... I> static Call* bind(void (*f)(A...), void** p, std::index_sequence<I...>)
{
    return new Bound<A...>(f, *(A*)p[I]...);
}
template <class... A> static Call* bind(void (*f)(A...), void** p) { return bind(f, p, std::index_sequence_for<A...>{}); }
}  // namespace emulated

extern "C" void emulated_release(void* call) { delete (emulated::Call*)call; }

extern "C" void emulated_run(void* call, const unsigned* grid, const unsigned* block)
{
    using namespace emulated;
    if (!stacks)
        stacks = (char*)mmap(nullptr, (size_t)MOST * STACK, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    kernel = (Call*)call;
    gridDim = {(int)grid[0], (int)grid[1], (int)grid[2]};
    blockDim = {(int)block[0], (int)block[1], (int)block[2]};
    threads = block[0] * block[1] * block[2];
    for (int z = 0; z < gridDim.z; z++)
        for (int y = 0; y < gridDim.y; y++)
            for (int x = 0; x < gridDim.x; x++) {
                blockIdx = {x, y, z};
                run_block();
            }
}
