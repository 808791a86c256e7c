// CUDA C++ on a CPU: what is put in front of a kernel's source so that the host's compiler takes it. Every thread of a
// block is a fibre; barriers and shuffles pass control on. The blocks of a cluster take turns: one runs until all of its
// threads wait for the others, then the next. Clusters run one after the other.
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
struct alignas(16) float4 { float x, y, z, w; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
template <class T> static inline T min(T a, T b) { return b < a ? b : a; }
template <class T> static inline T max(T a, T b) { return a < b ? b : a; }
static inline int min(int a, unsigned b) { return min(a, (int)b); }

// Where the linker puts shared memory.
extern "C" char __start_emulated_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_emulated_shared[] __attribute__((weak, visibility("hidden")));

namespace emulated {
constexpr int MOST = 1024, STACK = 1 << 17, CLUSTER = 16;

struct Group { int arrived, generation, size; };
struct Fibre { void* stack_pointer; bool done; };

// What a block has of its own. `shared` is a copy of its shared memory while another block of the cluster runs.
struct Block {
    Fibre fibres[MOST];
    Group group, warp_groups[MOST / 32];
    long long slots[2][MOST];
    int parity[MOST], next, alive, at_cluster_barrier;
    char* shared;
};
static Block blocks[CLUSTER];
static Block* block;   // the one that runs
static Group cluster_group;
static int cluster_blocks, blocks_left;
static Three first_block;   // of the cluster, whose blocks lie along x
static void* scheduler;
static char* stacks;
static int me, threads;
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
    void** save = &block->fibres[me].stack_pointer;
    const int self = me;
    set_index(thread);
    emulated_switch(save, block->fibres[thread].stack_pointer);
    set_index(self);
}

// Let another block of the cluster run until it comes back here.
static void go_to_block(Block* other)
{
    const size_t size = __stop_emulated_shared - __start_emulated_shared;
    Block* own = block;
    const int self = me;
    own->next = me;
    memcpy(own->shared, __start_emulated_shared, size);
    memcpy(__start_emulated_shared, other->shared, size);
    block = other;
    blockIdx.x = first_block.x + (int)(other - blocks);
    set_index(other->next);
    emulated_switch(&own->fibres[self].stack_pointer, other->fibres[other->next].stack_pointer);
    set_index(self);   // whoever switched back has restored the block and its memory
}

// The next block of the cluster that has not ended; null if there is no other.
static Block* next_block()
{
    const int number = (int)(block - blocks);
    for (int k = 1; k < cluster_blocks; k++) {
        Block* other = &blocks[(number + k) % cluster_blocks];
        if (other->alive) return other;
    }
    return nullptr;
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
        } while (next == me || block->fibres[next].done);
        go_to(next);
        if (rounds > 100000000) fail("a barrier that not every thread reaches");
    }
}

static void wait_warp()
{
    const int first = me & ~31;
    wait(block->warp_groups[me >> 5], first, min(32, threads - first));
}

// As `wait`, for all blocks of the cluster: the others of this block first, then the next block.
static void wait_cluster()
{
    const int generation = cluster_group.generation;
    if (++cluster_group.arrived == cluster_group.size) {
        cluster_group.arrived = 0;
        cluster_group.generation++;
        for (int rank = 0; rank < cluster_blocks; rank++) blocks[rank].at_cluster_barrier = 0;
        return;
    }
    block->at_cluster_barrier++;
    for (long rounds = 0; cluster_group.generation == generation; rounds++) {
        if (rounds > 1000000) fail("a barrier that not every thread of the cluster reaches");
        if (block->at_cluster_barrier == block->alive) {
            Block* other = next_block();
            if (!other) fail("a barrier of the cluster after some of its blocks have ended");
            go_to_block(other);
            continue;
        }
        int next = me;
        do next = next + 1 == threads ? 0 : next + 1;
        while (block->fibres[next].done);
        if (next != me) go_to(next);
    }
}

template <class T> static T shuffle(T value, int lane)
{
    const int side = block->parity[me] ^= 1;
    long long bits = 0;
    memcpy(&bits, &value, sizeof(T));
    block->slots[side][me] = bits;
    wait_warp();
    memcpy(&value, &block->slots[side][(me & ~31) + lane], sizeof(T));
    return value;
}

static void entry()
{
    kernel->run();
    block->fibres[me].done = true;
    // A thread that ends counts at the barriers of those that go on, as on a GPU.
    block->alive--;
    for (int i = 0; i < threads; i++)
        if (!block->fibres[i].done) go_to(i);
    blocks_left--;
    if (Block* other = next_block()) go_to_block(other);
    void* nowhere;
    emulated_switch(&nowhere, scheduler);
    fail("a finished thread was continued");
}

static void prepare_block(int rank)
{
    Block& made = blocks[rank];
    // Nobody may count on what shared memory holds.
    const size_t size = __stop_emulated_shared - __start_emulated_shared;
    if (cluster_blocks > 1) memset(made.shared = (char*)realloc(made.shared, size + 1), 0xff, size);
    made.group = {0, 0, threads};
    made.alive = threads;
    made.next = made.at_cluster_barrier = 0;
    for (int w = 0; w * 32 < threads; w++) made.warp_groups[w] = {0, 0, min(32, threads - 32 * w)};
    for (int i = 0; i < threads; i++) {
        made.parity[i] = 0;
        void** top = (void**)(stacks + ((size_t)rank * MOST + i + 1) * STACK) - 2;
        *top = (void*)entry;   // where the first switch returns to
        made.fibres[i] = {top - 6, false};
    }
}

static void run_cluster()
{
    for (int rank = 0; rank < cluster_blocks; rank++) prepare_block(rank);
    memset(__start_emulated_shared, 0xff, __stop_emulated_shared - __start_emulated_shared);
    cluster_group = {0, 0, cluster_blocks * threads};
    blocks_left = cluster_blocks;
    block = blocks;
    blockIdx = first_block;
    set_index(0);
    emulated_switch(&scheduler, blocks[0].fibres[0].stack_pointer);
    if (blocks_left) fail("a block that did not end");
}
}  // namespace emulated

static inline void __syncthreads() { emulated::wait(emulated::block->group, 0, emulated::threads); }
static inline void __syncwarp() { emulated::wait_warp(); }
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
static inline unsigned __reduce_add_sync(unsigned, unsigned value)
{
    for (int mask = 16; mask; mask >>= 1) value += emulated::shuffle(value, (emulated::me & 31) ^ mask);
    return value;
}
template <class T> static inline T atomicAdd(T* at, T value) { T old = *at; *at += value; return old; }
static inline int atomicMin(int* at, int value) { int old = *at; *at = min(old, value); return old; }
template <class T> static inline T __ldg(const T* at) { return *at; }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
static inline long long __float2ll_rn(float x) { return llrintf(x); }

// cluster.cuh: addresses in another block's shared memory are distances from it.
#define CLUSTERS 1
typedef unsigned Remote;
static inline int cluster_rank() { return (int)(emulated::block - emulated::blocks); }
static inline int cluster_size() { return emulated::cluster_blocks; }
static inline void cluster_barrier() { emulated::wait_cluster(); }
static inline Remote remote(const void* own, int rank)
{
    const size_t at = (const char*)own - __start_emulated_shared;
    if (at >= (size_t)(__stop_emulated_shared - __start_emulated_shared) || rank < 0 || rank >= cluster_size())
        emulated::fail("an address that is not in the cluster's shared memory");
    return (unsigned)rank << 24 | (unsigned)at;
}
template <class T> static inline void store_remote(Remote at, T value)
{
    const int rank = at >> 24;
    const unsigned from = at & 0xffffff;
    if (rank >= cluster_size() || from % sizeof(T) || from + sizeof(T) > __stop_emulated_shared - __start_emulated_shared)
        emulated::fail("a store beyond the cluster's shared memory");
    memcpy((rank == cluster_rank() ? __start_emulated_shared : emulated::blocks[rank].shared) + from, &value, sizeof value);
}

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

// `cluster` blocks along x run together.
extern "C" void emulated_run(void* call, const unsigned* grid, const unsigned* block, unsigned cluster)
{
    using namespace emulated;
    if (!stacks)
        stacks = (char*)mmap(nullptr, (size_t)CLUSTER * MOST * STACK, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    kernel = (Call*)call;
    gridDim = {(int)grid[0], (int)grid[1], (int)grid[2]};
    blockDim = {(int)block[0], (int)block[1], (int)block[2]};
    threads = block[0] * block[1] * block[2];
    cluster_blocks = (int)cluster;
    for (int z = 0; z < gridDim.z; z++)
        for (int y = 0; y < gridDim.y; y++)
            for (int x = 0; x < gridDim.x; x += cluster_blocks) {
                first_block = {x, y, z};
                run_cluster();
            }
}
