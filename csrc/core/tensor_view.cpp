#include "core/tensor_view.h"

namespace vk {
namespace {

// The exchange table of a type, or nullptr. Types are few (Tensor, Parameter) and live for ever, so the last
// two are remembered; the GIL guards the memory.
const DLPackExchangeAPI* exchange_api(PyTypeObject* type) {
  static PyTypeObject* known[2] = {};
  static const DLPackExchangeAPI* apis[2] = {};
  for (int i = 0; i < 2; ++i)
    if (known[i] == type) return apis[i];
  static PyObject* attribute = PyUnicode_InternFromString("__dlpack_c_exchange_api__");
  const DLPackExchangeAPI* api = nullptr;
  if (PyObject* capsule = PyObject_GetAttr(reinterpret_cast<PyObject*>(type), attribute)) {
    api = static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
    Py_DECREF(capsule);
    if (api && (api->header.version.major != 1 || !api->dltensor_from_py_object_no_sync)) api = nullptr;
  }
  PyErr_Clear();
  if (!api) return nullptr;
  Py_INCREF(type);
  static int next = 0;
  if (known[next]) Py_DECREF(known[next]);
  known[next] = type;
  apis[next] = api;
  next ^= 1;
  return api;
}

bool flag_is_set(PyObject* object, PyObject* method) {
  PyObject* result = PyObject_CallMethodNoArgs(object, method);
  if (!result) {
    PyErr_Clear();
    return false;
  }
  const bool set = result == Py_True;
  Py_DECREF(result);
  return set;
}

struct DLManagedTensorLegacy {  // the unversioned capsule of DLPack before 1.0
  DLTensor dl_tensor;
  void* manager_ctx;
  void (*deleter)(DLManagedTensorLegacy*);
};

}  // namespace

void Tensor::load(PyObject* object) {
  if (const DLPackExchangeAPI* api = exchange_api(Py_TYPE(object)))
    load_fast(object, api);
  else
    load_capsule(object);
  dtype_ = dtype_of(t_.dtype);
  if (!t_.data && numel() > 0)
    throw py::value_error(std::string(Py_TYPE(object)->tp_name) +
                          " has no storage (a fake, meta or functional tensor cannot enter a kernel)");
}

void Tensor::load_fast(PyObject* object, const DLPackExchangeAPI* api) {
  if (api->dltensor_from_py_object_no_sync(object, &t_)) throw py::error_already_set();
  api_ = api;
  // The C table ignores lazy flags. Conjugation needs a complex dtype, which every check refuses; the negative
  // bit also exists on real tensors (imag of a conjugate) and would silently flip signs.
  static PyObject* is_neg = PyUnicode_InternFromString("is_neg");
  if ((t_.dtype.code == kDLFloat || t_.dtype.code == kDLComplex) && flag_is_set(object, is_neg))
    throw py::value_error("tensor has its negative bit set: call .resolve_neg() first");
  if (t_.dtype.code == kDLComplex) throw py::type_error("complex tensors are not supported");
}

void Tensor::load_capsule(PyObject* object) {
  py::object source = py::reinterpret_borrow<py::object>(object);
  if (!py::hasattr(source, "__dlpack__"))
    throw py::type_error(std::string("expected a tensor (torch, numpy, or anything with __dlpack__), got ") +
                         Py_TYPE(object)->tp_name);
  if (py::hasattr(source, "is_neg") && flag_is_set(object, py::str("is_neg").ptr()))
    throw py::value_error("tensor has its negative bit set: call .resolve_neg() first");
  if (py::hasattr(source, "detach")) source = source.attr("detach")();  // __dlpack__ refuses requires_grad
  py::object capsule;
  try {
    capsule = source.attr("__dlpack__")(py::arg("max_version") = py::make_tuple(1, 0));
  } catch (py::error_already_set& e) {
    if (!e.matches(PyExc_TypeError)) throw;
    capsule = source.attr("__dlpack__")();
  }
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    auto* m = static_cast<DLManagedTensorVersioned*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
    if (m->version.major != 1) throw py::value_error("unsupported DLPack version " + std::to_string(m->version.major));
    PyCapsule_SetName(capsule.ptr(), "used_dltensor_versioned");
    t_ = m->dl_tensor;
    read_only_ = (m->flags & VK_DLPACK_FLAG_READ_ONLY) != 0;
    owner_ = m;
    release_ = [](void* p) {
      auto* managed = static_cast<DLManagedTensorVersioned*>(p);
      if (managed->deleter) managed->deleter(managed);
    };
  } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
    auto* m = static_cast<DLManagedTensorLegacy*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
    PyCapsule_SetName(capsule.ptr(), "used_dltensor");
    t_ = m->dl_tensor;
    owner_ = m;
    release_ = [](void* p) {
      auto* managed = static_cast<DLManagedTensorLegacy*>(p);
      if (managed->deleter) managed->deleter(managed);
    };
  } else {
    throw py::type_error("__dlpack__ of " + std::string(Py_TYPE(object)->tp_name) + " returned no DLPack capsule");
  }
}

}  // namespace vk
