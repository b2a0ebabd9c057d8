// The emulator's own functions in the Python modules _simt and _simt_trace.
#include <pybind11/pybind11.h>

#include "simt/counters.h"
#include "simt/launch.h"
#include "simt/worker.h"

namespace py = pybind11;

namespace simt {
namespace {

void configure_from_python(uint64_t seed, int threads, double timeout) {
  if (threads < 1 || threads > 256) throw py::value_error("simt_configure: `threads` must be 1 to 256.");
  if (!(timeout >= 0.1)) throw py::value_error("simt_configure: `timeout` must be at least 0.1 s.");
  configure({seed, threads, timeout});
}

void put(py::dict& d, const std::string& name, const Traffic& t) {
  d[py::str(name + "_requests")] = t.requests;
  d[py::str(name + "_sectors")] = t.sectors;
  d[py::str(name + "_bytes")] = t.bytes;
}

py::list counters_to_python() {
  py::list out;
  for (const auto& [kernel, c] : all_counters()) {
    py::dict d;
    d["kernel"] = kernel;
    d["launches"] = c.launches;
    d["blocks"] = c.blocks;
    d["threads"] = c.threads;
    d["barriers"] = c.barriers;
    d["collectives"] = c.collectives;
    d["atomics"] = c.atomic_operations;
    d["dynamic_smem_bytes"] = c.dynamic_shared;
    d["traced"] = kTrace;
    if (kTrace) {
      put(d, "load", c.global[0]);
      put(d, "store", c.global[1]);
      put(d, "atomic", c.global[2]);
      d["load_unique_bytes"] = c.global[0].unique_bytes;
      d["store_unique_bytes"] = c.global[1].unique_bytes + c.global[2].unique_bytes;
      d["shared_load_requests"] = c.shared_requests[0];
      d["shared_store_requests"] = c.shared_requests[1];
      d["shared_atomic_requests"] = c.shared_requests[2];
      d["shared_waves"] = c.shared_waves;
      d["bank_conflict_waves"] = c.shared_conflict_waves;
      d["static_smem_bytes"] = c.static_shared;
      py::dict buffers;
      for (const auto& [name, traffic] : c.buffers) {
        py::dict b;
        put(b, "load", traffic[0]);
        put(b, "store", traffic[1]);
        b["load_unique_bytes"] = traffic[0].unique_bytes;
        b["store_unique_bytes"] = traffic[1].unique_bytes;
        buffers[py::str(name)] = b;
      }
      d["buffers"] = buffers;
    }
    out.append(d);
  }
  return out;
}

}  // namespace
}  // namespace simt

namespace vk {

void register_selftest(py::module_& m);

void register_simt(py::module_& m) {
  m.def("simt_configure", &simt::configure_from_python, py::arg("seed") = 0, py::arg("threads") = 1,
        py::arg("timeout") = 120.0,
        "seed: permutes the order of blocks, warps and lanes (0: ascending). threads: OS threads that run blocks. "
        "timeout: seconds that a block may take.");
  m.def("simt_counters", &simt::counters_to_python, "One dict per kernel, summed over launches since the last reset.");
  m.def("simt_reset_counters", &simt::reset_counters);
  register_selftest(m);
}

}  // namespace vk
