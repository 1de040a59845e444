# Installed, versioned package: find_package(turboquant) gives turboquant::{kernels,quantizer,...}.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
