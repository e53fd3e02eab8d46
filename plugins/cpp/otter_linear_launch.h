// The fused projection's compiled kernels, and their launch through the CUDA driver.
//
//   y  = W x + b                 x  [rows, base_in]      W [base_out, base_in]
//   y' = A x + B x' + b'         x' [rows, channel_in]   A [channel_out, base_in]
//                                                        B [channel_out, channel_in]
//
// All tensors are dense and of one type, half or bfloat16. The kernels are embedded in this library;
// which one a launch uses is decided as in plugins/tiles.py, and tests compare the two.

#pragma once

#include <cuda.h>

#include <array>
#include <cstdint>
#include <map>
#include <vector>

namespace otter {

enum class Type { kFloat16, kBFloat16 };

struct Widths {
    std::int32_t baseIn;
    std::int32_t channelIn;
    std::int32_t baseOut;
    std::int32_t channelOut;
};

// Device addresses of x, x', W, A, B, b, b', y, y'; null for b and b' if there is no bias.
using Pointers = std::array<void const*, 9>;

// One embedded kernel (an entry of otter_linear_table.inc).
struct Cubin {
    int computeCapability;  // 10 * major + minor
    bool specific;          // runs on that compute capability alone (sm_90a)
    Type type;
    bool aligned;  // needs all pointers, and the starts of all rows, on 16 bytes
    int rows;      // tile sizes
    int outs;
    int warps;
    int sharedBytes;
    char const* symbol;
    void const* image;
};

// The kernels of one type, loaded in one CUDA context.
class LoadedKernels {
public:
    // Loads them in the current context, which must not be capturing a graph.
    CUresult load(Type type);

    // Enqueues the projection on a stream; allowed while the stream is captured.
    CUresult launch(std::int64_t rows, Widths const& widths, Pointers const& pointers,
                    CUstream stream) const;

private:
    struct Kernel {
        Cubin const* cubin;
        CUfunction function;
    };

    Kernel const* choose(std::int64_t rows, Widths const& widths, bool aligned) const;

    std::vector<Kernel> mKernels;
    int mMultiprocessors = 0;
};

// The kernels of a type in the current context, loaded when first asked for; null, and the reason
// in `result`, if that fails. Thread-safe. They live as long as the process.
LoadedKernels const* kernelsOfCurrentContext(Type type, CUresult& result);

}  // namespace otter
