// A CUDA device for a torch without CUDA: memory is the host's, every kernel is the CPU's.
//
// Real is what lies above the kernels: devices, dtypes, autocast, autograd, the refusal of mixed
// devices, OutOfMemoryError at an adjustable limit, and errors that stay until they are cleared, as
// those of a CUDA context do. Fresh memory holds NaN. Copies between host and device are counted.
// Not shown: CUDA's own kernels, speed, streams, races.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/native/TensorFactories.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/native/transformers/sdp_utils_cpp.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <ATen/ops/resize_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/util/Exception.h>
#include <torch/extension.h>
#include <torch/library.h>

#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>

namespace {

using at::Tensor;
using c10::Device;
using c10::DeviceIndex;
using c10::kCPU;
using c10::kCUDA;
using c10::Storage;
using c10::Stream;

std::atomic<int> devices{1};
std::atomic<int64_t> used{0}, peak{0}, limit{INT64_MAX}, transfers_in{0}, transfers_out{0}, copies{0};
thread_local DeviceIndex current = 0;
std::mutex log_mutex;
std::map<std::string, std::map<std::string, int64_t>> op_log;
std::set<std::string> upcast_ops;
bool poison = true;

// A broken card: from some operation on, everything on the device fails, as after a CUDA error.
std::mutex fault_mutex;
std::string fault;
std::atomic<int64_t> operations_before_fault{INT64_MAX};
void fail_if_broken() {
  if (operations_before_fault == INT64_MAX || operations_before_fault-- > 0) return;
  operations_before_fault = 0;
  std::lock_guard<std::mutex> lock(fault_mutex);
  throw c10::AcceleratorError({__func__, __FILE__, static_cast<uint32_t>(__LINE__)}, 1, fault);
}

void take(int64_t bytes) {
  auto now = used += bytes;
  if (now > limit) {
    used -= bytes;
    TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory (simulated). Tried to allocate ",
                     bytes, " bytes; ", now - bytes, " of ", limit.load(), " in use");
  }
  auto seen = peak.load();
  while (now > seen && !peak.compare_exchange_weak(seen, now)) {}
}

// ---- memory -------------------------------------------------------------------------------------
struct Block { int64_t bytes; void* memory; };
void free_block(void* context) {
  auto* block = static_cast<Block*>(context);
  used -= block->bytes;
  std::free(block->memory);
  delete block;
}

struct FakeAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    take(bytes);
    void* memory = bytes ? std::aligned_alloc(64, (bytes + 63) / 64 * 64) : nullptr;
    if (poison && bytes) std::memset(memory, 0xFF, bytes);  // NaN in every floating type
    return {memory, new Block{static_cast<int64_t>(bytes), memory}, &free_block, Device(kCUDA, current)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};
FakeAllocator allocator;
REGISTER_ALLOCATOR(kCUDA, &allocator);

// ---- devices ------------------------------------------------------------------------------------
struct FakeGuard final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = kCUDA;
  FakeGuard() = default;
  explicit FakeGuard(c10::DeviceType) {}
  c10::DeviceType type() const override { return kCUDA; }
  Device exchangeDevice(Device d) const override { auto old = getDevice(); setDevice(d); return old; }
  Device getDevice() const override { return Device(kCUDA, current); }
  void setDevice(Device d) const override {
    TORCH_CHECK(d.index() < devices, "CUDA error: invalid device ordinal");
    if (d.index() >= 0) current = d.index();
  }
  void uncheckedSetDevice(Device d) const noexcept override { if (d.index() >= 0) current = d.index(); }
  Stream getStream(Device d) const override { return Stream(Stream::DEFAULT, d); }
  Stream getDefaultStream(Device d) const override { return Stream(Stream::DEFAULT, d); }
  Stream getStreamFromGlobalPool(Device d, bool) const override { return Stream(Stream::DEFAULT, d); }
  Stream getNewStream(Device d, int) const override { return Stream(Stream::DEFAULT, d); }
  Stream exchangeStream(Stream s) const override { return s; }
  DeviceIndex deviceCount() const noexcept override { return devices; }
  void record(void** event, const Stream&, const DeviceIndex, const c10::EventFlag) const override { *event = nullptr; }
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  void synchronizeEvent(void*) const override {}
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, FakeGuard);

struct FakeHooks final : at::CUDAHooksInterface {
  explicit FakeHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isAvailable() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isPinnedPtr(const void*) const override { return false; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  Device getDeviceFromPtr(void*) const override { return Device(kCUDA, current); }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return devices; }
  DeviceIndex deviceCount() const override { return devices; }
  DeviceIndex getCurrentDevice() const override { return current; }
  void deviceSynchronize(DeviceIndex) const override {}
};

// torch has asked for its hooks when it was imported, and keeps the answer: "no CUDA here", an object
// without data. It is given the table of functions of another class.
void replace_hooks() {
  static FakeHooks fake{at::CUDAHooksArgs{}};
  auto& known = const_cast<at::CUDAHooksInterface&>(at::detail::getCUDAHooks());
  std::memcpy(static_cast<void*>(&known), static_cast<const void*>(&fake), sizeof(void*));
}

// ---- tensors of one device seen as the other's ---------------------------------------------------
Tensor over(Storage storage, c10::DispatchKey key, const Tensor& like) {
  auto out = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(key), like.dtype());
  out.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return out;
}

Storage borrowed(const Storage& from, Device device, bool counted) {
  struct Held { Storage storage; int64_t bytes; };
  int64_t bytes = counted ? from.nbytes() : 0;
  take(bytes);
  auto* held = new Held{from, bytes};
  c10::DataPtr pointer(const_cast<void*>(from.data()), held,
                       [](void* p) { auto* h = static_cast<Held*>(p); used -= h->bytes; delete h; }, device);
  // Resizable on the CPU: what an operation enlarges there is taken over afterwards.
  auto* resizing = device.is_cpu() ? c10::GetCPUAllocator() : nullptr;
  return Storage(Storage::use_byte_size_t(), from.nbytes(), std::move(pointer), resizing, resizing != nullptr);
}

struct Translation {
  std::unordered_map<c10::StorageImpl*, Storage> cpu_of;     // CUDA storage -> CPU storage
  std::unordered_map<c10::StorageImpl*, Storage> cuda_of;    // CPU storage -> CUDA storage
  std::unordered_map<c10::TensorImpl*, Tensor> original;     // CPU tensor -> CUDA tensor
  std::vector<Tensor> keep;
  Device device{kCUDA, current};
  bool any_cuda = false;

  Tensor to_cpu(const Tensor& t) {
    if (!t.defined() || t.device().type() != kCUDA) return t;
    any_cuda = true;
    device = t.device();
    auto* impl = t.storage().unsafeGetStorageImpl();
    auto found = cpu_of.find(impl);
    if (found == cpu_of.end()) {
      auto storage = borrowed(t.storage(), Device(kCPU), false);
      cuda_of.emplace(storage.unsafeGetStorageImpl(), t.storage());
      found = cpu_of.emplace(impl, storage).first;
    }
    Tensor alias = over(found->second, c10::DispatchKey::CPU, t);
    if (t.is_conj()) alias._set_conj(true);
    if (t.is_neg()) alias._set_neg(true);
    if (t.unsafeGetTensorImpl()->is_wrapped_number()) alias.unsafeGetTensorImpl()->set_wrapped_number(true);
    original.emplace(alias.unsafeGetTensorImpl(), t);
    keep.push_back(alias);
    return alias;
  }
  void take_over_resized() {
    for (const Tensor& cpu : keep) {
      Tensor cuda = original.at(cpu.unsafeGetTensorImpl());
      if (cpu.scalar_type() != cuda.scalar_type()) continue;
      if (cpu.storage().data() != cuda.storage().data()) {
        auto storage = borrowed(cpu.storage(), device, true);
        cuda.unsafeGetTensorImpl()->set_storage_keep_dtype(storage);
      }
      if (cpu.sizes() != cuda.sizes() || cpu.strides() != cuda.strides()) {
        cuda.unsafeGetTensorImpl()->set_sizes_and_strides(cpu.sizes(), cpu.strides(), cpu.storage_offset());
      }
    }
  }
  Tensor to_cuda(const Tensor& t) {
    if (!t.defined()) return t;
    auto same = original.find(t.unsafeGetTensorImpl());
    if (same != original.end()) return same->second;
    auto base = cuda_of.find(t.storage().unsafeGetStorageImpl());
    auto storage = base != cuda_of.end() ? base->second : borrowed(t.storage(), device, true);
    if (base == cuda_of.end()) cuda_of.emplace(t.storage().unsafeGetStorageImpl(), storage);
    return over(storage, c10::DispatchKey::CUDA, t);
  }
};

const std::set<std::string> mixed_allowed = {
    "aten::index.Tensor", "aten::index_put_", "aten::_index_put_impl_", "aten::index_put",
    "aten::_unsafe_index.Tensor", "aten::index.Tensor_out"};

void each_tensor(c10::IValue& value, const std::function<Tensor(const Tensor&)>& f) {
  if (value.isTensor()) {
    value = f(value.toTensor());
  } else if (value.isTensorList()) {
    std::vector<Tensor> changed;
    for (const Tensor& t : value.toTensorVector()) changed.push_back(f(t));
    value = changed;
  } else if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> changed;
    auto list = value.toOptionalTensorList();
    for (size_t i = 0; i < list.size(); ++i) {
      std::optional<Tensor> t = list.get(i);
      changed.push_back(t.has_value() ? std::optional<Tensor>(f(*t)) : std::nullopt);
    }
    value = changed;
  }
}

void run(const c10::OperatorHandle& op, torch::jit::Stack* stack, bool upcast) {
  fail_if_broken();
  const auto& schema = op.schema();
  const auto name = schema.overload_name().empty() ? schema.name() : schema.name() + "." + schema.overload_name();
  const size_t n_in = schema.arguments().size(), n_out = schema.returns().size();
  const size_t begin = stack->size() - n_in;
  Translation translation;
  std::string mixed, types;
  std::vector<std::pair<Tensor, Tensor>> written;  // what a float copy has to be written back to
  bool any_half = false;
  for (size_t i = 0; i < n_in; ++i) {
    auto& value = (*stack)[begin + i];
    const auto* alias_info = schema.arguments()[i].alias_info();
    const bool is_written = alias_info && alias_info->isWrite();
    each_tensor(value, [&](const Tensor& t) {
      if (!t.defined()) return t;
      types += std::string(types.empty() ? "" : ",") + (t.is_cpu() ? "cpu:" : "") + std::string(c10::toString(t.scalar_type()));
      if (t.is_cpu() && t.dim() > 0) mixed = schema.arguments()[i].name();
      Tensor cpu = translation.to_cpu(t);
      if (upcast && cpu.scalar_type() == at::kHalf) {
        any_half = true;
        Tensor wide = cpu.to(at::kFloat);
        if (is_written) written.emplace_back(cpu, wide);
        translation.original.emplace(wide.unsafeGetTensorImpl(), t);
        translation.keep.push_back(wide);
        return wide;
      }
      return cpu;
    });
    if (value.isDevice() && value.toDevice().type() == kCUDA) {
      translation.device = value.toDevice().has_index() ? value.toDevice() : Device(kCUDA, current);
      value = c10::IValue(Device(kCPU));
    }
  }
  TORCH_CHECK(mixed.empty() || !translation.any_cuda || mixed_allowed.count(name),
              "Expected all tensors to be on the same device, but found at least two devices, cuda:",
              int(current), " and cpu! (argument ", mixed, " of ", name, ")");
  {
    std::lock_guard<std::mutex> lock(log_mutex);
    op_log[name][types] += 1;
  }
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  translation.take_over_resized();
  for (auto& [narrow, wide] : written) narrow.copy_(wide);
  for (size_t i = 0; i < n_out; ++i) {
    auto& value = (*stack)[stack->size() - n_out + i];
    const bool main = i == 0 || name.find("convolution") != std::string::npos;
    each_tensor(value, [&](const Tensor& t) {
      if (upcast && any_half && main && t.defined() && t.scalar_type() == at::kFloat &&
          !translation.original.count(t.unsafeGetTensorImpl())) {
        return translation.to_cuda(t.to(at::kHalf));
      }
      return translation.to_cuda(t);
    });
  }
}

bool computes_in_float(const std::string& name) {
  static const std::set<std::string> names = {
      "aten::convolution", "aten::convolution_backward", "aten::mm", "aten::addmm", "aten::bmm",
      "aten::baddbmm", "aten::addmv"};
  return names.count(name) > 0;
}

// CUDA has a softmax that reads fp16 and writes fp32; the CPU takes two steps.
template <int64_t place_of_half>
void softmax(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const size_t begin = stack->size() - op.schema().arguments().size();
  if ((*stack)[begin + 2].toBool()) {
    (*stack)[begin] = (*stack)[begin].toTensor().to(at::kFloat);
    (*stack)[begin + 2] = false;
  }
  run(op, stack, false);
}
void softmax_backward(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const size_t begin = stack->size() - op.schema().arguments().size();
  const auto wanted = (*stack)[begin + 3].toScalarType();
  const bool narrow = wanted != (*stack)[begin].toTensor().scalar_type();
  if (narrow) (*stack)[begin + 3] = (*stack)[begin].toTensor().scalar_type();
  run(op, stack, false);
  if (narrow) stack->back() = stack->back().toTensor().to(wanted);
}

// fp16 products as a GPU makes them: added up in fp32. And whatever the CPU lacks in fp16.
void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& name = op.schema().name();
  bool upcast = computes_in_float(name);
  {
    std::lock_guard<std::mutex> lock(log_mutex);
    upcast = upcast || upcast_ops.count(name);
  }
  if (upcast) return run(op, stack, true);
  torch::jit::Stack saved(stack->end() - op.schema().arguments().size(), stack->end());
  try {
    run(op, stack, false);
  } catch (const c10::Error& error) {
    const std::string what = error.what_without_backtrace();
    if (what.find("not implemented for 'Half'") == std::string::npos) throw;
    {
      std::lock_guard<std::mutex> lock(log_mutex);
      upcast_ops.insert(name);
    }
    stack->resize(stack->size() >= saved.size() ? stack->size() - saved.size() : 0);
    stack->insert(stack->end(), saved.begin(), saved.end());
    run(op, stack, true);
  }
}

Tensor& copy_(Tensor& self, const Tensor& source, bool) {
  if (self.is_same(source)) return self;
  fail_if_broken();
  Translation translation;
  if (self.is_cpu() != source.is_cpu()) {
    ++copies;
    (self.is_cpu() ? transfers_out : transfers_in) += source.nbytes();
  }
  Tensor to = translation.to_cpu(self), from = translation.to_cpu(source);
  to.copy_(from);
  return self;
}

Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<Device> device, std::optional<bool> pin, std::optional<at::MemoryFormat> format) {
  TORCH_CHECK(!pin.value_or(false), "Only dense CPU tensors can be pinned");
  c10::OptionalDeviceGuard guard(device);
  constexpr c10::DispatchKeySet key(c10::DispatchKey::CUDA);
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &allocator, key, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<Device> device, std::optional<bool>) {
  c10::OptionalDeviceGuard guard(device);
  constexpr c10::DispatchKeySet key(c10::DispatchKey::CUDA);
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
                                           &allocator, key, c10::dtype_or_default(dtype));
}

Tensor as_strided(const Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<c10::SymInt> offset) {
  return at::native::as_strided_tensorimpl(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
      offset.has_value() ? std::make_optional(offset->guard_int(__FILE__, __LINE__)) : std::nullopt);
}
Tensor view(const Tensor& self, c10::SymIntArrayRef size) { return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size)); }
Tensor reshape_alias(const Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return at::native::_reshape_alias(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}
Tensor unfold(const Tensor& self, int64_t dim, int64_t size, int64_t step) { return at::native::unfold(self, dim, size, step); }
const Tensor& resize_(const Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat> format) {
  return at::native::resize_(self, C10_AS_INTARRAYREF_SLOW(size), format);
}
Tensor& set_storage(Tensor& self, Storage source, c10::SymInt offset, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  at::native::checkSetStorage(self, source, offset.guard_int(__FILE__, __LINE__), C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
  self.unsafeGetTensorImpl()->set_storage_offset(offset.guard_int(__FILE__, __LINE__));
  at::native::resize_impl_cpu_(self.unsafeGetTensorImpl(), C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), false);
  return self;
}
Tensor& set_whole_storage(Tensor& self, Storage source) {
  const c10::SymInt count(static_cast<int64_t>(source.nbytes() / self.dtype().itemsize())), one(1);
  return set_storage(self, std::move(source), 0, count, one);
}
Tensor& set_tensor(Tensor& self, const Tensor& source) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(source.storage());
  self.unsafeGetTensorImpl()->set_sizes_and_strides(source.sizes(), source.strides(), source.storage_offset());
  return self;
}
Tensor pin_memory(const Tensor& self, std::optional<Device>) { return self.clone(); }

int64_t attention_by_math(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double, bool,
                          std::optional<double>, bool) {
  return static_cast<int64_t>(sdp::SDPBackend::math);
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }
TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("copy_", &copy_);
  m.impl("as_strided", &as_strided);
  m.impl("view", &view);
  m.impl("_reshape_alias", &reshape_alias);
  m.impl("unfold", &unfold);
  m.impl("resize_", &resize_);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("set_.source_Tensor", &set_tensor);
  m.impl("set_.source_Storage", &set_whole_storage);
  for (const char* name : {"_softmax", "_log_softmax"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&softmax<2>>());
  }
  for (const char* name : {"_softmax_backward_data", "_log_softmax_backward_data"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&softmax_backward>());
  }
  for (const char* name : {"convolution", "convolution_backward"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&fallback>());
  }
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  replace_hooks();
  at::native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(&attention_by_math);
  m.def("has_cuda", [] { return at::detail::getCUDAHooks().hasCUDA(); });
  m.def("set_devices", [](int n) { devices = n; });
  m.def("set_device", [](int n) { current = n; });
  m.def("current_device", [] { return int(current); });
  m.def("set_limit", [](int64_t bytes) { limit = bytes < 0 ? INT64_MAX : bytes; });
  m.def("set_fault", [](const std::string& message, int64_t after) {
    std::lock_guard<std::mutex> lock(fault_mutex);
    fault = message;
    operations_before_fault = after < 0 ? INT64_MAX : after;
  });
  m.def("used", [] { return used.load(); });
  m.def("peak", [] { return peak.load(); });
  m.def("reset_peak", [] { peak = used.load(); });
  m.def("set_poison", [](bool on) { poison = on; });
  m.def("ops", [] { std::lock_guard<std::mutex> lock(log_mutex); return op_log; });
  m.def("upcast", [] { std::lock_guard<std::mutex> lock(log_mutex); return upcast_ops; });
  m.def("clear", [] { std::lock_guard<std::mutex> lock(log_mutex); op_log.clear(); copies = transfers_in = transfers_out = 0; });
  m.def("transfers", [] { return std::make_tuple(copies.load(), transfers_in.load(), transfers_out.load()); });
}
