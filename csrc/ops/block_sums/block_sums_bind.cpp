#include "core/bind.h"
#include "ops/block_sums/block_sums.h"

namespace vk {
namespace {

#ifdef VK_BUILD_CPU
void sums_cpu(const Tensor& before, const Tensor& after, const Tensor& across, const Tensor& down,
              const Tensor& vectors, const Tensor& out, int64_t side) {
  const Check check("block_sums", kDLCPU,
                    {{"before", &before},
                     {"after", &after},
                     {"across", &across},
                     {"down", &down},
                     {"vectors", &vectors},
                     {"out", &out}});
  check.ndim(before, 2, "[H, W]");
  const int64_t height = before.size(0), width = before.size(1);
  check.require(side > 0 && side < (1 << 20) && height < (1 << 20) && width < (1 << 20),
                "sides from 1 to 2^20 - 1 pixels.");
  const int64_t rows = (height + side - 1) / side, columns = (width + side - 1) / side;
  for (const Tensor* t : {&before, &after, &across, &down}) check.shape(*t, {height, width});
  check.shape(vectors, {2, rows, columns});
  check.shape(out, {3, rows, columns});
  check.output(out);
  for (const Tensor* t : {&before, &after, &across, &down, &vectors, &out}) {
    check.dtype(*t, {Dtype::f32});
    check.contiguous(*t);
  }
  const BlockSums a{before.ptr<float>(),
                    after.ptr<float>(),
                    across.ptr<float>(),
                    down.ptr<float>(),
                    vectors.ptr<float>(),
                    out.ptr<float>(),
                    height,
                    width,
                    side};
  const py::gil_scoped_release release;
  VK_CPU_CALL(block_sums, a);
}
#endif

}  // namespace

void register_block_sums([[maybe_unused]] py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("block_sums_cpu", &sums_cpu);
#endif
}

}  // namespace vk
