#include "ops/project_gaussians/project_gaussians.h"
#include "selftest.h"

namespace {

struct Sizes {
  int64_t batch, count, views;
};
constexpr Sizes kSizes[] = {{1, 1, 1}, {2, 7, 2}, {1, 64, 1}, {1, 331, 3}, {2, 0, 2}, {1, 5, 0}};

template <class T>
struct Scene {
  std::vector<T> means, shapes, scales, viewmats, Ks;
  std::vector<T> means2d, conics, depths, extents, compensations;
  Sizes s;
  bool quats, ortho;

  Scene(const Sizes& sizes, bool quats, bool ortho) : s(sizes), quats(quats), ortho(ortho) {
    selftest::Random random(7);
    const auto put = [&](std::vector<T>& to, float low, float high) {
      to.push_back(selftest::element<T>(random.uniform(low, high)));
    };
    for (int64_t i = 0; i < s.batch * s.count; ++i) {
      put(means, -0.5f, 0.5f), put(means, -0.4f, 0.4f);
      i % 5 == 4 ? put(means, -4, -2) : put(means, 2, 4);  // every fifth one is behind the camera
      if (quats) {
        for (int d = 0; d < 4; ++d) put(shapes, 0.2f, 1);
        for (int d = 0; d < 3; ++d) put(scales, 0.05f, 0.3f);
      } else {
        const T x = T(random.uniform(0.02f, 0.1f)), y = T(random.uniform(0.02f, 0.1f));
        const T small = T(0.005);
        for (T v : {x, small, -small, y, small, x}) shapes.push_back(v);
      }
    }
    for (int64_t v = 0; v < s.batch * s.views; ++v) {
      const double angle = 0.05 * double(v + 1);
      const T c = T(std::cos(angle)), n = T(std::sin(angle));
      for (T x : {c, T(0), n, T(0.1), T(0), T(1), T(0), T(-0.05), -n, T(0), c, T(0.2), T(0), T(0), T(0), T(1)})
        viewmats.push_back(x);
      const T focal = ortho ? T(20) : T(50);
      for (T x : {focal, T(0), T(33), T(0), focal, T(23), T(0), T(0), T(1)}) Ks.push_back(x);
    }
    const size_t pairs = size_t(s.batch * s.views * s.count);
    means2d.resize(pairs * 2), conics.resize(pairs * 3), depths.resize(pairs);
    extents.resize(pairs * 2), compensations.resize(pairs);
  }

  void run() {
    const vk::ProjectGaussians a{means.data(),
                                 shapes.data(),
                                 quats ? scales.data() : nullptr,
                                 viewmats.data(),
                                 Ks.data(),
                                 means2d.data(),
                                 conics.data(),
                                 depths.data(),
                                 extents.data(),
                                 compensations.data(),
                                 s.batch,
                                 s.count,
                                 s.views,
                                 64,
                                 48,
                                 0.3,
                                 0.05,
                                 100,
                                 0,
                                 ortho,
                                 selftest::ElementOf<T>::value};
    VK_CPU_CALL(project_gaussians, a);
  }

  /// Weights of the outputs, and their weighted sum.
  std::vector<T> weights(size_t n, uint64_t seed) const { return selftest::random_elements<T>(n, seed); }
  double loss() {
    run();
    double sum = 0;
    uint64_t seed = 20;
    for (const std::vector<T>* out : {&means2d, &conics, &depths, &extents, &compensations}) {
      const std::vector<T> w = weights(out->size(), seed++);
      for (size_t i = 0; i < out->size(); ++i) sum += double(w[i]) * double((*out)[i]);
    }
    return sum;
  }
};

/// Sigma from the shape of one Gaussian, by the rotation formula v + 2 w (u x v) + 2 u x (u x v) of each axis.
template <class T>
void covariance(const Scene<T>& scene, int64_t i, double sigma[3][3]) {
  if (!scene.quats) {
    const T* c = scene.shapes.data() + i * 6;
    const int place[3][3] = {{0, 1, 2}, {1, 3, 4}, {2, 4, 5}};
    for (int r = 0; r < 3; ++r)
      for (int k = 0; k < 3; ++k) sigma[r][k] = double(c[place[r][k]]);
    return;
  }
  double q[4], length = 0, m[3][3];
  for (int d = 0; d < 4; ++d) q[d] = double(scene.shapes[size_t(i * 4 + d)]), length += q[d] * q[d];
  for (double& x : q) x /= std::sqrt(length);
  for (int axis = 0; axis < 3; ++axis) {
    double v[3] = {0, 0, 0}, once[3], twice[3];
    v[axis] = 1;
    for (int d = 0; d < 3; ++d) once[d] = q[1 + (d + 1) % 3] * v[(d + 2) % 3] - q[1 + (d + 2) % 3] * v[(d + 1) % 3];
    for (int d = 0; d < 3; ++d)
      twice[d] = q[1 + (d + 1) % 3] * once[(d + 2) % 3] - q[1 + (d + 2) % 3] * once[(d + 1) % 3];
    for (int d = 0; d < 3; ++d)
      m[d][axis] = (v[d] + 2 * q[0] * once[d] + 2 * twice[d]) * double(scene.scales[size_t(i * 3 + axis)]);
  }
  for (int r = 0; r < 3; ++r)
    for (int k = 0; k < 3; ++k) sigma[r][k] = m[r][0] * m[k][0] + m[r][1] * m[k][1] + m[r][2] * m[k][2];
}

template <class T>
void forward(bool quats, bool ortho) {
  for (const Sizes& s : kSizes) {
    Scene<T> scene(s, quats, ortho);
    scene.run();
    std::vector<double> means2d(scene.means2d.size()), conics(scene.conics.size()), depths(scene.depths.size());
    for (int64_t at = 0; at < s.batch * s.views * s.count; ++at) {
      const int64_t view = at / s.count, i = view / s.views * s.count + at % s.count;
      const T *r = scene.viewmats.data() + view * 16, *k = scene.Ks.data() + view * 9;
      double p[3], sigma[3][3], j[2][3], t[2][3], cov[2][2] = {};
      for (int d = 0; d < 3; ++d) {
        p[d] = double(r[4 * d + 3]);
        for (int e = 0; e < 3; ++e) p[d] += double(r[4 * d + e]) * double(scene.means[size_t(i * 3 + e)]);
      }
      if (p[2] < 0.05) continue;
      const double f = double(k[0]), z = ortho ? 1 : p[2];
      for (int d = 0; d < 2; ++d) {
        for (int e = 0; e < 3; ++e) j[d][e] = e == d ? f / z : e == 2 && !ortho ? -f * p[d] / (z * z) : 0;
        means2d[size_t(at * 2 + d)] = f * p[d] / z + double(k[3 * d + 2]);
      }
      covariance(scene, i, sigma);
      for (int d = 0; d < 2; ++d)
        for (int e = 0; e < 3; ++e)
          t[d][e] = j[d][0] * double(r[e]) + j[d][1] * double(r[4 + e]) + j[d][2] * double(r[8 + e]);
      for (int d = 0; d < 2; ++d)
        for (int e = 0; e < 2; ++e)
          for (int u = 0; u < 9; ++u) cov[d][e] += t[d][u / 3] * sigma[u / 3][u % 3] * t[e][u % 3];
      const double a = cov[0][0] + 0.3, c = cov[1][1] + 0.3, det = a * c - cov[0][1] * cov[0][1];
      conics[size_t(at * 3)] = c / det, conics[size_t(at * 3 + 1)] = -cov[0][1] / det;
      conics[size_t(at * 3 + 2)] = a / det;
      depths[size_t(at)] = p[2];
    }
    VK_EXPECT(selftest::relative_error(scene.means2d, means2d) <= 2 * selftest::rounding<T>());
    VK_EXPECT(selftest::relative_error(scene.conics, conics) <= 5 * selftest::rounding<T>());
    VK_EXPECT(selftest::relative_error(scene.depths, depths) <= selftest::rounding<T>());
  }
}

}  // namespace

VK_SELFTEST(project_gaussians_agrees_with_plain_loops) {
  for (bool quats : {true, false})
    for (bool ortho : {true, false}) {
      forward<float>(quats, ortho);
      forward<double>(quats, ortho);
    }
}

VK_SELFTEST(project_gaussians_backward_agrees_with_differences) {
  for (bool quats : {true, false})
    for (bool ortho : {true, false}) {
      Scene<double> scene({1, 67, 2}, quats, ortho);
      scene.run();
      std::vector<double> w[5], grad_means(scene.means.size()), grad_shapes(scene.shapes.size());
      const std::vector<double>* outputs[] = {&scene.means2d, &scene.conics, &scene.depths, &scene.extents,
                                              &scene.compensations};
      for (size_t o = 0; o < 5; ++o) w[o] = scene.weights(outputs[o]->size(), 20 + o);
      std::vector<double> grad_scales(scene.scales.size()), grad_viewmats(32, 7.0), grad_Ks(18, 7.0);
      std::vector<double> partial(2 * vk::kProjectCamera);
      const std::vector<double> extents = scene.extents;
      const vk::ProjectGaussiansBackward a{w[0].data(),
                                           w[1].data(),
                                           w[2].data(),
                                           w[3].data(),
                                           w[4].data(),
                                           scene.means.data(),
                                           scene.shapes.data(),
                                           quats ? scene.scales.data() : nullptr,
                                           scene.viewmats.data(),
                                           scene.Ks.data(),
                                           extents.data(),
                                           grad_means.data(),
                                           grad_shapes.data(),
                                           grad_scales.data(),
                                           grad_viewmats.data(),
                                           grad_Ks.data(),
                                           partial.data(),
                                           1,
                                           67,
                                           2,
                                           64,
                                           48,
                                           0.3,
                                           ortho,
                                           vk::Element::f64};
      VK_CPU_CALL(project_gaussians_backward, a);
      const auto check = [&](std::vector<double>& leaf, const std::vector<double>& grad, size_t stride) {
        for (size_t i = 0; i < leaf.size(); i += stride) {
          const double step = 1e-6, before = leaf[i];
          leaf[i] = before + step;
          const double high = scene.loss();
          leaf[i] = before - step;
          const double low = scene.loss();
          leaf[i] = before;
          const double slope = (high - low) / (2 * step);
          VK_EXPECT(std::fabs(grad[i] - slope) <= 1e-4 * (1 + std::fabs(slope)));
        }
      };
      check(scene.means, grad_means, 5);
      check(scene.shapes, grad_shapes, 7);
      check(scene.scales, grad_scales, 5);
      check(scene.viewmats, grad_viewmats, 1);
      for (size_t i : {0u, 2u, 4u, 5u, 9u, 11u, 13u, 14u}) {
        const double step = 1e-6, before = scene.Ks[i];
        scene.Ks[i] = before + step;
        const double high = scene.loss();
        scene.Ks[i] = before - step;
        const double low = scene.loss();
        scene.Ks[i] = before;
        VK_EXPECT(std::fabs(grad_Ks[i] - (high - low) / (2 * step)) <= 1e-4 * (1 + std::fabs(grad_Ks[i])));
      }
    }
}
