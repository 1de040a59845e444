// Client::bulk_add().
#pragma once

#include <memory>
#include <string>

#include "service/client_impl.h"

namespace turboquant::service {

std::unique_ptr<BulkStream> make_bulk_stream(ClientImpl& client, const std::string& collection,
                                             const BulkOptions& options);

}  // namespace turboquant::service
