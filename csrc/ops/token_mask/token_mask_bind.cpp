#include <pybind11/stl.h>

#include "core/bind.h"
#include "ops/token_mask/token_mask.h"

namespace vk {
namespace {

MaskKind kind_of(const std::string& kind) {
  if (kind == "tube") return MaskKind::tube;
  if (kind == "random") return MaskKind::random;
  if (kind == "running_cell") return MaskKind::running_cell;
  if (kind == "block") return MaskKind::block;
  throw py::value_error("token_mask: expected kind tube, random, running_cell or block, got " + kind + ".");
}

/// What both ops ask of counts, outputs and sizes, once groups, length and repeat are known.
void fill(TokenMask& a, const Check& check, const Tensor& counts, const Tensor& visible, const Tensor& masked) {
  check.require(a.groups > 0 && a.length > 0 && a.repeat > 0, "expected at least one token.");
  check.require(a.groups * a.length * a.repeat < int64_t(1) << 31, "expected fewer than 2^31 tokens.");
  check.require(0 <= a.low && a.low <= a.high && a.high <= a.length,
                "expected 0 <= low <= high <= tokens to choose from.");
  check.dtype(visible, {Dtype::i32});
  check.shape(visible, {-1, a.groups * a.repeat * (a.length - a.low)});
  check.output(visible);
  a.batch = visible.size(0);
  check.require(a.batch * a.groups < int64_t(1) << 31, "expected fewer than 2^31 selections.");
  check.dtype(masked, {Dtype::i32});
  check.shape(masked, {a.batch, a.groups * a.repeat * a.high});
  check.output(masked);
  if (counts.defined()) {
    check.dtype(counts, {Dtype::i32});
    check.shape(counts, {a.batch});
    check.contiguous(counts);
    a.counts = counts.ptr<int32_t>();
  } else {
    check.require(a.low == a.high, "expected low == high without `counts`.");
  }
  a.visible = visible.ptr<int32_t>();
  a.masked = masked.ptr<int32_t>();
}

TokenMask mask_args(int device, const Tensor& seed, const Tensor& counts, const std::string& kind,
                    const std::vector<int64_t>& grid, int64_t low, int64_t high, const std::vector<int64_t>& blocks,
                    const Tensor& visible, const Tensor& masked) {
  const Check check("token_mask", device,
                    {{"seed", &seed}, {"counts", &counts}, {"visible", &visible}, {"masked", &masked}});
  TokenMask a{};
  a.kind = kind_of(kind);
  check.dtype(seed, {Dtype::i64});
  check.shape(seed, {1});
  a.seed = seed.ptr<int64_t>();
  check.require(grid.size() == 3, "expected `grid` to be (T, H, W).");
  for (const int64_t size : grid) check.require(size > 0 && size < int64_t(1) << 24, "expected positive grid sizes.");
  const int64_t frames = grid[0], cells = grid[1] * grid[2];
  const bool shared = a.kind == MaskKind::tube || a.kind == MaskKind::block;
  a.groups = a.kind == MaskKind::running_cell ? frames : 1;
  a.length = a.kind == MaskKind::random ? frames * cells : cells;
  a.repeat = shared ? frames : 1;
  a.low = low;
  a.high = high;
  a.height = int32_t(grid[1]);
  a.width = int32_t(grid[2]);
  fill(a, check, counts, visible, masked);
  if (a.kind == MaskKind::block) {
    check.require(blocks.size() >= 3 && blocks.size() % 2 == 1 && blocks.size() <= 65,
                  "expected `blocks` to be the number of rectangles, then 1 to 32 pairs of height and width.");
    check.require(blocks[0] >= 0 && blocks[0] <= kMaxBlocks, "expected at most 128 rectangles.");
    a.blocks = int32_t(blocks[0]);
    a.block_sizes = int32_t(blocks.size() / 2);
    for (size_t i = 1; i < blocks.size(); ++i) {
      check.require(blocks[i] >= 1 && blocks[i] <= grid[2 - i % 2], "expected rectangles that fit the grid.");
      a.sizes[i - 1] = int32_t(blocks[i]);
    }
  }
  return a;
}

TokenMask score_args(int device, const Tensor& scores, const Tensor& counts, int64_t groups, int64_t low, int64_t high,
                     bool largest, const Tensor& visible, const Tensor& masked) {
  const Check check("score_mask", device,
                    {{"scores", &scores}, {"counts", &counts}, {"visible", &visible}, {"masked", &masked}});
  TokenMask a{};
  a.kind = MaskKind::scores;
  check.ndim(scores, 2, "[B, N]");
  check.dtype(scores, {Dtype::f32});
  check.contiguous(scores);
  a.scores = scores.ptr<float>();
  check.require(groups > 0 && scores.size(1) % groups == 0, "expected N to be a multiple of `groups`.");
  a.groups = groups;
  a.length = scores.size(1) / groups;
  a.repeat = 1;
  a.low = low;
  a.high = high;
  a.largest = largest;
  fill(a, check, counts, visible, masked);
  check.require(a.batch == scores.size(0), "expected one row of scores per sample.");
  return a;
}

#ifdef VK_BUILD_CPU
void mask_cpu(const Tensor& seed, const Tensor& counts, const std::string& kind, const std::vector<int64_t>& grid,
              int64_t low, int64_t high, const std::vector<int64_t>& blocks, const Tensor& visible,
              const Tensor& masked) {
  VK_CPU_CALL(token_mask, mask_args(kDLCPU, seed, counts, kind, grid, low, high, blocks, visible, masked));
}
void score_cpu(const Tensor& scores, const Tensor& counts, int64_t groups, int64_t low, int64_t high, bool largest,
               const Tensor& visible, const Tensor& masked) {
  VK_CPU_CALL(token_mask, score_args(kDLCPU, scores, counts, groups, low, high, largest, visible, masked));
}
#endif

#ifdef VK_GPU
void mask_cuda(const Tensor& seed, const Tensor& counts, const std::string& kind, const std::vector<int64_t>& grid,
               int64_t low, int64_t high, const std::vector<int64_t>& blocks, const Tensor& visible,
               const Tensor& masked) {
  const TokenMask a = mask_args(kGpuDevice, seed, counts, kind, grid, low, high, blocks, visible, masked);
  GpuLaunch launch("token_mask", {{"seed", &seed, GpuLaunch::Buffer::in},
                                  {"counts", &counts, GpuLaunch::Buffer::in},
                                  {"visible", &visible, GpuLaunch::Buffer::out},
                                  {"masked", &masked, GpuLaunch::Buffer::out}});
  token_mask_cuda(a, launch.stream());
  launch.finish();
}
void score_cuda(const Tensor& scores, const Tensor& counts, int64_t groups, int64_t low, int64_t high, bool largest,
                const Tensor& visible, const Tensor& masked) {
  const TokenMask a = score_args(kGpuDevice, scores, counts, groups, low, high, largest, visible, masked);
  GpuLaunch launch("score_mask", {{"scores", &scores, GpuLaunch::Buffer::in},
                                  {"counts", &counts, GpuLaunch::Buffer::in},
                                  {"visible", &visible, GpuLaunch::Buffer::out},
                                  {"masked", &masked, GpuLaunch::Buffer::out}});
  token_mask_cuda(a, launch.stream());
  launch.finish();
}
#endif

}  // namespace

void register_token_mask(py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("token_mask_cpu", &mask_cpu);
  m.def("score_mask_cpu", &score_cpu);
#endif
#ifdef VK_GPU
  m.def("token_mask_cuda", &mask_cuda);
  m.def("score_mask_cuda", &score_cuda);
#endif
}

}  // namespace vk
