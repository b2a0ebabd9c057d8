#include "core/bind.h"
#include "ops/cluster_sums/cluster_sums.h"

namespace vk {
namespace {

void check_sums(const Check& check, const Tensor& points, const Tensor& sums, const Tensor& counts) {
  check.ndim(points, 2, "[N, D]");
  check.dtype(points, {Dtype::f32, Dtype::f64, Dtype::f16, Dtype::bf16});
  check.contiguous(points);
  check.require(points.size(0) < int64_t(1) << 31, "expected fewer than 2^31 points.");
  check.shape(sums, {-1, points.size(1)});
  check.shape(counts, {sums.size(0)});
  check.require(sums.size(0) < (int64_t(1) << 31) - 1, "expected fewer than 2^31 - 1 clusters.");
  for (const Tensor* t : {&sums, &counts}) {
    check.dtype(*t, {points.dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32});
    check.output(*t);
  }
}

#ifdef VK_BUILD_CPU
void cluster_sums_cpu(const Tensor& points, const Tensor& index, const Tensor& sums, const Tensor& counts) {
  const Check check("cluster_sums", kDLCPU,
                    {{"points", &points}, {"index", &index}, {"sums", &sums}, {"counts", &counts}});
  check_sums(check, points, sums, counts);
  check.shape(index, {points.size(0)});
  check.dtype(index, {Dtype::i64});
  check.contiguous(index);
  ClusterSums a{};
  a.points = points.data();
  a.index = index.ptr<int64_t>();
  a.sums = sums.data();
  a.counts = counts.data();
  a.length = points.size(0);
  a.clusters = sums.size(0);
  a.dim = points.size(1);
  a.element = element_of(points);
  VK_CPU_CALL(cluster_sums, a);
  if (a.bad >= 0)
    check.fail("`index`[" + std::to_string(a.bad) + "] is " + std::to_string(a.index[a.bad]) + ", outside the " +
                   std::to_string(a.clusters) + " clusters.",
               "-1 leaves a point out");
}
#endif

#ifdef VK_GPU
void cluster_sums_cuda_bound(const Tensor& points, const Tensor& cluster, const Tensor& order, const Tensor& sums,
                             const Tensor& counts, const Tensor& plan, const Tensor& partial) {
  const Check check("cluster_sums", kGpuDevice,
                    {{"points", &points},
                     {"cluster", &cluster},
                     {"order", &order},
                     {"sums", &sums},
                     {"counts", &counts},
                     {"plan", &plan},
                     {"partial", &partial}});
  check_sums(check, points, sums, counts);
  check.shape(cluster, {points.size(0)});
  check.dtype(cluster, {Dtype::i32});
  check.contiguous(cluster);
  check.shape(order, {points.size(0)});
  check.dtype(order, {Dtype::i64});
  check.contiguous(order);
  ClusterSums a{};
  a.points = points.data();
  a.sums = sums.data();
  a.counts = counts.data();
  a.length = points.size(0);
  a.clusters = sums.size(0);
  a.dim = points.size(1);
  a.element = element_of(points);
  a.cluster = cluster.ptr<int32_t>();
  a.order = order.ptr<int64_t>();
  a.plan = plan.ptr<int32_t>();
  a.partial = partial.data();
  check.shape(plan, {a.plan_size()});
  check.dtype(plan, {Dtype::i32});
  check.output(plan);
  check.shape(partial, {a.partial_rows(), a.dim});
  check.dtype(partial, {sums.dtype()});
  check.output(partial);
  GpuLaunch launch("cluster_sums", {{"points", &points, GpuLaunch::Buffer::in},
                                    {"cluster", &cluster, GpuLaunch::Buffer::in},
                                    {"order", &order, GpuLaunch::Buffer::in},
                                    {"sums", &sums, GpuLaunch::Buffer::out},
                                    {"counts", &counts, GpuLaunch::Buffer::out},
                                    {"plan", &plan, GpuLaunch::Buffer::out},
                                    {"partial", &partial, GpuLaunch::Buffer::out}});
  cluster_sums_cuda(a, launch.stream());
  launch.finish();
}
#endif

}  // namespace

void register_cluster_sums(py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("cluster_sums_cpu", &cluster_sums_cpu);
#endif
#ifdef VK_GPU
  m.def("cluster_sums_cuda", &cluster_sums_cuda_bound);
#endif
}

}  // namespace vk
