# cmake -D BUILD_DIR=... -P consumer_test.cmake: installs BUILD_DIR under WORK_DIR, then configures,
# builds and runs EXAMPLE_DIR as a project of its own that finds the package there.
cmake_minimum_required(VERSION 3.25)

function(run what)
  message(STATUS "${what}")
  execute_process(COMMAND ${ARGN} WORKING_DIRECTORY ${WORK_DIR} RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "${what}: exit status ${status}")
  endif()
endfunction()

set(prefix ${WORK_DIR}/prefix)
file(REMOVE_RECURSE ${WORK_DIR})
file(MAKE_DIRECTORY ${WORK_DIR})

run("install" ${CMAKE_COMMAND} --install ${BUILD_DIR} --prefix ${prefix})
run("configure" ${CMAKE_COMMAND} -S ${EXAMPLE_DIR} -B ${WORK_DIR}/build -G ${GENERATOR}
    -D CMAKE_BUILD_TYPE=Release -D CMAKE_CXX_COMPILER=${COMPILER}
    -D CMAKE_PREFIX_PATH=${prefix})
run("build" ${CMAKE_COMMAND} --build ${WORK_DIR}/build)

# The package found must be this one, not another that the machine happens to have.
file(STRINGS ${WORK_DIR}/build/CMakeCache.txt found REGEX "^turboquant_DIR:")
if(NOT found MATCHES "=${prefix}/")
  message(FATAL_ERROR "another package was used: ${found}")
endif()

file(GLOB programs ${WORK_DIR}/build/*_example)
list(LENGTH programs count)
if(NOT count EQUAL 1)
  message(FATAL_ERROR "expected one program, found: ${programs}")
endif()
run("run" ${programs})

# A version that this one cannot stand in for is refused.
find_package(turboquant 99 CONFIG QUIET PATHS ${prefix} NO_DEFAULT_PATH)
if(turboquant_FOUND OR NOT turboquant_CONSIDERED_VERSIONS STREQUAL VERSION)
  message(FATAL_ERROR "version 99 was asked for and '${turboquant_CONSIDERED_VERSIONS}' accepted")
endif()
