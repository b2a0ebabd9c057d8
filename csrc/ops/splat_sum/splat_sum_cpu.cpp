// Who owns what
//   forward    a thread owns a tile of 64x64 pixels: it adds up the ellipses of the tile's list in a framebuffer of
//              4x4-pixel blocks (one 16-lane vector per block and channel, at home in the L1/L2 cache) and writes the
//              pixels out once, in [H, W, C] order.
//   backward   the gradient image is laid out in the same blocks once; then a thread owns a Gaussian and gathers over
//              its footprint. Gaussians are visited tile by tile, so that what they read is still in cache.
#include <type_traits>

#include "core/block_row.h"
#include "core/parallel.h"
#include "core/pixel_blocks.h"
#include "core/scratch.h"
#include "ops/splat_sum/splat_sum.h"

namespace vk::VK_ISA {
namespace {

void fill_ellipses(const SplatSum& a, Ellipse* ellipses) {
  parallel_for((a.count + 15) / 16, 64, [&](int64_t i0, int64_t i1) {
    make_ellipses(a.means, a.shapes, a.opacities, nullptr, a.conic ? ShapeForm::conic : ShapeForm::cholesky,
                  a.pixel_center, i0 * 16, i1 * 16 < a.count ? i1 * 16 : a.count, ellipses);
  });
}

/// Channels [first, first + C) of all images.
template <int C>
void forward(const SplatSumForward& a, const Ellipse* ellipses, const TileLists& lists, const TileGrid& grid,
             int64_t first) {
  parallel_each(a.images * grid.tiles(), [&](int64_t t) {
    alignas(64) static thread_local float frame[kTileArea * 16 * C];
    const int64_t image = t / grid.tiles();
    const Tile tile(grid, t % grid.tiles());
    const float* back =
        a.background ? a.background + (a.background_rows > 1 ? image : 0) * a.channels + first : nullptr;
    for (int b = 0; b < kTileArea; ++b)
      for (int ch = 0; ch < C; ++ch) store(frame + (b * C + ch) * 16, V16(back ? back[ch] : 0.0f));
    TilePainter<C> painter;
    float* const canvas = frame;
    const float* colors = a.colors + first;
    lists.for_each(
        t,
        [&](int32_t i) {
          painter.add(ellipses[i], colors + i * a.channels, tile, canvas);
          return true;
        },
        [&](int32_t i) { __builtin_prefetch(colors + i * a.channels); });
    painter.flush(canvas);
    float* pixels = a.image + image * a.height * a.width * a.channels + first;
    for (int64_t r = tile.row0; r <= tile.row1; ++r)
      from_blocks<C>(frame + (r - tile.row0) * kTileColumns * C * 16, tile.column0, tile.column1,
                     std::min<int64_t>(kBlock, a.height - r * kBlock), a.width, a.channels,
                     pixels + r * kBlock * a.width * a.channels);
    finish_blocks();
  });
}

template <int C>
void backward(const SplatSumBackward& a, const Ellipse* ellipses, const float* blocks, const TileGrid& grid) {
  const Buckets places = by_place(ellipses, a.count, grid);
  constexpr int64_t kChunk = 64, kAhead = 8;
  const int32_t* order = places.begin(0);
  const int64_t felt = places.total(), image_size = int64_t(grid.block_rows) * grid.block_columns * a.channels * 16;
  parallel_each((felt + kChunk - 1) / kChunk, [&](int64_t k) {
    FootprintGatherer<C> gatherer(a.channels, grid);
    const auto done = [&](const Ellipse& e, const float* sums, const float* grad_color) {
      const int64_t g = e.index;
      std::copy_n(grad_color, a.channels, a.grad_colors + g * a.channels);
      if (a.grad_opacities) {
        float s = 0;
        for (int64_t ch = 0; ch < a.channels; ++ch) s += grad_color[ch] * a.colors[g * a.channels + ch];
        a.grad_opacities[g] = s / e.weight;
      }
      mean_gradient(e, sums, a.grad_means + 2 * g);
      if (a.conic)
        conic_gradient(e, sums, a.grad_shapes + 3 * g);
      else
        cholesky_gradient(a.shapes + 3 * g, sums, a.grad_shapes + 3 * g);
    };
    for (int64_t j = k * kChunk; j < std::min(felt, (k + 1) * kChunk); ++j) {
      const int64_t next = order[std::min(felt - 1, j + kAhead)];
      __builtin_prefetch(ellipses + next);
      __builtin_prefetch(a.colors + next * a.channels);
      __builtin_prefetch(a.shapes + next * 3);
      const Ellipse& e = ellipses[order[j]];
      int64_t image = 0;
      if (a.offsets) image = std::upper_bound(a.offsets, a.offsets + a.images + 1, int64_t(e.index)) - a.offsets - 1;
      gatherer.add(e, a.colors + e.index * a.channels, blocks + image * image_size, done);
    }
    gatherer.flush(done);
  });
}

void sum_background(const SplatSumBackward& a) {
  const int64_t row = a.width * a.channels, rows = a.images * a.height;
  std::vector<double> partial(size_t(rows * a.channels), 0.0);
  parallel_for(rows, 1 + 16384 / (row + 1), [&](int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; ++r)
      for (int64_t x = 0; x < a.width; ++x)
        for (int64_t ch = 0; ch < a.channels; ++ch)
          partial[size_t(r * a.channels + ch)] += a.grad_image[r * row + x * a.channels + ch];
  });
  std::vector<double> total(size_t(a.background_rows * a.channels), 0.0);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t ch = 0; ch < a.channels; ++ch)
      total[size_t((a.background_rows > 1 ? r / a.height : 0) * a.channels + ch)] +=
          partial[size_t(r * a.channels + ch)];
  for (size_t i = 0; i < total.size(); ++i) a.grad_background[i] = float(total[i]);
}

}  // namespace

void splat_sum(const SplatSumForward& a) {
  if (a.images * a.height * a.width * a.channels == 0) return;
  const TileGrid grid(a.height, a.width);
  const Scratch<Ellipse> ellipses(size_t(a.count));
  fill_ellipses(a, ellipses.data());
  const TileLists lists(ellipses.data(), a.count, a.offsets, a.images, grid);
  for (int64_t first = 0; first < a.channels;) {
    const int64_t left = a.channels - first;
    const auto run = [&](auto count) {
      forward<count()>(a, ellipses.data(), lists, grid, first);
      first += count();
    };
    if (left >= 8)
      run(std::integral_constant<int, 8>());
    else if (left >= 4)
      run(std::integral_constant<int, 4>());
    else if (left == 3)
      run(std::integral_constant<int, 3>());
    else if (left == 2)
      run(std::integral_constant<int, 2>());
    else
      run(std::integral_constant<int, 1>());
  }
}

void splat_sum_backward(const SplatSumBackward& a) {
  if (a.grad_background) sum_background(a);
  std::fill_n(a.grad_means, a.count * 2, 0.0f);
  std::fill_n(a.grad_shapes, a.count * 3, 0.0f);
  std::fill_n(a.grad_colors, a.count * a.channels, 0.0f);
  if (a.grad_opacities) std::fill_n(a.grad_opacities, a.count, 0.0f);
  if (a.count * a.images * a.height * a.width * a.channels == 0) return;
  const TileGrid grid(a.height, a.width);
  const Scratch<Ellipse> ellipses(size_t(a.count));
  fill_ellipses(a, ellipses.data());
  const int64_t row = grid.block_columns * a.channels * 16;
  const Scratch<float> blocks(size_t(a.images * grid.block_rows * row));
  parallel_for(a.images * grid.block_rows, 1 + 16384 / (row + 1), [&](int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; ++r) {
      const int64_t image = r / grid.block_rows, top = r % grid.block_rows * kBlock;
      to_blocks(a.grad_image + (image * a.height + top) * a.width * a.channels,
                std::min<int64_t>(kBlock, a.height - top), a.width, a.channels, blocks.data() + r * row);
    }
  });
  switch (a.channels) {
    case 1: return backward<1>(a, ellipses.data(), blocks.data(), grid);
    case 3: return backward<3>(a, ellipses.data(), blocks.data(), grid);
    case 4: return backward<4>(a, ellipses.data(), blocks.data(), grid);
    default: return backward<0>(a, ellipses.data(), blocks.data(), grid);
  }
}

}  // namespace vk::VK_ISA
