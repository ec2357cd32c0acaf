// CUDA C++ on the CPU, for tests: g++ -include cuda_on_cpu.h kernel.cu.
//
// Each CUDA thread is a fiber, a stack of its own on one thread of the CPU. Fibers run until they
// meet a barrier or a warp collective, one at a time, in an order drawn from a seed; four seeds in
// a row see to it that threads, warps and blocks run ahead of others as far as barriers let them.
// The blocks of a cluster run together, clusters one after another. Shared memory holds garbage
// when a block begins, and again when it has ended. What would hang or be undefined on a device
// ends the launch with a message: a barrier or collective that not all its threads reach, a shuffle
// from a lane outside the mask. Memory errors are for the address and alignment sanitizers.
//
// Not modelled: races within the time between two collectives of a fiber, weak memory order,
// blocks that wait for other blocks, NaN payloads, approximate functions.
#pragma once
#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <sstream>
#include <string>
#include <utility>
#include <vector>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifndef CUDA_ON_CPU_LIST // the list of kernels is read from the preprocessed source
#define __global__
#endif
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) alignas(n)
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __shared__ static thread_local // the library's thread-local segment: see find_statics
#define DYNAMIC_SHARED(T, name) T *const name = reinterpret_cast<T *>(emu::now->block->arena)
// Of this library, but compiled once for all libraries.
#ifdef CUDA_ON_CPU_RUNTIME
#define RUNTIME inline __attribute__((used))
#else
#define RUNTIME inline __attribute__((gnu_inline))
#endif
#define HERE const char *file = __builtin_FILE(), int line = __builtin_LINE() // of the caller

struct uint3 { unsigned x, y, z; };
using dim3 = uint3;
inline uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace emu {

constexpr size_t GUARD = 4096, STACK = 65536;
constexpr unsigned WARP = 32, MOST_THREADS = 1024, MOST_CLUSTER = 16, MOST_SHARED = 232448;

template <class... A> std::string text(const A &...parts) {
    std::ostringstream all;
    (all << ... << parts);
    return all.str();
}

struct Block {
    uint3 index;
    unsigned rank, arrived, finished;
    char *arena;               // dynamic shared memory
    std::vector<char> statics; // static shared memory, while another block of the cluster runs
};

struct Wait {
    enum Scope { NONE, LANES, BLOCK, CLUSTER, FINISHED } scope;
    const char *what, *file;
    int line;
    unsigned mask;
    bool operator==(const Wait &w) const {
        return scope == w.scope && mask == w.mask && line == w.line && !strcmp(file, w.file)
            && !strcmp(what, w.what);
    }
    std::string where() const {
        if (scope == FINISHED) return "finished";
        const std::string lanes = scope == LANES ? text(" with mask 0x", std::hex, mask) : "";
        return text("at ", what, lanes, " (", file, ":", line, ")");
    }
};

struct Fiber {
    void *sp, *fake;
    char *stack;
    Block *block;
    uint3 thread;
    unsigned lane, source, ballot;
    Fiber *warp; // lane 0
    Wait wait;
    uint64_t value, result, priority;
};

struct Kernel {
    void (*call)(void **);
    unsigned count;
    const unsigned *sizes; // of the parameters, in bytes
};

inline std::vector<Fiber> fibers;
inline std::vector<Block> blocks;
inline std::vector<std::pair<uint64_t, Fiber *>> ready; // a heap: the highest key goes on first
inline Fiber *now;
inline Block *loaded; // whose static shared memory is in place
inline char *statics; // there
inline size_t statics_size;
inline unsigned threads, shared_bytes, at_cluster_barrier;
inline int garbage;
inline uint64_t seed, state;
inline const Kernel *kernel;
inline void **arguments;
inline std::string failure;
inline void *scheduler, *scheduler_fake;
inline const void *scheduler_stack;
inline size_t scheduler_size;

// --- fibers: a switch saves what the calling convention lets a callee expect ---------------------

extern "C" __attribute__((visibility("hidden"))) void switch_stack(void **save, void *to);
#if defined(__x86_64__)
asm(R"(.pushsection .text
switch_stack: pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
.popsection)");
constexpr int FRAME = 8, RETURN = 6; // words; where the address to return to is
#elif defined(__aarch64__)
asm(R"(.pushsection .text
switch_stack: sub sp, sp, #160
    stp x19, x20, [sp]; stp x21, x22, [sp, #16]; stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]; stp x27, x28, [sp, #64]; stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]; stp d10, d11, [sp, #112]; stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp]; ldp x21, x22, [sp, #16]; ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]; ldp x27, x28, [sp, #64]; ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]; ldp d10, d11, [sp, #112]; ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.popsection)");
constexpr int FRAME = 20, RETURN = 11;
#else
#error "a switch of stacks is written for x86-64 and aarch64 only"
#endif

RUNTIME void to_scheduler() {
    Fiber *me = now;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&me->fake, scheduler_stack, scheduler_size);
#endif
    switch_stack(&me->sp, scheduler);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(me->fake, nullptr, nullptr);
#endif
}

RUNTIME void to_fiber(Fiber *fiber) {
    now = fiber;
    threadIdx = fiber->thread;
    blockIdx = fiber->block->index;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&scheduler_fake, fiber->stack, STACK);
#endif
    switch_stack(&scheduler, fiber->sp);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(scheduler_fake, nullptr, nullptr);
#endif
}

RUNTIME void fail(const std::string &why) { // the first failure counts
    if (failure.empty()) failure = why;
}

[[noreturn]] RUNTIME void die(const std::string &why) { // in a fiber, which never runs again
    fail(why);
    for (;;) to_scheduler();
}

RUNTIME void begin() { // the first function of every fiber
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
#endif
    kernel->call(arguments);
    now->wait = {Wait::FINISHED, "", "", 0, 0};
    for (;;) to_scheduler();
}

RUNTIME void prepare(Fiber &f) {
    if (!f.stack) {
        void *p = mmap(nullptr, GUARD + STACK, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED || mprotect(p, GUARD, PROT_NONE)) abort();
        f.stack = static_cast<char *>(p) + GUARD;
    }
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(f.stack, STACK);
#endif
    void **sp = reinterpret_cast<void **>(f.stack + STACK) - FRAME;
    sp[RETURN] = reinterpret_cast<void *>(&begin);
    f.sp = sp;
    f.wait.scope = Wait::NONE;
}

// --- the scheduler ----------------------------------------------------------------------------

RUNTIME uint64_t draw() { // 32 random bits: xorshift64*
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return state * 0x2545F4914F6CDD1Dull >> 32;
}

// Where the linker put the `__shared__` variables: the thread-local segment of this library.
RUNTIME void find_statics() {
    static thread_local volatile char anchor;
    anchor = 0; // the segment is allocated at first use
    auto look = [](dl_phdr_info *info, size_t, void *at) {
        for (int i = 0; i < info->dlpi_phnum; i++)
            if (info->dlpi_phdr[i].p_type == PT_TLS && info->dlpi_tls_data) {
                statics = static_cast<char *>(info->dlpi_tls_data);
                statics_size = info->dlpi_phdr[i].p_memsz;
                if (at >= statics && at < statics + statics_size) return 1;
            }
        return 0;
    };
    if (!dl_iterate_phdr(look, const_cast<char *>(&anchor))) abort();
}

RUNTIME void load_statics(Block *block) {
    if (block == loaded) return;
    if (loaded) loaded->statics.assign(statics, statics + statics_size);
    memcpy(statics, block->statics.data(), statics_size);
    loaded = block;
}

RUNTIME void release(Fiber *fiber) {
    fiber->wait.scope = Wait::NONE;
    ready.emplace_back(fiber->priority << 32 | draw(), fiber);
    std::push_heap(ready.begin(), ready.end());
}

RUNTIME void exchange(Fiber *me) { // if all lanes of my mask are here: what each receives
    const unsigned before = me->warp - &fibers[me->block->rank * threads];
    const unsigned size = std::min(WARP, threads - before), mask = me->wait.mask;
    if (size < WARP && mask >> size) return; // names a lane that is not there: never complete
    unsigned ballot = 0;
    for (unsigned i = 0; i < size; i++)
        if (mask >> i & 1) {
            if (!(me->warp[i].wait == me->wait)) return;
            ballot |= unsigned(me->warp[i].value != 0) << i;
        }
    const Wait wait = me->wait;
    for (unsigned i = 0; i < size; i++)
        if (mask >> i & 1) {
            Fiber &f = me->warp[i];
            if (!(mask >> f.source & 1))
                fail(text(wait.where(), ": lane ", i, " reads lane ", f.source,
                          ", which the mask leaves out"));
            f.result = me->warp[f.source].value;
            f.ballot = ballot;
            release(&f);
        }
}

RUNTIME void arrive(Fiber *fiber) { // the fiber has come to a stop
    Block *block = fiber->block;
    const unsigned all = threads * blocks.size();
    Fiber *const first = &fibers[block->rank * threads];
    switch (fiber->wait.scope) {
    case Wait::LANES: exchange(fiber); break;
    case Wait::BLOCK:
        if (++block->arrived < threads) break;
        for (unsigned i = 0; i < threads; i++)
            if (!(first[i].wait == fiber->wait)) return; // two barriers: nobody can go on
        block->arrived = 0;
        for (unsigned i = 0; i < threads; i++) release(first + i);
        break;
    case Wait::CLUSTER:
        if (++at_cluster_barrier < all) break;
        at_cluster_barrier = 0;
        for (unsigned i = 0; i < all; i++) release(&fibers[i]);
        break;
    case Wait::FINISHED: // other blocks must not look at its shared memory any longer
        if (++block->finished == threads) memset(block->arena, garbage, shared_bytes);
        break;
    case Wait::NONE: break;
    }
}

RUNTIME std::string who_waits_where() {
    std::map<std::string, unsigned> count;
    for (unsigned i = 0; i < threads * blocks.size(); i++) {
        const uint3 block = fibers[i].block->index;
        const std::string at = fibers[i].wait.where();
        count[text("block ", block.x, ",", block.y, ",", block.z, " ", at)]++;
    }
    std::string lines;
    for (auto &[where, n] : count) lines += text("\n  ", where, ": ", n, " threads");
    return lines;
}

RUNTIME void run_cluster() {
    ready.clear();
    at_cluster_barrier = 0;
    loaded = nullptr;
    for (Block &block : blocks) {
        block.arrived = block.finished = 0;
        memset(block.arena, garbage, shared_bytes);
        block.statics.assign(statics_size, static_cast<char>(garbage));
        for (unsigned i = 0; i < threads; i++) {
            Fiber &f = fibers[block.rank * threads + i];
            f.block = &block;
            f.thread = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
            f.lane = i % WARP;
            f.warp = &f - f.lane;
            // By the seed, all are alike, or threads, warps or blocks run ahead of others.
            const Fiber *const leaders[] = {nullptr, &f, f.warp, &fibers[block.rank * threads]};
            const Fiber *const leader = leaders[seed % 4];
            f.priority = !leader ? 0 : leader == &f ? draw() : leader->priority;
            prepare(f);
            release(&f);
        }
    }
    while (!ready.empty() && failure.empty()) {
        std::pop_heap(ready.begin(), ready.end());
        Fiber *fiber = ready.back().second;
        ready.pop_back();
        load_statics(fiber->block);
        to_fiber(fiber);
        arrive(fiber);
    }
    for (Block &block : blocks)
        if (block.finished < threads) {
            fail("divergent barrier or collective: these threads never go on" + who_waits_where());
            return;
        }
}

RUNTIME void wait(const Wait &wait) {
    now->wait = wait;
    to_scheduler();
}

template <class T>
Fiber *collective(const char *what, unsigned mask, T value, unsigned source, HERE) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    const Wait call = {Wait::LANES, what, file, line, mask};
    if (!(mask >> now->lane & 1))
        die(text(call.where(), ": the mask leaves out lane ", now->lane, ", which calls it"));
    now->value = 0;
    memcpy(&now->value, &value, sizeof value);
    now->source = source;
    wait(call);
    return now;
}

template <class T>
T shuffle(const char *what, unsigned mask, T value, unsigned source, const char *file, int line) {
    T got;
    memcpy(&got, &collective(what, mask, value, source, file, line)->result, sizeof got);
    return got;
}

template <class To, class From> To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "the same size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

// --- launching --------------------------------------------------------------------------------

template <auto k> struct Entry;
template <class... A, void (*k)(A...)> struct Entry<k> {
    static constexpr unsigned sizes[] = {sizeof(A)..., 0};
    template <size_t... I> static void unpack(void **args, std::index_sequence<I...>) {
        k(*static_cast<A *>(args[I])...);
    }
    static void call(void **args) { unpack(args, std::index_sequence_for<A...>()); }
    static constexpr Kernel entry = {call, sizeof...(A), sizes};
};
#define EXPORT extern "C" __attribute__((visibility("default")))
#define KERNEL_ENTRY(name) \
    EXPORT const emu::Kernel *name##_entry() { return &emu::Entry<&name>::entry; }

} // namespace emu

// shape: grid, block, blocks in a cluster, bytes of dynamic shared memory. Null or what was wrong.
EXPORT RUNTIME const char *cuda_launch(
    const emu::Kernel *kernel, const unsigned *shape, uint64_t seed, void **args) {
    using namespace emu;
    gridDim = {shape[0], shape[1], shape[2]};
    blockDim = {shape[3], shape[4], shape[5]};
    const unsigned cluster = shape[6];
    const uint64_t size = uint64_t(blockDim.x) * blockDim.y * blockDim.z;
    failure.clear();
    if (gridDim.x - 1 > 0x7FFFFFFE || gridDim.y - 1 > 65534 || gridDim.z - 1 > 65534)
        return "a grid is 1 to 2^31 - 1 by 65535 by 65535 blocks";
    if (size - 1 >= MOST_THREADS || blockDim.z > 64)
        return "a block has 1 to 1024 threads, at most 64 along z";
    if (!cluster || cluster > MOST_CLUSTER || gridDim.x % cluster)
        return "a cluster has 1 to 16 blocks, and the grid a whole number of clusters along x";
    if (shape[7] > MOST_SHARED)
        return "a block has at most 232448 bytes of dynamic shared memory";
    emu::kernel = kernel, arguments = args, emu::seed = seed;
    threads = size, shared_bytes = shape[7];
    state = (seed + 1) * 0x9E3779B97F4A7C15ull;
    find_statics();
    garbage = seed % 2 ? 0x7F : 0xFF; // huge numbers or NaN, in every floating type
    fibers.resize(threads * cluster);
    blocks.assign(cluster, Block{});
    for (Block &block : blocks)
        if (posix_memalign(reinterpret_cast<void **>(&block.arena), 128, shared_bytes)) abort();
    const uint64_t clusters = uint64_t(gridDim.x / cluster) * gridDim.y * gridDim.z;
    for (uint64_t i = 0; i < clusters && failure.empty(); i++) {
        const uint64_t at = (seed % 2 ? clusters - 1 - i : i) * cluster; // in either order
        for (unsigned rank = 0; rank < cluster; rank++) {
            blocks[rank].rank = rank;
            const uint64_t y = at / gridDim.x;
            blocks[rank].index = {unsigned(at % gridDim.x) + rank, unsigned(y % gridDim.y),
                                  unsigned(y / gridDim.y)};
        }
        run_cluster();
    }
    for (Block &block : blocks) free(block.arena);
    // A process has room for only so many mappings, and may load hundreds of modules.
    for (Fiber &f : fibers)
        if (f.stack) munmap(f.stack - GUARD, GUARD + STACK);
    fibers.clear();
    return failure.empty() ? nullptr : failure.c_str();
}

#include "cuda_functions.h"
