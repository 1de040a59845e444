#include "tools/commands/convert.h"

#include <algorithm>
#include <vector>

#include "tools/io/errors.h"
#include "tools/io/interrupt.h"
#include "tools/io/vector_writer.h"

namespace turboquant::tools {
namespace {

constexpr std::size_t kBatchBytes = std::size_t{4} << 20;

io::Element target_element(const ConvertOptions& options, io::Format format, io::Element source) {
  const io::Element element = io::element_for(format, options.element.value_or(source));
  if (options.element && element != *options.element) {
    throw io::UsageError("--dtype " + io::element_name(*options.element) + ": " +
                         io::format_name(format) + " holds " + io::element_name(element));
  }
  if (io::is_float(source) && !io::is_float(element)) {
    throw io::UsageError(options.output + ": " + io::element_name(element) +
                         " cannot hold the floats of " + options.input);
  }
  return element;
}

}  // namespace

std::uint64_t convert_vectors(const ConvertOptions& options, Progress& progress) {
  const auto reader = io::open_vectors(options.input, options.format, options.dataset);
  const io::Format format =
      options.output_format ? *options.output_format : io::guess_format(options.output);
  const io::Element element = target_element(options, format, reader->element());
  if (options.first > reader->rows()) {
    throw io::UsageError("--first " + std::to_string(options.first) + ": " + reader->name() +
                         " has " + std::to_string(reader->rows()) + " rows");
  }
  const std::uint64_t available = reader->rows() - options.first;
  const std::uint64_t rows = std::min(options.rows.value_or(available), available);
  const std::size_t d = reader->dimension();
  io::VectorWriter writer(options.output, format, element, rows, d);

  const std::size_t batch = std::max<std::size_t>(1, kBatchBytes / (d * sizeof(float)));
  std::vector<float> floats(io::is_float(element) ? batch * d : 0);
  std::vector<std::int64_t> integers(io::is_float(element) ? 0 : batch * d);
  progress.begin("convert", rows);
  for (std::uint64_t done = 0; done < rows;) {
    io::check_interrupt();
    const auto n = static_cast<std::size_t>(std::min<std::uint64_t>(batch, rows - done));
    if (io::is_float(element)) {
      reader->read(options.first + done, n, floats.data());
      writer.append(floats.data(), n);
    } else {
      reader->read_integers(options.first + done, n, integers.data());
      writer.append(integers.data(), n);
    }
    done += n;
    progress.update(done);
  }
  writer.commit();
  progress.end();
  return rows;
}

}  // namespace turboquant::tools
