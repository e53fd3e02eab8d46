// Calls the C++ plugin as TensorRT does when an engine runs; the argument is the number of inputs.

#include <NvInfer.h>

#include <cstdint>
#include <cstdlib>

using namespace nvinfer1;

extern "C" IPluginCreatorInterface* const* getCreators(std::int32_t& count);

namespace {

PluginTensorDesc description(Dims const& dims) {
    PluginTensorDesc tensor{};
    tensor.dims = dims;
    tensor.type = DataType::kHALF;
    tensor.format = TensorFormat::kLINEAR;
    return tensor;
}

}  // namespace

int main(int, char** arguments) {
    std::int32_t const inputCount = std::atoi(arguments[1]);
    PluginTensorDesc const inputs[] = {
        description(Dims{3, {2, 3, 64}}), description(Dims{3, {2, 3, 16}}),
        description(Dims{2, {96, 64}}),   description(Dims{2, {24, 64}}),
        description(Dims{2, {24, 16}}),   description(Dims{1, {96}}),
        description(Dims{1, {24}})};
    PluginTensorDesc const outputs[] = {description(Dims{3, {2, 3, 96}}),
                                        description(Dims{3, {2, 3, 24}})};
    void const* read[7];
    for (std::uintptr_t input = 0; input < 7; ++input) {
        read[input] = reinterpret_cast<void const*>(0x7F0000000000 + 0x1000 * input);
    }
    void* written[] = {reinterpret_cast<void*>(0x7E0000000000),
                       reinterpret_cast<void*>(0x7E0000001000)};

    std::int32_t count = 0;
    auto* creator = static_cast<IPluginCreatorV3One*>(getCreators(count)[0]);
    IPluginV3* plugin = creator->createPlugin("node", nullptr, TensorRTPhase::kRUNTIME);
    auto* runtime = static_cast<IPluginV3OneRuntime*>(
        plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    IPluginV3* attached = runtime->attachToContext(nullptr);
    runtime = static_cast<IPluginV3OneRuntime*>(
        attached->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    bool failed = count != 1 || runtime->onShapeChange(inputs, inputCount, outputs, 2) != 0;
    for (int step = 0; step < 2; ++step) {
        auto* stream = reinterpret_cast<cudaStream_t>(0x77);
        failed = failed || runtime->enqueue(inputs, outputs, read, written, nullptr, stream) != 0;
    }
    delete attached;
    delete plugin;
    return failed ? 1 : 0;
}
