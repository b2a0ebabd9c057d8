// Radix select on the keys of the magnitudes: 11, 10 and 10 bits.
//
//   1  histogram of the leading digit: finds the bin that holds the last score to be taken
//   2  histogram of the second digit of that bin's scores, whose keys are kept; the third needs only these
//   3  every key against the threshold, ties counted
//   4  where there are more ties than places, the late ones are taken back
//
// Threads work on parts of the list and count apart: integers add up to the same whatever the parts are.
#include <algorithm>
#include <cstring>

#include "core/parallel.h"
#include "core/scratch.h"
#include "core/vec.h"
#include "ops/top_k_mask/top_k_mask.h"

namespace vk::VK_ISA {
namespace {

constexpr int64_t kPart = 16384;  // scores that are worth a thread
constexpr int kLead = 11, kRest = 10;
constexpr int64_t kBins = int64_t(1) << kLead;
constexpr int kCopies =
    4;  // of a histogram: neighbours often meet in one bin, and a sum must not wait for the last one

VK_INLINE I16 spread_key(uint32_t key) {
  int32_t lanes[16];
  for (int32_t& lane : lanes) lane = int32_t(key);
  I16 v;
  std::memcpy(&v, lanes, sizeof v);
  return v;
}

VK_INLINE I16 keys_of(const float* from) {
  I16 k;
  std::memcpy(&k, from, sizeof k);
  VK_EACH_PART {
    const PartI bits = k.p[i] & 0x7fffffff;
    k.p[i] = bits < 0x7f800001 ? bits : 0x7f800001;
  }
  return k;
}
template <class T>
VK_INLINE I16 keys_of(const T* from) {
  float lanes[16];
  for (int k = 0; k < 16; ++k) lanes[k] = to_float(from[k]);
  return keys_of(lanes);
}

/// f(keys of sixteen scores, index) and g(key, index) for those left over.
template <class T, class F, class G>
VK_INLINE void each_key(const T* scores, int64_t begin, int64_t end, F f, G g) {
  int64_t i = begin;
  for (; i + 16 <= end; i += 16) f(keys_of(scores + i), i);
  for (; i < end; ++i) g(mask_key(to_float(scores[i])), i);
}

/// Eight bits as eight bytes, 0 or 1.
VK_INLINE uint64_t bytes_of(uint32_t bits) {
  const uint64_t apart = (bits & 255) * 0x0101010101010101u & 0x8040201008040201u;
  return (apart + 0x7f7f7f7f7f7f7f7fu) >> 7 & 0x0101010101010101u;
}

/// The bin that holds the `left`-th largest, bins counted from above; `left` becomes its rank inside.
uint32_t find_bin(const uint32_t* histogram, int64_t bins, int64_t& left) {
  for (int64_t b = bins - 1; b > 0; --b) {
    if (left <= int64_t(histogram[b])) return uint32_t(b);
    left -= histogram[b];
  }
  return 0;
}

class Selection {
 public:
  explicit Selection(const TopKMask& a)
      : a_(a),
        parts_(std::max<int64_t>(1, std::min<int64_t>(max_threads(), a.length / kPart))),
        bins_(size_t(parts_ * kCopies * kBins)),
        kept_(size_t(a.length)),
        counts_(size_t(2 * parts_)) {}

  template <class T>
  void run() {
    const T* scores = static_cast<const T*>(a_.scores);
    int64_t left = a_.count;
    const uint32_t lead = leading(scores, left);
    const uint32_t second = lead << kRest | second_digit(scores, lead << 2 * kRest, left);
    const uint32_t threshold = second << kRest | third_digit(second, left);
    write(scores, threshold);
    int64_t ties = 0;
    for (int64_t p = 0; p < parts_; ++p) ties += counts_[size_t(p)];
    if (ties > left) take_back(scores, threshold, left);
  }

 private:
  int64_t begin(int64_t part) const { return a_.length * part / parts_; }
  uint32_t* bins(int64_t part) const { return bins_.data() + part * kCopies * kBins; }

  template <class F>
  void each_part(F f) {
    parallel_for(parts_, 1, [&](int64_t p0, int64_t p1) {
      for (int64_t p = p0; p < p1; ++p) f(p, begin(p), begin(p + 1));
    });
  }

  /// Sums of all copies of all parts in the first one.
  void add_up(int64_t copies, int64_t size) {
    for (int64_t p = 0; p < parts_; ++p)
      for (int64_t c = p ? 0 : 1; c < copies; ++c)
        for (int64_t b = 0; b < size; ++b) bins_[size_t(b)] += bins(p)[c * kBins + b];
  }

  template <class T>
  uint32_t leading(const T* scores, int64_t& left) {
    each_part([&](int64_t p, int64_t b, int64_t e) {
      uint32_t* mine = bins(p);
      std::memset(mine, 0, kCopies * kBins * sizeof(uint32_t));
      each_key(
          scores, b, e,
          [&](const I16& keys, int64_t) {
            int32_t lanes[16];
            store(lanes, keys);
            for (int k = 0; k < 16; ++k) ++mine[k % kCopies * kBins + (lanes[k] >> 2 * kRest)];
          },
          [&](uint32_t key, int64_t) { ++mine[key >> 2 * kRest]; });
    });
    add_up(kCopies, kBins);
    return find_bin(bins_.data(), kBins, left);
  }

  template <class T>
  uint32_t second_digit(const T* scores, uint32_t low, int64_t& left) {
    const uint32_t high = low | ((1u << 2 * kRest) - 1);
    const I16 lows = spread_key(low), highs = spread_key(high);
    each_part([&](int64_t p, int64_t b, int64_t e) {
      uint32_t *mine = bins(p), *kept = kept_.data() + b;
      std::memset(mine, 0, sizeof(uint32_t) << kRest);
      const auto take = [&](uint32_t key) {
        *kept++ = key;
        ++mine[key >> kRest & ((1u << kRest) - 1)];
      };
      each_key(
          scores, b, e,
          [&](const I16& keys, int64_t) {
            uint32_t some = lanes_ge(keys, lows) & lanes_ge(highs, keys);
            if (!some) return;
            int32_t lanes[16];
            store(lanes, keys);
            for (; some; some &= some - 1) take(uint32_t(lanes[__builtin_ctz(some)]));
          },
          [&](uint32_t key, int64_t) {
            if (key >= low && key <= high) take(key);
          });
      counts_[size_t(p)] = kept - (kept_.data() + b);
    });
    add_up(1, int64_t(1) << kRest);
    return find_bin(bins_.data(), int64_t(1) << kRest, left);
  }

  uint32_t third_digit(uint32_t lead, int64_t& left) {
    uint32_t* histogram = bins_.data();
    std::memset(histogram, 0, sizeof(uint32_t) << kRest);
    for (int64_t p = 0; p < parts_; ++p) {
      const uint32_t* kept = kept_.data() + begin(p);
      for (int64_t i = 0; i < counts_[size_t(p)]; ++i)
        if (kept[i] >> kRest == lead) ++histogram[kept[i] & ((1u << kRest) - 1)];
    }
    return find_bin(histogram, int64_t(1) << kRest, left);
  }

  template <class T>
  void write(const T* scores, uint32_t threshold) {
    const I16 limit = spread_key(threshold);
    each_part([&](int64_t p, int64_t b, int64_t e) {
      int64_t ties = 0;
      each_key(
          scores, b, e,
          [&](const I16& keys, int64_t i) {
            const uint32_t in = lanes_ge(keys, limit);
            ties += __builtin_popcount(in & lanes_ge(limit, keys));
            const uint64_t bytes[2] = {bytes_of(in), bytes_of(in >> 8)};
            std::memcpy(a_.mask + i, bytes, sizeof bytes);
          },
          [&](uint32_t key, int64_t i) {
            a_.mask[i] = key >= threshold;
            ties += key == threshold;
          });
      counts_[size_t(p)] = ties;
    });
  }

  template <class T>
  void take_back(const T* scores, uint32_t threshold, int64_t left) {
    int64_t before = 0;
    for (int64_t p = 0; p < parts_; ++p) {
      counts_[size_t(parts_ + p)] = std::max<int64_t>(0, left - before);
      before += counts_[size_t(p)];
    }
    each_part([&](int64_t p, int64_t b, int64_t e) {
      int64_t places = counts_[size_t(parts_ + p)];
      if (places >= counts_[size_t(p)]) return;
      for (int64_t i = b; i < e; ++i)
        if (a_.mask[i] && mask_key(to_float(scores[i])) == threshold && --places < 0) a_.mask[i] = 0;
    });
  }

  const TopKMask& a_;
  const int64_t parts_;
  Scratch<uint32_t> bins_, kept_;
  Scratch<int64_t> counts_;
};

}  // namespace

void top_k_mask(const TopKMask& a) {
  if (a.count <= 0 || a.count >= a.length) {
    if (a.length > 0) std::memset(a.mask, a.count > 0, size_t(a.length));
    return;
  }
  Selection selection(a);
  switch (a.element) {
    case Element::f16: return selection.run<f16>();
    case Element::bf16: return selection.run<bf16>();
    default: return selection.run<float>();
  }
}

}  // namespace vk::VK_ISA
