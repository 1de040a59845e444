# Installed, versioned package: find_package(turboquant) gives turboquant::{kernels,quantizer} and,
# when FAISS is built in, turboquant::index, with RocksDB turboquant::storage, and with gRPC
# turboquant::client; with CUDA turboquant::{kernels_cuda,index_cuda}. tests/install holds it.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/turboquant)
get_property(libraries GLOBAL PROPERTY TURBOQUANT_LIBRARIES)

install(TARGETS ${libraries} EXPORT turboquantTargets
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(EXPORT turboquantTargets NAMESPACE turboquant:: DESTINATION ${package_dir})
set(without_faiss "")
if(NOT TURBOQUANT_BUILD_INDEX)
  set(without_faiss PATTERN "index_*" EXCLUDE PATTERN "gpu_index_*" EXCLUDE PATTERN "faiss_*" EXCLUDE)
endif()
set(without_storage "")
if(NOT TURBOQUANT_BUILD_STORAGE)
  set(without_storage PATTERN "store.h" EXCLUDE PATTERN "record.h" EXCLUDE PATTERN "filter.h" EXCLUDE
                      PATTERN "faiss_store.h" EXCLUDE PATTERN "collection_loader.h" EXCLUDE)
endif()
set(without_service "")
if(NOT TURBOQUANT_BUILD_SERVICE)
  set(without_service PATTERN "client.h" EXCLUDE)
endif()
set(without_kvcache "")
if(NOT TURBOQUANT_BUILD_KVCACHE)
  set(without_kvcache PATTERN "kvcache*" EXCLUDE)
endif()
set(without_cuda "")
if(NOT TURBOQUANT_BUILD_CUDA)
  set(without_cuda PATTERN "gpu_*" EXCLUDE)
endif()
install(DIRECTORY include/turboquant DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
        FILES_MATCHING PATTERN "*.h" ${without_faiss} ${without_storage} ${without_service}
        ${without_kvcache} ${without_cuda})
install(FILES LICENSE NOTICE DESTINATION ${CMAKE_INSTALL_DOCDIR})

configure_package_config_file(cmake/turboquantConfig.cmake.in turboquantConfig.cmake
                              INSTALL_DESTINATION ${package_dir})
# Before 1.0 a new minor version may break its users.
write_basic_package_version_file(turboquantConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/turboquantConfig.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/turboquantConfigVersion.cmake
        DESTINATION ${package_dir})
