// What the page of a comparison is told beside its result.
#pragma once

#include <string>

#include "lockstep/report.h"

namespace lockstep::cli {

// This program's command line, and the texts of tokens by the tokenizer of `model`, where it can be loaded.
HtmlOptions PageOptions(const std::string& model);

}  // namespace lockstep::cli
