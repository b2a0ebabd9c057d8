// A task is a piece of a frame: kBand rows of a strip of about kStrip numbers (pixels x channels as they lie in memory;
// a horizontal blur is then a sum over numbers C apart, whatever C is). It walks down in blocks of kRows rows and keeps
// only what the next rows need, in rings of kRing rows that stay in the L2 cache:
//
//   image, target -> x, d -> blurred along the row: y, d, x^2 + y^2, d^2      (rings)
//                         -> down the columns: one window per pixel, its loss and three gradient maps
//                         -> these blurred along the row                      (ring)
//   gradient rows         <- down the columns, with x and d of the ring
//
// Window (v, u) begins at pixel (v, u). A pixel's gradient needs the windows up to 10 rows above and 10 pixels to the
// left, which a task computes again at its upper and left edge but does not count. Sums are per task, added in order.
#include <algorithm>
#include <cstring>
#include <utility>

#include "core/parallel.h"
#include "core/scratch.h"
#include "core/vec.h"
#include "ops/frame_loss/frame_loss.h"

namespace vk::VK_ISA {
namespace {

constexpr int64_t kStrip = 1024, kBand = 128;
constexpr int kRows = 4;
constexpr int kRing = 16;  // a power of two, at least kRows + 10
constexpr int kSpan = kRows + kSsimReach;
constexpr int kMaps = 4, kGradients = 3;
enum Map { kY, kD, kPower, kSquare };

int64_t up16(int64_t n) { return (n + 15) / 16 * 16; }

struct Sums {
  double absolute = 0, square = 0, unlike = 0;
};

/// Factors that all tasks share.
struct Scales {
  double pixel, window;  // 1 / the sum of the weights of all numbers, of all windows' numbers
  float l1, l2, ssim;    // of the gradient
};

struct Rows {
  float* data;
  int64_t width;
  float* operator[](int64_t row) const { return data + (row & (kRing - 1)) * width; }
};

/// out[i] = sum over k of tap k * in[i + k * step], i < n rounded up to 16.
void blur_row(const float* in, float* out, int64_t n, int64_t step) {
  for (int64_t i = 0; i < n; i += 16) {
    V16 even = load(in + i) * V16(ssim_tap(0)), odd = load(in + i + step) * V16(ssim_tap(1));
#pragma GCC unroll 5
    for (int k = 2; k < kSsimTaps; k += 2) {
      even = madd(load(in + i + k * step), V16(ssim_tap(k)), even);
      if (k + 1 < kSsimTaps) odd = madd(load(in + i + (k + 1) * step), V16(ssim_tap(k + 1)), odd);
    }
    store(out + i, even + odd);
  }
}

/// out[r] = sum over k of tap k * row[r + k], sixteen columns from `at`.
VK_INLINE void blur_column(const float* const* row, int64_t at, V16* out) {
#pragma GCC unroll 14
  for (int t = 0; t < kSpan; ++t) {
    const V16 x = load(row[t] + at);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      if (t == r) out[r] = x * V16(ssim_tap(0));
      if (t > r && t - r < kSsimTaps) out[r] = madd(x, V16(ssim_tap(t - r)), out[r]);
    }
  }
}

/// 1, -1 or 0.
VK_INLINE V16 sign(const V16& x) {
  V16 s;
  const PartF one = PartF{} + 1.0f;
  VK_EACH_PART s.p[i] = (PartF)(((PartI)one & (x.p[i] > 0.0f)) | ((PartI)(-one) & (x.p[i] < 0.0f)));
  return s;
}

template <bool kSsim, bool kGrad>
class Task {
 public:
  Task(const FrameLoss& a, const Scales& scales, int64_t b, int64_t s0, int64_t s1)
      : a_(a),
        scales_(scales),
        s0_(s0),
        count_(s1 - s0),
        halo_(kSsim && kGrad ? kSsimReach * a.channels : 0),
        reach_(kSsim ? kSsimReach * a.channels : 0),
        windows_(up16(halo_ + count_)),
        columns_(up16(count_)),
        inputs_(up16(windows_ + reach_) + 16),
        memory_(size_t((2 * kRing + 3) * inputs_ + (kMaps * kRing + 2 * kRows) * windows_ + columns_ +
                       kGradients * (kRows * map_width() + kRing * columns_))) {
    const int64_t frame = b * a.height * a.width;
    image_ = a.image + frame * a.channels;
    target_ = a.target + frame * a.channels;
    weight_ = a.weight ? a.weight + frame : nullptr;
    grad_ = kGrad ? a.grad + frame * a.channels : nullptr;
    std::memset(memory_.data(), 0, memory_.size() * sizeof(float));
    float* next = memory_.data();
    const auto take = [&](int64_t n) { return std::exchange(next, next + n); };
    x_ = {take(kRing * inputs_), inputs_};
    d_ = {take(kRing * inputs_), inputs_};
    for (float*& t : plain_) t = take(inputs_);
    for (Rows& h : blurred_) h = {take(kRing * windows_), windows_};
    for (float*& t : share_) t = take(windows_);
    for (float*& t : counted_) t = take(windows_);
    pixel_weight_ = take(columns_);
    map_ = take(kGradients * kRows * map_width());
    for (Rows& h : map_blurred_) h = {take(kRing * columns_), columns_};
    std::fill(pixel_weight_, pixel_weight_ + count_, 1.0f);
    for (int r = 0; r < kRows; ++r) window_weights(nullptr, r);
  }

  void walk(int64_t r0, int64_t r1, Sums& sums) {
    const int64_t before = kSsim && kGrad ? (kSsimReach + kRows - 1) / kRows * kRows : 0;
    const int64_t first = std::max<int64_t>(0, r0 - before), last_window = kSsim ? a_.height - kSsimReach : 0;
    int64_t next = first;
    for (int64_t v = first; v < r1; v += kRows) {
      for (; next < v + (kSsim ? kSpan : kRows); ++next) read_row(next);
      if constexpr (kSsim) {
        if (v < last_window) window_rows(v, std::min(last_window, v + kRows), v >= r0, r1, sums);
        if constexpr (kGrad)
          for (int64_t w = std::max(v, last_window); w < v + kRows; ++w)
            for (const Rows& h : map_blurred_) std::memset(h[w], 0, size_t(columns_) * sizeof(float));
      }
      if (v >= r0) pixel_rows(v, std::min(r1, v + kRows), sums);
    }
  }

 private:
  int64_t map_width() const { return windows_ + 32; }  // blurred in steps of 16 from the halo on
  float* gradient_row(int k, int r) const { return map_ + (k * kRows + r) * map_width(); }

  /// Row `row` of x and d from 10 pixels to the left on, and its blurred maps.
  void read_row(int64_t row) {
    float *x = x_[row], *d = d_[row];
    if (row >= a_.height) {
      for (const Rows& h : blurred_) std::memset(h[row], 0, size_t(windows_) * sizeof(float));
      return;
    }
    const int64_t numbers = a_.width * a_.channels, left = s0_ - halo_;
    const int64_t i0 = std::max<int64_t>(0, -left), i1 = std::min(numbers - left, inputs_ - 16);
    const float* image = image_ + row * numbers + left;
    const uint8_t* target = target_ + row * numbers + left;
    float *y = plain_[0], *power = plain_[1], *square = plain_[2];
#pragma omp simd
    for (int64_t i = i0; i < i1; ++i) {
      const float t = float(target[i]) / 255.0f, difference = image[i] - t;
      const float from_half = image[i] - 0.5f, target_from_half = t - 0.5f;
      x[i] = from_half;
      d[i] = difference;
      if constexpr (kSsim) {
        y[i] = target_from_half;
        power[i] = from_half * from_half + target_from_half * target_from_half;
        square[i] = difference * difference;
      }
    }
    if constexpr (kSsim) {
      blur_row(y, blurred_[kY][row], windows_, a_.channels);
      blur_row(d, blurred_[kD][row], windows_, a_.channels);
      blur_row(power, blurred_[kPower][row], windows_, a_.channels);
      blur_row(square, blurred_[kSquare][row], windows_, a_.channels);
    }
  }

  /// What the windows of a row weigh in the gradient (share) and in this task's sum (counted).
  void window_weights(const float* centre_row, int r) {
    const int64_t numbers = (a_.width - kSsimReach) * a_.channels, left = s0_ - halo_;
    for (int64_t j = std::max<int64_t>(0, -left); j < std::min(numbers - left, halo_ + count_); ++j) {
      share_[r][j] = centre_row ? centre_row[(left + j) / a_.channels + kSsimReach / 2] : 1.0f;
      counted_[r][j] = j < halo_ ? 0.0f : share_[r][j];
    }
  }

  void window_rows(int64_t v, int64_t end, bool mine, int64_t r1, Sums& sums) {
    const float* rows[kMaps][kSpan];
    for (int m = 0; m < kMaps; ++m)
      for (int t = 0; t < kSpan; ++t) rows[m][t] = blurred_[m][v + t];
    if (weight_)
      for (int64_t w = v; w < end; ++w) window_weights(weight_ + (w + kSsimReach / 2) * a_.width, int(w - v));
    V16 total[kRows];
    for (V16& t : total) t = V16(0.0f);
    for (int64_t j = 0; j < windows_; j += 16) {
      V16 map[kMaps][kRows];
      for (int m = 0; m < kMaps; ++m) blur_column(rows[m], j, map[m]);
      for (int r = 0; r < kRows; ++r) {
        V16 g[kGradients];
        const V16 unlike = ssim_unlike<kGrad>(map[kY][r], map[kD][r], map[kPower][r], map[kSquare][r], g);
        total[r] = madd(unlike, load(counted_[r] + j), total[r]);
        if constexpr (kGrad)
          for (int k = 0; k < kGradients; ++k) store(gradient_row(k, r) + j, g[k] * load(share_[r] + j));
      }
    }
    if (mine)
      for (int64_t w = v; w < std::min(end, r1); ++w) sums.unlike += double(sum(total[w - v]));
    if constexpr (kGrad)
      for (int64_t w = v; w < end; ++w)
        for (int k = 0; k < kGradients; ++k)
          blur_row(gradient_row(k, int(w - v)), map_blurred_[k][w], columns_, a_.channels);
  }

  void pixel_rows(int64_t v, int64_t end, Sums& sums) {
    const float* rows[kGradients][kSpan];
    if constexpr (kSsim && kGrad)
      for (int k = 0; k < kGradients; ++k)
        for (int t = 0; t < kSpan; ++t) rows[k][t] = map_blurred_[k][v + t - kSsimReach];
    const int64_t numbers = a_.width * a_.channels;
    V16 absolute[kRows], square[kRows];
    for (int r = 0; r < kRows; ++r) absolute[r] = square[r] = V16(0.0f);
    for (int64_t q = 0; q < columns_; q += 16) {
      V16 map[kGradients][kRows];
      if constexpr (kSsim && kGrad)
        for (int k = 0; k < kGradients; ++k) blur_column(rows[k], q, map[k]);
      for (int64_t p = v; p < end; ++p) {
        const int r = int(p - v);
        const V16 d = load(d_[p] + halo_ + q), w = weights_of(p, q);
        absolute[r] = madd(max(d, V16(0.0f) - d), w, absolute[r]);
        square[r] = madd(d * d, w, square[r]);
        if constexpr (kGrad) {
          V16 g = w * (V16(scales_.l1) * sign(d) + V16(scales_.l2) * d);
          if constexpr (kSsim)
            g = madd(V16(scales_.ssim), map[0][r] + map[1][r] * d + map[2][r] * load(x_[p] + halo_ + q), g);
          float* to = grad_ + p * numbers + s0_ + q;
          if (q + 16 <= count_) {
            store(to, g);
          } else {
            float part[16];
            store(part, g);
            std::memcpy(to, part, size_t(count_ - q) * sizeof(float));
          }
        }
      }
    }
    for (int64_t p = v; p < end; ++p) {
      sums.absolute += double(sum(absolute[p - v]));
      sums.square += double(sum(square[p - v]));
    }
  }

  VK_INLINE V16 weights_of(int64_t row, int64_t q) const {
    if (!weight_) return load(pixel_weight_ + q);
    float lane[16];
    for (int64_t i = 0; i < 16; ++i)
      lane[i] = q + i < count_ ? weight_[row * a_.width + (s0_ + q + i) / a_.channels] : 0.0f;
    return load(lane);
  }

  const FrameLoss& a_;
  const Scales& scales_;
  int64_t s0_, count_, halo_, reach_, windows_, columns_, inputs_;
  Scratch<float> memory_;
  const float *image_, *weight_;
  const uint8_t* target_;
  float* grad_;
  Rows x_, d_, blurred_[kMaps], map_blurred_[kGradients];
  float *plain_[3], *share_[kRows], *counted_[kRows], *pixel_weight_, *map_;
};

double inverse(double x) { return x > 0 ? 1 / x : 0.0; }

/// Sums of the weights of all pixels and of all centres of windows.
void weight_sums(const FrameLoss& a, double& pixels, double& centres) {
  const int64_t rows = a.batch * a.height, margin = kSsimReach / 2;
  Scratch<double> of_row(size_t(2 * rows));
  parallel_for(rows, 1 + 16384 / (a.width + 1), [&](int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; ++i) {
      const float* w = a.weight + i * a.width;
      const auto add = [w](int64_t from, int64_t to) {
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t x = from; x < to; ++x) sum += double(w[x]);
        return sum;
      };
      const int64_t y = i % a.height;
      of_row[size_t(2 * i)] = add(0, a.width);
      of_row[size_t(2 * i + 1)] = y >= margin && y < a.height - margin ? add(margin, a.width - margin) : 0.0;
    }
  });
  pixels = centres = 0;
  for (int64_t i = 0; i < rows; ++i) {
    pixels += of_row[size_t(2 * i)];
    centres += of_row[size_t(2 * i + 1)];
  }
}

template <bool kSsim, bool kGrad>
void run(const FrameLoss& a) {
  double pixels = double(a.pixels()), centres = kSsim ? double(a.windows()) : 0.0;
  if (a.weight) weight_sums(a, pixels, centres);
  const double up = a.grad_loss ? double(*a.grad_loss) : 1.0;
  Scales scales;
  scales.pixel = inverse(pixels * double(a.channels));
  scales.window = inverse(centres * double(a.channels));
  scales.l1 = float(up * a.l1 * scales.pixel);
  scales.l2 = float(up * a.l2 * 2 * scales.pixel);
  scales.ssim = float(up * a.ssim * scales.window);

  const int64_t numbers = a.width * a.channels;
  const int64_t strip = up16((numbers + (numbers + kStrip - 1) / kStrip - 1) / ((numbers + kStrip - 1) / kStrip));
  const int64_t strips = (numbers + strip - 1) / strip, bands = (a.height + kBand - 1) / kBand;
  const int64_t tasks = a.batch * bands * strips;
  Scratch<Sums> sums(static_cast<size_t>(tasks));
  parallel_each(tasks, [&](int64_t task) {
    const int64_t s0 = task % strips * strip, r0 = task / strips % bands * kBand;
    Sums own;
    Task<kSsim, kGrad>(a, scales, task / strips / bands, s0, std::min(numbers, s0 + strip))
        .walk(r0, std::min(a.height, r0 + kBand), own);
    sums[size_t(task)] = own;
  });
  if (!a.loss) return;
  Sums all;
  for (int64_t i = 0; i < tasks; ++i) {
    all.absolute += sums[size_t(i)].absolute;
    all.square += sums[size_t(i)].square;
    all.unlike += sums[size_t(i)].unlike;
  }
  // A term that is not asked for must not bring in its NaN or infinity.
  double loss = 0;
  if (a.l1 != 0) loss += a.l1 * all.absolute * scales.pixel;
  if (a.l2 != 0) loss += a.l2 * all.square * scales.pixel;
  if (a.ssim != 0) loss += a.ssim * all.unlike * scales.window;
  *a.loss = float(loss);
}

}  // namespace

void frame_loss(const FrameLoss& a) {
  if (a.pixels() * a.channels == 0) {
    if (a.loss) *a.loss = 0;
  } else if (a.ssim != 0) {
    a.grad ? run<true, true>(a) : run<true, false>(a);
  } else {
    a.grad ? run<false, true>(a) : run<false, false>(a);
  }
}

}  // namespace vk::VK_ISA
