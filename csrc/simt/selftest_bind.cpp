#include <pybind11/pybind11.h>

#include <string>

#include "simt/selftest.h"
#include "simt/simt_runtime.h"

namespace py = pybind11;

namespace vk {

void register_selftest(py::module_& m) {
  for (const SelfTest* table : {kSelfTestBugs, kSelfTestExact})
    for (const SelfTest* t = table; t->name; ++t) {
      const SelfTest test = *t;
      m.def(("selftest_" + std::string(test.name)).c_str(),
            [test](const py::buffer& x, const py::buffer& y, int variant) {
              const py::buffer_info in = x.request(), out = y.request(true);
              const simt::Range ranges[] = {{in.ptr, size_t(in.size * in.itemsize), true, false, "x"},
                                            {out.ptr, size_t(out.size * out.itemsize), test.y_initialised, true, "y"}};
              simt::begin_op(test.name, ranges, 2);
              test.run(in.ptr, out.ptr, int(in.size), variant, nullptr);
              simt::end_op();
            },
            py::arg("x"), py::arg("y"), py::arg("variant") = 0);
    }
}

}  // namespace vk
