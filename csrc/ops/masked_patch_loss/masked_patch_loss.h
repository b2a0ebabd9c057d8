// Mean squared error of predicted tubes against normalised pixels, and its gradient.
//
//   x       = pixels of tube (b, index[b, k]), channel c, as values v_c = x * scale_c + shift_c
//   videomae  target = (v_c - mean_c) / (std_c + 1e-6)           statistics of each channel
//   mae_st    target = (v_c - mean) / sqrt(std^2 + 1e-6)         statistics of all channels together
//   loss    = sum (pred - target)^2 / n              grad = upstream * 2 / n * (pred - target)
//
// Both conventions need nothing of a tube but the mean m_c and the squared deviation s_c of each channel of x, and
// both targets are (x - centre_c) * factor_c: see coefficients(). The centre comes in two parts, high + low, so that
// x - centre is right to the last bit in flat tubes, where the factor is up to 1e6.
//
// Inside a tube the order is (t, y, x, channel), channel fastest. Order of summation: one partial sum per tube, then
// the tubes in fixed order: the same bits for any number of threads.
#pragma once
#include <cmath>
#include <cstdint>

#include "core/dispatch.h"
#include "core/element.h"
#include "core/half.h"

namespace vk {

struct MaskedPatchLoss {
  const void* pred;       // [B, K, pt * ph * pw * C]
  const void* video;      // any strides
  const int32_t* index;   // [B, K]
  const void* grad_loss;  // one float (double if pred is double), or null for 1
  void* loss;             // one float (double if pred is double), or null
  double* partial;        // [B, K], needed for the loss
  void* grad;             // like pred, may be pred; or null
  int64_t batch, count;
  int64_t grid_t, grid_h, grid_w;
  int64_t pt, ph, pw, channels;
  int64_t stride_b, stride_t, stride_h, stride_w, stride_c;  // of video, in elements
  const double *shift, *scale;                               // [C] on the host: v = x * scale + shift; null: see below
  bool joint;                                                // mae_st
  bool bytes;                                                // video is uint8, scale 1/255 and shift 0
  Element pred_element, video_element;
  int64_t bad;  // out: flat position of the first index outside the grid, or -1 (CPU only)

  VK_HD int64_t length() const { return grid_t * grid_h * grid_w; }
  VK_HD int64_t pixels() const { return pt * ph * pw; }
};

/// What a channel's pixels become: target = ((x - high) - low) * factor.
template <class Real>
struct TargetMap {
  Real high, low, factor;
};

/// The map of channel c from the means and squared deviations (sums over n pixels) of all channels.
template <class Real>
VK_HD TargetMap<Real> target_map(int64_t c, int64_t channels, int64_t n, const double* mean, const double* deviation,
                                 const double* scale, const double* shift, bool joint, bool bytes) {
  const double unit = bytes ? 255.0 : 1.0, epsilon = 1e-6;
  const double s = scale ? scale[c] : 1.0;
  double centre = mean[c], factor;
  if (!joint) {
    factor = s / (fabs(s) * sqrt(deviation[c] / double(n - 1)) + epsilon * unit);
  } else {
    double all = 0, spread = 0;
    for (int64_t i = 0; i < channels; ++i) all += scale ? mean[i] * scale[i] + shift[i] : mean[i];
    all /= double(channels);
    for (int64_t i = 0; i < channels; ++i) {
      const double si = scale ? scale[i] : 1.0, off = (scale ? mean[i] * scale[i] + shift[i] : mean[i]) - all;
      spread += si * si * deviation[i] + double(n) * off * off;
    }
    centre = scale ? (all - shift[c]) / s : all;
    factor = s / sqrt(spread / double(n * channels - 1) + epsilon * unit * unit);
  }
  const Real high = Real(centre);
  return {high, Real(centre - double(high)), Real(factor)};
}

VK_CPU_KERNEL(masked_patch_loss, (MaskedPatchLoss & a))

/// grad[i] *= *factor (a float, a double for a double grad), in place; does nothing if the factor is 1.
void masked_patch_loss_scale_cuda(void* grad, const void* factor, int64_t n, Element element, void* stream);
void masked_patch_loss_cuda(const MaskedPatchLoss& a, void* stream);

}  // namespace vk
