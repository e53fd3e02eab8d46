// The fused projection as a TensorRT plugin: com.otter::OtterLinear, version 1.
//
// For deployments without Python. Load the library before an engine is deserialised
// (IPluginRegistry::loadLibrary, trtexec --dynamicPlugins, tritonserver --backend-config); it makes
// the creator known by getCreators. Same node, same kernels and same launches as plugins/tensorrt.py:
//
//   y, y' = OtterLinear(x, x', W, A, B [, b, b'])     half or bfloat16, all of one type

#include "otter_linear_launch.h"

#include <NvInfer.h>

#include <algorithm>
#include <exception>
#include <new>

namespace {

using namespace nvinfer1;

constexpr char const* kName = "OtterLinear";
constexpr char const* kVersion = "1";
constexpr char const* kNamespace = "com.otter";
constexpr std::int32_t kInputsWithoutBias = 5;
constexpr std::int32_t kInputsWithBias = 7;
constexpr std::int32_t kOutputs = 2;

bool hasType(DataType type) { return type == DataType::kHALF || type == DataType::kBF16; }

otter::Type kernelType(DataType type) {
    return type == DataType::kHALF ? otter::Type::kFloat16 : otter::Type::kBFloat16;
}

class OtterLinear final : public IPluginV3,
                          public IPluginV3OneCore,
                          public IPluginV3OneBuild,
                          public IPluginV3OneRuntime {
public:
    IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
        switch (type) {
        case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
        case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
        case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }

    IPluginV3* clone() noexcept override { return new (std::nothrow) OtterLinear(); }

    AsciiChar const* getPluginName() const noexcept override { return kName; }
    AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
    AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }

    // Building.

    std::int32_t getNbOutputs() const noexcept override { return kOutputs; }

    std::int32_t getOutputDataTypes(DataType* outputs, std::int32_t, DataType const* inputs,
                                    std::int32_t inputCount) const noexcept override {
        if (!hasType(inputs[0]) || !std::all_of(inputs, inputs + inputCount, [=](DataType type) {
                return type == inputs[0];
            })) {
            return -1;
        }
        outputs[0] = outputs[1] = inputs[0];
        return 0;
    }

    std::int32_t getOutputShapes(DimsExprs const* inputs, std::int32_t inputCount, DimsExprs const*,
                                 std::int32_t, DimsExprs* outputs, std::int32_t,
                                 IExprBuilder&) noexcept override {
        if (inputCount != kInputsWithoutBias && inputCount != kInputsWithBias) {
            return -1;
        }
        for (std::int32_t output = 0; output < kOutputs; ++output) {
            outputs[output] = inputs[0];
            // W and A have their outputs first.
            outputs[output].d[inputs[0].nbDims - 1] = inputs[2 + output].d[0];
        }
        return 0;
    }

    bool supportsFormatCombination(std::int32_t position, DynamicPluginTensorDesc const* tensors,
                                   std::int32_t, std::int32_t) noexcept override {
        PluginTensorDesc const& tensor = tensors[position].desc;
        PluginTensorDesc const& first = tensors[0].desc;
        return tensor.format == TensorFormat::kLINEAR && hasType(first.type) &&
               tensor.type == first.type;
    }

    std::int32_t configurePlugin(DynamicPluginTensorDesc const*, std::int32_t,
                                 DynamicPluginTensorDesc const*, std::int32_t) noexcept override {
        return 0;
    }

    // Running.

    IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }

    PluginFieldCollection const* getFieldsToSerialize() noexcept override { return &mNoFields; }

    std::int32_t onShapeChange(PluginTensorDesc const* inputs, std::int32_t inputCount,
                               PluginTensorDesc const*, std::int32_t) noexcept override {
        mHasBias = inputCount == kInputsWithBias;
        // Loading is not possible while a CUDA graph is captured, and this comes before.
        CUresult result = CUDA_SUCCESS;
        mKernels = kernels(inputs[0].type, result);
        return result;
    }

    std::int32_t enqueue(PluginTensorDesc const* inputDescs, PluginTensorDesc const*,
                         void const* const* inputs, void* const* outputs, void*,
                         cudaStream_t stream) noexcept override {
        if (mKernels == nullptr) {
            return CUDA_ERROR_NOT_INITIALIZED;
        }
        Dims const& x = inputDescs[0].dims;
        Dims const& channel = inputDescs[1].dims;
        std::int64_t rows = 1;
        for (std::int32_t axis = 0; axis + 1 < x.nbDims; ++axis) {
            rows *= x.d[axis];
        }
        otter::Widths const widths{
            static_cast<std::int32_t>(x.d[x.nbDims - 1]),
            static_cast<std::int32_t>(channel.d[channel.nbDims - 1]),
            static_cast<std::int32_t>(inputDescs[2].dims.d[0]),
            static_cast<std::int32_t>(inputDescs[3].dims.d[0])};
        otter::Pointers const pointers{inputs[0], inputs[1], inputs[2],
                                       inputs[3], inputs[4], mHasBias ? inputs[5] : nullptr,
                                       mHasBias ? inputs[6] : nullptr, outputs[0], outputs[1]};
        try {
            return mKernels->launch(rows, widths, pointers, stream);
        } catch (std::exception const&) {  // no memory for the list of arguments
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
    }

private:
    static otter::LoadedKernels const* kernels(DataType type, CUresult& result) noexcept {
        try {
            return otter::kernelsOfCurrentContext(kernelType(type), result);
        } catch (std::exception const&) {
            result = CUDA_ERROR_OUT_OF_MEMORY;
            return nullptr;
        }
    }

    PluginFieldCollection mNoFields{0, nullptr};
    otter::LoadedKernels const* mKernels = nullptr;
    bool mHasBias = false;
};

class OtterLinearCreator final : public IPluginCreatorV3One {
public:
    IPluginV3* createPlugin(AsciiChar const*, PluginFieldCollection const*,
                            TensorRTPhase) noexcept override {
        return new (std::nothrow) OtterLinear();
    }

    PluginFieldCollection const* getFieldNames() noexcept override { return &mNoFields; }
    AsciiChar const* getPluginName() const noexcept override { return kName; }
    AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
    AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }

private:
    PluginFieldCollection mNoFields{0, nullptr};
};

OtterLinearCreator creator;
IPluginCreatorInterface* creators[] = {&creator};

}  // namespace

extern "C" __attribute__((visibility("default"))) void setLoggerFinder(ILoggerFinder*) {}

extern "C" __attribute__((visibility("default"))) IPluginCreatorInterface* const* getCreators(
    std::int32_t& count) {
    count = 1;
    return creators;
}
