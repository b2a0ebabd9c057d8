// The kernels leave the product to their caller; here it is a plain loop in double.
#include "ops/embed_visible_tubes/embed_visible_tubes.h"
#include "selftest.h"

namespace {

using selftest::number;

struct Setup {
  int64_t batch, count, grid[3], tube[3], channels, dim;
};
constexpr Setup kSetups[] = {{2, 5, {2, 3, 3}, {2, 16, 16}, 3, 40},
                             {2, 3, {2, 2, 3}, {2, 3, 5}, 3, 70},
                             {1, 4, {3, 2, 2}, {1, 4, 4}, 1, 8},
                             {1, 2, {1, 2, 2}, {2, 8, 8}, 5, 3}};
constexpr double kMean[5] = {0.485, 0.456, 0.406, 0.4, 0.5}, kStd[5] = {0.229, 0.224, 0.225, 0.2, 0.3};

vk::VisibleTubes tubes_of(const Setup& s, bool bytes, const void* video, const std::vector<int32_t>& index) {
  vk::VisibleTubes v{};
  v.video = video, v.index = index.data(), v.bytes = bytes;
  v.rows = s.batch * s.count, v.count = s.count, v.length = s.grid[0] * s.grid[1] * s.grid[2], v.channels = s.channels;
  for (int i = 0; i < 3; ++i) v.tube[i] = s.tube[i], v.grid[i] = s.grid[i];
  const int64_t frames = s.grid[0] * s.tube[0], height = s.grid[1] * s.tube[1], width = s.grid[2] * s.tube[2];
  v.row_stride = width * (bytes ? s.channels : 1);
  v.frame_stride = height * v.row_stride;
  v.channel_stride = bytes ? 1 : frames * v.frame_stride;
  v.batch_stride = bytes ? frames * v.frame_stride : s.channels * v.channel_stride;
  for (int64_t c = 0; c < s.channels; ++c) {
    v.scale[c] = bytes ? 128 / (255 * kStd[c]) : 1 / kStd[c];
    v.ratio[c] = bytes ? (128 - 255 * kMean[c]) / 128 : -kMean[c];
  }
  return v;
}

/// Normalised pixels of every visible tube in the order of a weight: [rows, C, pt, ph, pw].
template <class T>
std::vector<double> pixels_of(const vk::VisibleTubes& v) {
  std::vector<double> out;
  for (int64_t i = 0; i < v.rows; ++i) {
    const int64_t n = v.index[i], b = i / v.count;
    const int64_t t0 = n / (v.grid[1] * v.grid[2]), y0 = n / v.grid[2] % v.grid[1], x0 = n % v.grid[2];
    for (int64_t c = 0; c < v.channels; ++c)
      for (int64_t t = t0 * v.tube[0]; t < (t0 + 1) * v.tube[0]; ++t)
        for (int64_t y = y0 * v.tube[1]; y < (y0 + 1) * v.tube[1]; ++y)
          for (int64_t x = x0 * v.tube[2]; x < (x0 + 1) * v.tube[2]; ++x) {
            const int64_t at = b * v.batch_stride + c * v.channel_stride + t * v.frame_stride + y * v.row_stride +
                               x * (v.bytes ? v.channels : 1);
            const double pixel =
                v.bytes ? static_cast<const uint8_t*>(v.video)[at] / 255.0 : number(static_cast<const T*>(v.video)[at]);
            out.push_back((pixel - kMean[c]) / kStd[c]);
          }
  }
  return out;
}

template <class T>
void check(const Setup& s, bool bytes) {
  const size_t rows = size_t(s.batch * s.count), dim = size_t(s.dim);
  const size_t length = size_t(s.grid[0] * s.grid[1] * s.grid[2]);
  const size_t width = size_t(s.tube[0] * s.tube[1] * s.tube[2] * s.channels), items = size_t(s.batch) * length * width;
  selftest::Random random(1);
  std::vector<int32_t> index(rows);
  for (int32_t& n : index) n = random.below(int32_t(length));  // repeats on purpose
  std::vector<uint8_t> byte_video(items);
  for (uint8_t& x : byte_video) x = uint8_t(random.bits());
  const auto float_video = selftest::random_elements<T>(items, 2, 0, 1);
  const auto tubes =
      tubes_of(s, bytes, bytes ? static_cast<const void*>(byte_video.data()) : float_video.data(), index);
  const auto pixels = pixels_of<T>(tubes);
  const auto weight = selftest::random_elements<T>(dim * width, 3), bias = selftest::random_elements<T>(dim, 4);
  const auto position = selftest::random_elements<T>(length * dim, 5);
  std::vector<T> columns(rows * width), folded(dim * width), out(rows * dim);
  std::vector<double> scratch(dim);

  vk::EmbedVisibleTubes a{};
  a.tubes = tubes, a.weight = weight.data(), a.bias = bias.data(), a.position = position.data();
  a.columns = columns.data(), a.folded = folded.data(), a.scratch = scratch.data(), a.out = out.data();
  a.dim = s.dim, a.element = selftest::ElementOf<T>::value;
  VK_CPU_CALL(embed_visible_tubes, a);
  VK_EXPECT(a.bad == -1);
  std::vector<double> result(rows * dim), expected(rows * dim);
  for (size_t i = 0; i < rows; ++i)
    for (size_t d = 0; d < dim; ++d) {
      double got = number(out[i * dim + d]), sum = number(bias[d]) + number(position[size_t(index[i]) * dim + d]);
      for (size_t k = 0; k < width; ++k) {
        if (!a.complete) got += number(columns[i * width + k]) * number(folded[d * width + k]);
        sum += pixels[i * width + k] * number(weight[d * width + k]);
      }
      result[i * dim + d] = got, expected[i * dim + d] = sum;
    }
  VK_EXPECT(selftest::relative_error(result, expected) <= selftest::rounding<T>());

  const auto grad_out = selftest::random_elements<T>(rows * dim, 6);
  std::vector<T> product(dim * width), grad_weight(dim * width), grad_bias(dim), grad_position(length * dim);
  std::vector<double> weight_sum(dim * width), bias_sum(dim), position_sum(length * dim);
  for (size_t d = 0; d < dim; ++d)
    for (size_t k = 0; k < width; ++k) {
      double centred = 0;
      for (size_t i = 0; i < rows; ++i) {
        centred += number(grad_out[i * dim + d]) * number(columns[i * width + k]);
        weight_sum[d * width + k] += number(grad_out[i * dim + d]) * pixels[i * width + k];
      }
      product[d * width + k] = selftest::element<T>(centred);
    }
  for (size_t i = 0; i < rows; ++i)
    for (size_t d = 0; d < dim; ++d) {
      bias_sum[d] += number(grad_out[i * dim + d]);
      position_sum[size_t(index[i]) * dim + d] += number(grad_out[i * dim + d]);
    }
  std::vector<int32_t> links(length + rows);
  std::vector<T> columns_again(rows * width);
  vk::EmbedVisibleTubesBackward g{};
  g.tubes = tubes, g.columns = columns_again.data(), g.grad_out = grad_out.data(), g.product = product.data();
  g.grad_weight = grad_weight.data(), g.grad_bias = grad_bias.data(), g.grad_position = grad_position.data();
  g.sums = scratch.data(), g.links = links.data(), g.dim = s.dim, g.element = a.element;
  VK_CPU_CALL(embed_visible_tubes_backward, g);
  VK_EXPECT(g.bad == -1);
  VK_EXPECT(selftest::same_bits(columns_again, columns));
  VK_EXPECT(selftest::relative_error(grad_weight, weight_sum) <= selftest::rounding<T>());
  VK_EXPECT(selftest::relative_error(grad_bias, bias_sum) <= selftest::rounding<T>());
  VK_EXPECT(selftest::relative_error(grad_position, position_sum) <= selftest::rounding<T>());
}

template <class T>
void every_setup() {
  for (const Setup& s : kSetups)
    for (bool bytes : {true, false}) check<T>(s, bytes);
}

}  // namespace

VK_SELFTEST(embed_visible_tubes_f32) { every_setup<float>(); }
VK_SELFTEST(embed_visible_tubes_f64) { every_setup<double>(); }
VK_SELFTEST(embed_visible_tubes_f16) { every_setup<vk::f16>(); }
VK_SELFTEST(embed_visible_tubes_bf16) { every_setup<vk::bf16>(); }
