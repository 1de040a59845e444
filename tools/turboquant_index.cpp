// turboquant-index: see commands/cli.h.
#include <iostream>

#include "tools/commands/cli.h"
#include "tools/io/interrupt.h"

int main(int argc, char** argv) {
  turboquant::io::install_interrupt_handlers();
  return turboquant::tools::run_turboquant_index(argc, argv, std::cout, std::cerr);
}
