// What a kernel needs of a cluster: blocks that run at the same time and store into each other's shared memory. CLUSTERS
// says whether the architecture has them, with enough shared memory; the emulator brings its own.
#ifdef __CUDACC__
#define CLUSTERS (__CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200)
#if CLUSTERS
// An address in the shared memory of some block of the cluster.
typedef unsigned Remote;

__device__ __forceinline__ int cluster_rank()
{
    unsigned rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

__device__ __forceinline__ int cluster_size()
{
    unsigned size;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    return size;
}

// Where what lies at `own` in this block's shared memory lies in that of the block with this rank.
__device__ __forceinline__ Remote remote(const void* own, int rank)
{
    Remote address;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"((unsigned)__cvta_generic_to_shared(own)), "r"(rank));
    return address;
}

// Stores there; others may read after the next cluster_barrier.
__device__ __forceinline__ void store_remote(Remote at, float value)
{
    asm volatile("st.shared::cluster.f32 [%0], %1;" :: "r"(at), "f"(value));
}

__device__ __forceinline__ void store_remote(Remote at, float2 value)
{
    asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" :: "r"(at), "f"(value.x), "f"(value.y));
}

__device__ __forceinline__ void store_remote(Remote at, Sum value)
{
    asm volatile("st.shared::cluster.s64 [%0], %1;" :: "r"(at), "l"(value));
}

// A barrier for all threads of the cluster, after which each sees what the others stored before it.
__device__ __forceinline__ void cluster_barrier()
{
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
#endif
#endif
