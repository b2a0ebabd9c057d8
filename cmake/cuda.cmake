# Finds nvcc (a toolkit, or the PyPI wheels of the cuda-toolchain extra) and adds every *_cuda.cu to _C.
set(VK_CUDA OFF)
if(VIDKERNELS_CUDA STREQUAL "OFF")
  return()
endif()

# AUTO says why there will be no CUDA kernels and goes on; ON stops and says what to install.
macro(vk_without_cuda reason)
  if(VIDKERNELS_CUDA STREQUAL "ON")
    message(FATAL_ERROR
      "VIDKERNELS_CUDA=ON, but ${reason}.\n"
      "Install a CUDA toolkit >= 12.8 and set CUDA_HOME, or let pip fetch the compiler:\n"
      "  VIDKERNELS_CUDA_TOOLCHAIN=pypi VIDKERNELS_CUDA=ON pip install vidkernels\n"
      "or build without CUDA kernels:\n"
      "  VIDKERNELS_CUDA=OFF pip install vidkernels")
  endif()
  message(STATUS "vidkernels: CPU kernels only, because ${reason} (VIDKERNELS_CUDA=ON makes this an error)")
  return()
endmacro()

if(NOT CMAKE_CUDA_COMPILER AND (NOT DEFINED ENV{CUDACXX} OR "$ENV{VIDKERNELS_CUDA_TOOLCHAIN}" STREQUAL "pypi"))
  # Build isolation puts the wheels where this Python finds them. Asked for by name, they win over a toolkit on PATH.
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c "import nvidia.cu13 as p; print(list(p.__path__)[0])"
    OUTPUT_VARIABLE _pypi_cuda OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if("$ENV{VIDKERNELS_CUDA_TOOLCHAIN}" STREQUAL "pypi")
    if(NOT _pypi_cuda)
      vk_without_cuda("VIDKERNELS_CUDA_TOOLCHAIN=pypi found no nvidia-cuda-nvcc wheel in the build environment")
    endif()
    find_program(VK_NVCC nvcc PATHS ${_pypi_cuda}/bin NO_DEFAULT_PATH)
  endif()
  find_program(VK_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda ${_pypi_cuda} PATH_SUFFIXES bin)
  if(VK_NVCC)
    set(CMAKE_CUDA_COMPILER ${VK_NVCC})
  endif()
endif()
if(DEFINED ENV{CUDACXX} AND NOT CMAKE_CUDA_COMPILER)
  set(_nvcc $ENV{CUDACXX})
else()
  set(_nvcc ${CMAKE_CUDA_COMPILER})
endif()
if(NOT _nvcc)
  vk_without_cuda("no CUDA compiler (nvcc) was found")
endif()
execute_process(COMMAND ${_nvcc} --version OUTPUT_VARIABLE _nvcc_says ERROR_QUIET RESULT_VARIABLE _nvcc_failed)
if(NOT _nvcc_failed EQUAL 0)
  vk_without_cuda("the CUDA compiler ${_nvcc} does not start")
endif()
string(REGEX MATCH "release ([0-9.]+)" _nvcc_release "${_nvcc_says}")
if(CMAKE_MATCH_1 VERSION_LESS 12.8 AND VIDKERNELS_CUDA_ARCHS MATCHES "1[0-9][0-9]")
  vk_without_cuda("nvcc ${CMAKE_MATCH_1} is too old for the architectures ${VIDKERNELS_CUDA_ARCHS}")
endif()

set(CMAKE_CUDA_ARCHITECTURES ${VIDKERNELS_CUDA_ARCHS})
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  vk_without_cuda("${_nvcc} cannot compile a test program with the host compiler ${CMAKE_CXX_COMPILER}")
endif()
enable_language(CUDA)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc has C++20
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
endif()
# Not find_package(CUDAToolkit): it insists on libcudart.so, which the PyPI wheels lack and nothing here links.

foreach(op ${VK_OPS})
  if(EXISTS ${PROJECT_SOURCE_DIR}/csrc/ops/${op}/${op}_cuda.cu)
    target_sources(_C PRIVATE csrc/ops/${op}/${op}_cuda.cu)
  endif()
endforeach()
string(REPLACE ";" " " _archs "${VIDKERNELS_CUDA_ARCHS}")
target_compile_definitions(_C PRIVATE VK_BUILD_CUDA VK_CUDA_VERSION="${CMAKE_CUDA_COMPILER_VERSION}"
                           VK_CUDA_ARCHS="${_archs}")
target_compile_options(_C PRIVATE
  $<$<COMPILE_LANGUAGE:CUDA>:--threads=2 -Xfatbin=-compress-all --expt-relaxed-constexpr -Xptxas=-warn-spills -lineinfo>)
target_include_directories(_C SYSTEM PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
set_target_properties(_C PROPERTIES CUDA_ARCHITECTURES "${VIDKERNELS_CUDA_ARCHS}" CUDA_RUNTIME_LIBRARY Static
                      CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON)
set(VK_CUDA ON)
