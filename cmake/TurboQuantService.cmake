# What the server needs beside the store: gRPC, protobuf, prometheus-cpp.

# Sets `result` to TRUE when all of it is there.
function(tq_service_available result)
  find_package(gRPC CONFIG QUIET)
  find_package(Protobuf QUIET)
  find_path(PROMETHEUS_CPP_INCLUDE_DIR prometheus/exposer.h)
  find_library(PROMETHEUS_CPP_PULL_LIBRARY prometheus-cpp-pull)
  find_library(PROMETHEUS_CPP_CORE_LIBRARY prometheus-cpp-core)
  if(gRPC_FOUND AND Protobuf_FOUND AND PROMETHEUS_CPP_INCLUDE_DIR AND PROMETHEUS_CPP_PULL_LIBRARY
     AND PROMETHEUS_CPP_CORE_LIBRARY)
    set(${result} TRUE PARENT_SCOPE)
  else()
    set(${result} FALSE PARENT_SCOPE)
  endif()
endfunction()

# A macro, since the packages' targets are to be seen by the caller.
macro(tq_find_service)
  if(NOT TARGET gRPC::grpc++)  # Debian's package cannot be looked for twice
    find_package(gRPC CONFIG REQUIRED)
  endif()
  find_package(Protobuf REQUIRED)
  # prometheus-cpp's own package asks for CURL, which nothing here needs.
  find_path(PROMETHEUS_CPP_INCLUDE_DIR prometheus/exposer.h REQUIRED)
  find_library(PROMETHEUS_CPP_PULL_LIBRARY prometheus-cpp-pull REQUIRED)
  find_library(PROMETHEUS_CPP_CORE_LIBRARY prometheus-cpp-core REQUIRED)
  if(NOT TARGET turboquant_prometheus)
    add_library(turboquant_prometheus INTERFACE)
    target_include_directories(turboquant_prometheus SYSTEM INTERFACE ${PROMETHEUS_CPP_INCLUDE_DIR})
    target_link_libraries(turboquant_prometheus
      INTERFACE ${PROMETHEUS_CPP_PULL_LIBRARY} ${PROMETHEUS_CPP_CORE_LIBRARY})
  endif()
endmacro()
