// Each step
//   1  a thread owns 16 Gaussians      attributes at the frame's time -> ellipses
//   2  a thread owns a tile            sum of its ellipses in blocks, minus the target's blocks: the gradient image,
//                                      which never leaves the block layout
//   3  a thread owns a Gaussian        gathers its gradient over the footprint and moves it by Adam, at once
#include <cmath>
#include <vector>

#include "core/block_row.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "ops/splat_fit/splat_fit.h"

namespace vk::VK_ISA {
namespace {

constexpr int kA = kFitAttributes;
constexpr int64_t kBlockSize = 3 * 16;

/// uint8 [H, W, 3] to blocks [rows][columns][3][16].
void target_blocks(const uint8_t* frame, int64_t height, int64_t width, const TileGrid& grid, uint8_t* out) {
  parallel_for(grid.block_rows, 8, [&](int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; ++r)
      for (int64_t b = 0; b < grid.block_columns; ++b) {
        uint8_t* block = out + (r * grid.block_columns + b) * kBlockSize;
        for (int64_t y = 0; y < kBlock; ++y)
          for (int64_t x = 0; x < kBlock; ++x) {
            const int64_t py = std::min(height - 1, r * kBlock + y), px = std::min(width - 1, b * kBlock + x);
            for (int64_t ch = 0; ch < 3; ++ch) block[ch * 16 + y * 4 + x] = frame[(py * width + px) * 3 + ch];
          }
      }
  });
}

VK_INLINE V16 bytes_to_floats(const uint8_t* from) {
#if defined(__AVX512F__)
  V16 v;
  v.p[0] = (PartF)_mm512_maskz_cvtepi32_ps(
      0xffff, _mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  return v;
#else
  float lane[16];
  for (int k = 0; k < 16; ++k) lane[k] = float(from[k]);
  return load(lane);
#endif
}

float rounded(float current, float previous, float quantum) {
  return quantum > 0 ? previous + quantum * std::nearbyint((current - previous) / quantum) : current;
}

class Fit {
 public:
  explicit Fit(const SplatFit& a)
      : a_(a),
        grid_(a.height, a.width),
        blocks_(int64_t(grid_.block_rows) * grid_.block_columns),
        gradient_(size_t(blocks_ * kBlockSize)),
        ellipses_(size_t(a.count)),
        means_(size_t(a.count * 2)),
        shapes_(size_t(a.count * 3)),
        colors_(size_t(a.count * 3)),
        targets_(size_t(blocks_ * kBlockSize * a.frame_count)),
        ready_(size_t(a.frame_count), 0) {}

  void run() {
    for (int64_t s = 0; s < a_.steps; ++s) {
      const int64_t f = a_.order[s];
      uint8_t* target = targets_.data() + f * blocks_ * kBlockSize;
      if (!ready_[size_t(f)])
        target_blocks(a_.frames + f * a_.height * a_.width * 3, a_.height, a_.width, grid_, target);
      ready_[size_t(f)] = 1;
      look(a_.previous ? a_.alpha[f] : 1.0f);
      a_.error[s] = render(target);
      move(s, a_.previous ? a_.alpha[f] : 1.0f);
    }
  }

 private:
  void look(float alpha) {
    parallel_for((a_.count + 15) / 16, 64, [&](int64_t i0, int64_t i1) {
      const int64_t begin = i0 * 16, end = std::min(a_.count, i1 * 16);
      for (int64_t i = begin; i < end; ++i) {
        float p[kA];
        for (int k = 0; k < kA; ++k) {
          const float before = a_.previous ? a_.previous[i * kA + k] : 0.0f;
          const float now = rounded(a_.current[i * kA + k], before, a_.quantum[k]);
          p[k] = a_.previous ? before + alpha * (now - before) : now;
        }
        means_[size_t(2 * i)] = p[0], means_[size_t(2 * i + 1)] = p[1];
        for (int k = 0; k < 3; ++k) shapes_[size_t(3 * i + k)] = p[2 + k];
        float* c = colors_.data() + 3 * i;
        c[0] = p[5] + p[6] - p[7], c[1] = p[5] + p[7], c[2] = p[5] - p[6] - p[7];
      }
      make_ellipses(means_.data(), shapes_.data(), nullptr, nullptr, ShapeForm::cholesky, 0.5f, begin, end,
                    ellipses_.data());
    });
  }

  /// Fills gradient_ with (image - target) and returns the mean squared error.
  double render(const uint8_t* target) {
    const TileLists lists(ellipses_.data(), a_.count, nullptr, 1, grid_);
    std::vector<double> partial(size_t(grid_.tiles()), 0.0);
    parallel_each(grid_.tiles(), [&](int64_t t) {
      alignas(64) static thread_local float frame[kTileArea * kBlockSize];
      const Tile tile(grid_, t);
      std::fill(std::begin(frame), std::end(frame), 0.0f);
      float* const canvas = frame;
      TilePainter<3> painter;
      lists.for_each(
          t,
          [&](int32_t i) {
            painter.add(ellipses_[size_t(i)], colors_.data() + 3 * i, tile, canvas);
            return true;
          },
          [&](int32_t i) { __builtin_prefetch(colors_.data() + 3 * i); });
      painter.flush(canvas);
      double error = 0;
      for (int r = tile.row0; r <= tile.row1; ++r) {
        V16 squares(0.0f);
        for (int b = tile.column0; b <= tile.column1; ++b) {
          const int64_t place = (int64_t(r) * grid_.block_columns + b) * kBlockSize;
          const float* block = frame + ((r - tile.row0) * kTileColumns + b - tile.column0) * kBlockSize;
          const V16 inside = edge_mask(r, b);
          for (int ch = 0; ch < 3; ++ch) {
            const V16 value = min(max(load(block + ch * 16), V16(0.0f)), V16(1.0f));
            const V16 d = (value - bytes_to_floats(target + place + ch * 16) * V16(1.0f / 255.0f)) * inside;
            store(gradient_.data() + place + ch * 16, d);
            squares = madd(d, d, squares);
          }
        }
        error += double(sum(squares));
      }
      partial[size_t(t)] = error;
    });
    double total = 0;
    for (double e : partial) total += e;
    return total / (3.0 * double(a_.height) * double(a_.width));
  }

  V16 edge_mask(int row, int column) const {
    if ((row + 1) * kBlock <= a_.height && (column + 1) * kBlock <= a_.width) return V16(1.0f);
    float lane[16];
    for (int k = 0; k < 16; ++k)
      lane[k] = row * kBlock + k / 4 < a_.height && column * kBlock + k % 4 < a_.width ? 1.0f : 0.0f;
    return load(lane);
  }

  void move(int64_t step, float alpha) {
    const Buckets places = by_place(ellipses_.data(), a_.count, grid_);
    const int32_t* order = places.begin(0);
    const int64_t felt = places.total();
    const auto unbiased = [&](double beta, int64_t before) {
      return float(1.0 / (1.0 - std::pow(beta, double(before + step + 1))));
    };
    const float unbias1 = unbiased(a_.beta1, a_.mean_steps), unbias2 = unbiased(a_.beta2, a_.variance_steps);
    constexpr int64_t kChunk = 64;
    parallel_each((felt + kChunk - 1) / kChunk, [&](int64_t chunk) {
      FootprintGatherer<3> gatherer(3, grid_);
      const auto done = [&](const Ellipse& e, const float* sums, const float* rgb) {
        const int64_t i = e.index;
        float g[kA];
        mean_gradient(e, sums, g);
        cholesky_gradient(shapes_.data() + 3 * i, sums, g + 2);
        g[5] = rgb[0] + rgb[1] + rgb[2];
        g[6] = rgb[0] - rgb[2];
        g[7] = rgb[1] - rgb[0] - rgb[2];
        for (int k = 0; k < kA; ++k) {
          float& m = a_.mean[i * kA + k];
          float& v = a_.variance[i * kA + k];
          float& p = a_.current[i * kA + k];
          const float gradient = alpha * g[k];
          m = a_.beta1 * m + (1.0f - a_.beta1) * gradient;
          v = a_.beta2 * v + (1.0f - a_.beta2) * gradient * gradient;
          const float scale = a_.rate[k] * a_.pace[step] / (std::sqrt(v * unbias2) + 1e-12f);
          float next = p - scale * m * unbias1;
          if (a_.shrink[k] > 0) {
            const float before = a_.previous ? a_.previous[i * kA + k] : 0.0f, change = next - before;
            const float threshold = scale * a_.shrink[k];
            next = before + (change > threshold ? change - threshold : change < -threshold ? change + threshold : 0.0f);
          }
          if (k == 2 || k == 4) next = std::max(next, a_.least);
          p = next;
        }
      };
      for (int64_t j = chunk * kChunk; j < std::min(felt, (chunk + 1) * kChunk); ++j) {
        const Ellipse& e = ellipses_[size_t(order[j])];
        gatherer.add(e, colors_.data() + 3 * e.index, gradient_.data(), done);
      }
      gatherer.flush(done);
    });
  }

  const SplatFit& a_;
  const TileGrid grid_;
  const int64_t blocks_;
  Scratch<float> gradient_;
  Scratch<Ellipse> ellipses_;
  Scratch<float> means_, shapes_, colors_;
  Scratch<uint8_t> targets_;
  std::vector<char> ready_;
};

}  // namespace

void splat_fit(const SplatFit& a) {
  if (a.height * a.width == 0) return;
  Fit(a).run();
}

}  // namespace vk::VK_ISA
