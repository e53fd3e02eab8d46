#include "otter_linear_launch.h"

#include <algorithm>
#include <mutex>
#include <utility>

// The table names every kernel's file; each is embedded under a symbol of its own.
#define OTTER_CUBIN(id, capability, specific, type, aligned, rows, outs, warps, shared, symbol, file) \
    extern "C" __attribute__((visibility("hidden"))) unsigned char const otterCubin##id[];            \
    __asm__(".section .rodata\n.balign 16\n.global otterCubin" #id "\n.hidden otterCubin" #id         \
            "\notterCubin" #id ":\n.incbin \"" OTTER_CUBIN_DIRECTORY "/" file "\"\n.previous\n");
#include "otter_linear_table.inc"
#undef OTTER_CUBIN

namespace otter {
namespace {

#define OTTER_CUBIN(id, capability, specific, type, aligned, rows, outs, warps, shared, symbol, file) \
    {capability, specific, Type::type, aligned, rows, outs, warps, shared, symbol, otterCubin##id},
constexpr Cubin kCubins[] = {
#include "otter_linear_table.inc"
};
#undef OTTER_CUBIN

// As in plugins/tiles.py.
constexpr int kProgramsPerMultiprocessor = 2;
// What a block may have without asking for more.
constexpr int kDefaultSharedBytes = 48 << 10;

bool runsOn(Cubin const& cubin, int capability) {
    if (cubin.specific) {
        return cubin.computeCapability == capability;
    }
    return cubin.computeCapability / 10 == capability / 10 && cubin.computeCapability <= capability;
}

std::int64_t ceilDivide(std::int64_t size, std::int64_t tile) { return (size + tile - 1) / tile; }

// Programs over the channel's and the base's outputs.
std::int64_t programsAcross(Cubin const& cubin, Widths const& widths) {
    return ceilDivide(widths.channelOut, cubin.outs) + ceilDivide(widths.baseOut, cubin.outs);
}

bool isAligned(Widths const& widths, Pointers const& pointers) {
    return widths.baseIn % 8 == 0 && widths.channelIn % 8 == 0 &&
           std::all_of(pointers.begin(), pointers.end(), [](void const* pointer) {
               return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0;
           });
}

}  // namespace

CUresult LoadedKernels::load(Type type) {
    CUdevice device;
    int major = 0;
    int minor = 0;
    int sharedLimit = 0;
    CUresult result = cuCtxGetDevice(&device);
    std::pair<int*, CUdevice_attribute> const wanted[] = {
        {&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR},
        {&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR},
        {&mMultiprocessors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT},
        {&sharedLimit, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN},
    };
    for (auto const& [value, attribute] : wanted) {
        if (result == CUDA_SUCCESS) {
            result = cuDeviceGetAttribute(value, attribute, device);
        }
    }
    if (result != CUDA_SUCCESS) {
        return result;
    }
    int best = 0;
    for (Cubin const& cubin : kCubins) {
        if (cubin.type == type && runsOn(cubin, 10 * major + minor)) {
            best = std::max(best, cubin.computeCapability);
        }
    }
    for (Cubin const& cubin : kCubins) {
        if (cubin.type != type || cubin.computeCapability != best ||
            cubin.sharedBytes > sharedLimit) {
            continue;
        }
        CUmodule module;
        CUfunction function;
        result = cuModuleLoadData(&module, cubin.image);
        if (result == CUDA_SUCCESS) {
            result = cuModuleGetFunction(&function, module, cubin.symbol);
        }
        if (result == CUDA_SUCCESS && cubin.sharedBytes > kDefaultSharedBytes) {
            result = cuFuncSetAttribute(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                        cubin.sharedBytes);
        }
        if (result != CUDA_SUCCESS) {
            return result;
        }
        mKernels.push_back({&cubin, function});
    }
    return mKernels.empty() ? CUDA_ERROR_NO_BINARY_FOR_GPU : CUDA_SUCCESS;
}

LoadedKernels::Kernel const* LoadedKernels::choose(std::int64_t rows, Widths const& widths,
                                                   bool aligned) const {
    // Of the tiles with the fewest rows that hold all rows (or else the most rows) ...
    int enough = 0;
    int most = 0;
    for (Kernel const& kernel : mKernels) {
        if (kernel.cubin->aligned != aligned) {
            continue;
        }
        int const tileRows = kernel.cubin->rows;
        most = std::max(most, tileRows);
        if (tileRows >= rows && (enough == 0 || tileRows < enough)) {
            enough = tileRows;
        }
    }
    int const tileRows = enough != 0 ? enough : most;
    // ... the one with the most outputs that gives every multiprocessor enough programs, or else
    // the fewest outputs.
    Kernel const* filling = nullptr;
    Kernel const* smallest = nullptr;
    for (Kernel const& kernel : mKernels) {
        Cubin const& cubin = *kernel.cubin;
        if (cubin.aligned != aligned || cubin.rows != tileRows) {
            continue;
        }
        if (smallest == nullptr || cubin.outs < smallest->cubin->outs) {
            smallest = &kernel;
        }
        std::int64_t const programs = programsAcross(cubin, widths) * ceilDivide(rows, cubin.rows);
        if (programs >= kProgramsPerMultiprocessor * mMultiprocessors &&
            (filling == nullptr || cubin.outs > filling->cubin->outs)) {
            filling = &kernel;
        }
    }
    return filling != nullptr ? filling : smallest;
}

CUresult LoadedKernels::launch(std::int64_t rows, Widths const& widths, Pointers const& pointers,
                               CUstream stream) const {
    if (rows == 0) {
        return CUDA_SUCCESS;
    }
    Kernel const* kernel = choose(rows, widths, isAligned(widths, pointers));
    if (kernel == nullptr) {
        kernel = choose(rows, widths, false);
    }
    if (kernel == nullptr || rows > INT32_MAX) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    Cubin const& cubin = *kernel->cubin;
    // The kernel's arguments, then two pointers to scratch memory of Triton's own: null, because
    // this kernel uses none.
    Pointers values = pointers;
    // TensorRT's tensors are dense: rows are as far apart as they are wide.
    std::int32_t integers[] = {static_cast<std::int32_t>(rows),
                               widths.baseIn, widths.channelIn, widths.baseOut, widths.channelOut,
                               widths.baseIn, widths.channelIn, widths.baseOut, widths.channelOut,
                               pointers[5] != nullptr};
    void const* scratch = nullptr;
    std::vector<void*> arguments;
    for (void const*& value : values) {
        arguments.push_back(&value);
    }
    for (std::int32_t& value : integers) {
        arguments.push_back(&value);
    }
    arguments.insert(arguments.end(), 2, &scratch);
    return cuLaunchKernel(kernel->function, static_cast<unsigned>(programsAcross(cubin, widths)),
                          static_cast<unsigned>(ceilDivide(rows, cubin.rows)), 1,
                          static_cast<unsigned>(32 * cubin.warps), 1, 1,
                          static_cast<unsigned>(cubin.sharedBytes), stream, arguments.data(),
                          nullptr);
}

LoadedKernels const* kernelsOfCurrentContext(Type type, CUresult& result) {
    static std::mutex mutex;
    static std::map<std::pair<CUcontext, Type>, LoadedKernels> loaded;
    std::lock_guard<std::mutex> const lock(mutex);
    CUcontext context = nullptr;
    result = cuCtxGetCurrent(&context);
    if (result == CUDA_SUCCESS && context == nullptr) {
        result = CUDA_ERROR_INVALID_CONTEXT;
    }
    if (result != CUDA_SUCCESS) {
        return nullptr;
    }
    auto const found = loaded.find({context, type});
    if (found != loaded.end()) {
        return &found->second;
    }
    LoadedKernels kernels;
    result = kernels.load(type);
    if (result != CUDA_SUCCESS) {
        return nullptr;
    }
    return &loaded.emplace(std::make_pair(context, type), std::move(kernels)).first->second;
}

}  // namespace otter
