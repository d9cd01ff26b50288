// Softmax attention in CUDA C++, one thread for a query, keys in blocks of 64 as in fast kernels.
//
//     nvcc -O2 -arch=native -Xcompiler -fPIC -shared -o attention.so attention.cu
//     g++ -O2 -x c++ -fPIC -shared -o attention.so attention.cu     (the same on the CPU)
//
// Each bit of `flaw` makes it wrong, in a way that real kernels were wrong in. cuda_attention.py
// builds and wraps it.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
using half_t = __half;
using bfloat_t = __nv_bfloat16;
__device__ float wide(half_t x) { return __half2float(x); }
__device__ float wide(bfloat_t x) { return __bfloat162float(x); }
__device__ void narrow(float x, half_t& y) { y = __float2half_rn(x); }
__device__ void narrow(float x, bfloat_t& y) { y = __float2bfloat16_rn(x); }
#else  // a grid of threads is two loops
#define __global__
#define __device__
struct Place { int x, y; };
static Place blockIdx, threadIdx, blockDim;
using half_t = _Float16;
struct bfloat_t { std::uint16_t bits; };
static float wide(half_t x) { return (float)x; }
static float wide(bfloat_t x) {
    std::uint32_t bits = (std::uint32_t)x.bits << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}
static void narrow(float x, half_t& y) { y = (half_t)x; }
static void narrow(float x, bfloat_t& y) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, 4);
    y.bits = x == x ? (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 : 0x7fc0;
}
#endif
__device__ static float wide(float x) { return x; }
__device__ static void narrow(float x, float& y) { y = x; }

enum { TAIL = 1, RESCALE = 2, DIAGONAL = 4, SENTINEL = 8, SHORT = 16 };
constexpr int BLOCK = 64, CHANNELS = 256;

template <class T> __device__ static float rounded(float x) {
    T y;
    narrow(x, y);
    return wide(y);
}

// Arrays are contiguous (heads, length, d); query i sees keys up to i + last.
template <class T>
__global__ void attend(const T* q, const T* k, const T* v, T* out, float* lse, int n, int m, int d,
                       float scale, int last, int flaw) {
    int head = blockIdx.y, i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    size_t row = (size_t)head * n + i;
    const T *mine = q + row * d, *keys = k + (size_t)head * m * d, *values = v + (size_t)head * m * d;
    float never = flaw & SENTINEL ? -1e30f : -INFINITY;
    float top = -INFINITY, total = 0, acc[CHANNELS];
    for (int c = 0; c < d; c++) acc[c] = 0;
    if (flaw & DIAGONAL) last--;
    for (int start = 0; start < m; start += BLOCK) {
        float s[BLOCK], best = top;
        for (int j = 0; j < BLOCK; j++) {
            int column = start + j;
            float sum = 0;
            if (column < m)
                for (int c = 0; c < d; c++) sum += wide(mine[c]) * wide(keys[(size_t)column * d + c]);
            s[j] = sum * scale;
            if (column >= m && !(flaw & TAIL)) s[j] = never;
            if (column > i + last) s[j] = never;
            best = fmaxf(best, s[j]);
        }
        float shift = best == -INFINITY ? 0 : best, keep = expf(top - shift);
        total *= keep;
        if (!(flaw & RESCALE))
            for (int c = 0; c < d; c++) acc[c] *= keep;
        for (int j = 0; j < BLOCK; j++) {
            float p = expf(s[j] - shift);
            total += p;
            if (start + j >= m) continue;
            p = rounded<T>(p);
            for (int c = 0; c < d; c++) acc[c] += p * wide(values[(size_t)(start + j) * d + c]);
            if (flaw & SHORT)
                for (int c = 0; c < d; c++) acc[c] = rounded<T>(acc[c]);
        }
        top = best;
    }
    for (int c = 0; c < d; c++) narrow(total != 0 ? acc[c] / total : 0, out[row * d + c]);
    lse[row] = total != 0 ? top + logf(total) : -INFINITY;
}

// From and to the host's memory; 0, or the error.
template <class T>
static int run(const void* q, const void* k, const void* v, void* out, float* lse, int heads, int n,
               int m, int d, float scale, int last, int flaw) {
    size_t size = sizeof(T) * heads * (size_t)d;
    int blocks = (n + BLOCK - 1) / BLOCK;
    if (!heads || !n) return 0;
#ifdef __CUDACC__
    T *q_, *k_, *v_, *out_;
    float* lse_;
    cudaMalloc(&q_, size * n), cudaMalloc(&k_, size * m + 1), cudaMalloc(&v_, size * m + 1);
    cudaMalloc(&out_, size * n), cudaMalloc(&lse_, sizeof(float) * heads * n);
    cudaMemcpy(q_, q, size * n, cudaMemcpyHostToDevice);
    cudaMemcpy(k_, k, size * m, cudaMemcpyHostToDevice);
    cudaMemcpy(v_, v, size * m, cudaMemcpyHostToDevice);
    attend<T><<<dim3(blocks, heads), BLOCK>>>(q_, k_, v_, out_, lse_, n, m, d, scale, last, flaw);
    cudaMemcpy(out, out_, size * n, cudaMemcpyDeviceToHost);
    cudaMemcpy(lse, lse_, sizeof(float) * heads * n, cudaMemcpyDeviceToHost);
    cudaFree(q_), cudaFree(k_), cudaFree(v_), cudaFree(out_), cudaFree(lse_);
    return (int)cudaGetLastError();
#else
    (void)size;
    blockDim.x = BLOCK;
    for (blockIdx.y = 0; blockIdx.y < heads; blockIdx.y++)
        for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)
            for (threadIdx.x = 0; threadIdx.x < BLOCK; threadIdx.x++)
                attend((const T*)q, (const T*)k, (const T*)v, (T*)out, lse, n, m, d, scale, last, flaw);
    return 0;
#endif
}

#define FUNCTION(NAME, T)                                                                         \
    extern "C" int NAME(const void* q, const void* k, const void* v, void* out, float* lse,       \
                        int heads, int n, int m, int d, float scale, int last, int flaw) {        \
        return run<T>(q, k, v, out, lse, heads, n, m, d, scale, last, flaw);                      \
    }
FUNCTION(attend_float32, float)
FUNCTION(attend_float16, half_t)
FUNCTION(attend_bfloat16, bfloat_t)
