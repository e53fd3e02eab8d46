// Launches the C++ plugin's kernels once for each line of standard input:
//   rows base_in channel_in base_out channel_out stream, then nine addresses

#include "otter_linear_launch.h"

#include <iostream>

int main() {
    CUresult result = CUDA_SUCCESS;
    otter::LoadedKernels const* kernels =
        otter::kernelsOfCurrentContext(otter::Type::kFloat16, result);
    if (kernels == nullptr) {
        return result;
    }
    CUresult again = CUDA_SUCCESS;
    if (otter::kernelsOfCurrentContext(otter::Type::kFloat16, again) != kernels) {
        return 1;
    }
    long long rows = 0;
    otter::Widths widths{};
    unsigned long long stream = 0;
    while (std::cin >> rows >> widths.baseIn >> widths.channelIn >> widths.baseOut >>
           widths.channelOut >> stream) {
        otter::Pointers pointers;
        for (void const*& pointer : pointers) {
            unsigned long long address = 0;
            std::cin >> address;
            pointer = reinterpret_cast<void const*>(address);
        }
        result = kernels->launch(rows, widths, pointers, reinterpret_cast<CUstream>(stream));
        if (result != CUDA_SUCCESS) {
            return result;
        }
    }
    return 0;
}
