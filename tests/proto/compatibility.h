// What would break programs that were built with a published version of the API.
#pragma once

#include <google/protobuf/descriptor.pb.h>

#include <string>
#include <vector>

namespace turboquant::proto_test {

/// One line for each incompatible change: something published that is gone or different. A field
/// or enum value may go when its number and name are reserved.
std::vector<std::string> incompatible_changes(const google::protobuf::FileDescriptorSet& published,
                                              const google::protobuf::FileDescriptorSet& current);

}  // namespace turboquant::proto_test
