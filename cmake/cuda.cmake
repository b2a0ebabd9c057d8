# Finds nvcc (a toolkit, or the PyPI wheels of the cuda-toolchain extra) and adds every *_cuda.cu to _C.
set(VK_CUDA OFF)
if(VIDKERNELS_CUDA STREQUAL "OFF")
  return()
endif()

if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c "import nvidia.cu13 as p; print(list(p.__path__)[0])"
    OUTPUT_VARIABLE _pypi_cuda OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  # The wheels were asked for by name (VIDKERNELS_CUDA_TOOLCHAIN=pypi), so they win over a toolkit on PATH.
  if("$ENV{VIDKERNELS_CUDA_TOOLCHAIN}" STREQUAL "pypi" AND _pypi_cuda)
    find_program(VK_NVCC nvcc PATHS ${_pypi_cuda}/bin NO_DEFAULT_PATH)
  endif()
  find_program(VK_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda ${_pypi_cuda} PATH_SUFFIXES bin)
  if(VK_NVCC)
    set(CMAKE_CUDA_COMPILER ${VK_NVCC})
  endif()
endif()
include(CheckLanguage)
check_language(CUDA)

if(NOT CMAKE_CUDA_COMPILER)
  if(VIDKERNELS_CUDA STREQUAL "ON")
    message(FATAL_ERROR
      "VIDKERNELS_CUDA=ON, but no CUDA compiler (nvcc) was found.\n"
      "Install a CUDA toolkit >= 12.8 and set CUDA_HOME, or let pip fetch the compiler:\n"
      "  VIDKERNELS_CUDA_TOOLCHAIN=pypi VIDKERNELS_CUDA=ON pip install vidkernels\n"
      "or build without CUDA kernels: VIDKERNELS_CUDA=OFF pip install vidkernels")
  endif()
  message(STATUS "vidkernels: no nvcc found, building CPU kernels only (VIDKERNELS_CUDA=ON would make this an error)")
  return()
endif()

set(CMAKE_CUDA_ARCHITECTURES ${VIDKERNELS_CUDA_ARCHS})
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
  message(FATAL_ERROR "vidkernels: nvcc ${CMAKE_CUDA_COMPILER_VERSION} is too old for sm_100/sm_120; 12.8 or newer is needed "
                      "(or set VIDKERNELS_CUDA_ARCHS to what your card has, e.g. 90-real)")
endif()
find_package(CUDAToolkit REQUIRED)

foreach(op ${VK_OPS})
  if(EXISTS ${PROJECT_SOURCE_DIR}/csrc/ops/${op}/${op}_cuda.cu)
    target_sources(_C PRIVATE csrc/ops/${op}/${op}_cuda.cu)
  endif()
endforeach()
target_compile_definitions(_C PRIVATE VK_BUILD_CUDA VK_CUDA_VERSION="${CMAKE_CUDA_COMPILER_VERSION}"
                           VK_CUDA_ARCHS="${VIDKERNELS_CUDA_ARCHS}")
target_compile_options(_C PRIVATE
  $<$<COMPILE_LANGUAGE:CUDA>:--threads=2 -Xfatbin=-compress-all --expt-relaxed-constexpr -Xptxas=-warn-spills -lineinfo>)
target_link_libraries(_C PRIVATE CUDA::cudart_static)
set(VK_CUDA ON)
