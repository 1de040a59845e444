#include "tests/proto/compatibility.h"

#include <map>

namespace turboquant::proto_test {
namespace {

using google::protobuf::DescriptorProto;
using google::protobuf::EnumDescriptorProto;
using google::protobuf::FieldDescriptorProto;
using google::protobuf::FileDescriptorSet;
using google::protobuf::MethodDescriptorProto;
using google::protobuf::ServiceDescriptorProto;

// Everything of a set, by full name.
struct Definitions {
  std::map<std::string, const DescriptorProto*> messages;
  std::map<std::string, const EnumDescriptorProto*> enums;
  std::map<std::string, const ServiceDescriptorProto*> services;

  explicit Definitions(const FileDescriptorSet& set) {
    for (const auto& file : set.file()) {
      for (const auto& message : file.message_type()) add(file.package(), message);
      for (const auto& one : file.enum_type()) enums[file.package() + "." + one.name()] = &one;
      for (const auto& one : file.service()) services[file.package() + "." + one.name()] = &one;
    }
  }

  void add(const std::string& scope, const DescriptorProto& message) {
    const std::string name = scope + "." + message.name();
    messages[name] = &message;
    for (const auto& nested : message.nested_type()) add(name, nested);
    for (const auto& one : message.enum_type()) enums[name + "." + one.name()] = &one;
  }
};

template <class Proto>
bool reserved(const Proto& proto, const std::string& name, int number, int past_end) {
  bool by_name = false;
  for (const std::string& one : proto.reserved_name()) by_name = by_name || one == name;
  bool by_number = false;
  for (const auto& range : proto.reserved_range()) {
    by_number = by_number || (range.start() <= number && number < range.end() + past_end);
  }
  return by_name && by_number;
}

std::string oneof_of(const DescriptorProto& message, const FieldDescriptorProto& field) {
  if (!field.has_oneof_index() || field.proto3_optional()) return {};
  return message.oneof_decl(field.oneof_index()).name();
}

class Comparison {
 public:
  Comparison(const FileDescriptorSet& published, const FileDescriptorSet& current)
      : published_(published), current_(current) {
    compare(published_.messages, current_.messages,
            [this](auto& name, auto& a, auto& b) { message(name, a, b); });
    compare(published_.enums, current_.enums,
            [this](auto& name, auto& a, auto& b) { enumeration(name, a, b); });
    compare(published_.services, current_.services,
            [this](auto& name, auto& a, auto& b) { service(name, a, b); });
  }

  std::vector<std::string> problems;

 private:
  template <class Map, class Function>
  void compare(const Map& published, const Map& current, Function function) {
    for (const auto& [name, before] : published) {
      const auto found = current.find(name);
      if (found == current.end()) {
        problems.push_back(name + " is gone");
      } else {
        function(name, *before, *found->second);
      }
    }
  }

  void message(const std::string& name, const DescriptorProto& a, const DescriptorProto& b) {
    std::map<int, const FieldDescriptorProto*> fields;
    for (const auto& field : b.field()) fields[field.number()] = &field;
    for (const auto& before : a.field()) {
      const std::string field = name + "." + before.name();
      const auto found = fields.find(before.number());
      if (found == fields.end()) {
        if (!reserved(b, before.name(), before.number(), 0)) {
          problems.push_back(field + " is gone and its number and name are not reserved");
        }
        continue;
      }
      const FieldDescriptorProto& now = *found->second;
      if (before.name() != now.name()) problems.push_back(field + " is now " + now.name());
      if (before.type() != now.type() || before.type_name() != now.type_name() ||
          before.label() != now.label() || before.proto3_optional() != now.proto3_optional() ||
          oneof_of(a, before) != oneof_of(b, now)) {
        problems.push_back(field + " has another type");
      }
    }
  }

  void enumeration(const std::string& name, const EnumDescriptorProto& a,
                   const EnumDescriptorProto& b) {
    std::map<int, std::string> values;
    for (const auto& value : b.value()) values[value.number()] = value.name();
    for (const auto& before : a.value()) {
      const auto found = values.find(before.number());
      if (found == values.end()) {
        if (!reserved(b, before.name(), before.number(), 1)) {
          problems.push_back(name + "." + before.name() + " is gone and not reserved");
        }
      } else if (found->second != before.name()) {
        problems.push_back(name + "." + before.name() + " is now " + found->second);
      }
    }
  }

  void service(const std::string& name, const ServiceDescriptorProto& a,
               const ServiceDescriptorProto& b) {
    std::map<std::string, const MethodDescriptorProto*> methods;
    for (const auto& method : b.method()) methods[method.name()] = &method;
    for (const auto& before : a.method()) {
      const auto found = methods.find(before.name());
      if (found == methods.end()) {
        problems.push_back(name + "." + before.name() + " is gone");
      } else if (before.input_type() != found->second->input_type() ||
                 before.output_type() != found->second->output_type() ||
                 before.client_streaming() != found->second->client_streaming() ||
                 before.server_streaming() != found->second->server_streaming()) {
        problems.push_back(name + "." + before.name() + " has another signature");
      }
    }
  }

  const Definitions published_;
  const Definitions current_;
};

}  // namespace

std::vector<std::string> incompatible_changes(const FileDescriptorSet& published,
                                              const FileDescriptorSet& current) {
  return Comparison(published, current).problems;
}

}  // namespace turboquant::proto_test
