// Unicode's normalization form C, as the `tokenizers` package has it.
#pragma once

#include <string>
#include <string_view>

namespace lockstep {

// `text` itself where it is in NFC already, else what is written to `storage`. REQUIRES: `text` is UTF-8, below 1 GiB.
std::string_view Nfc(std::string_view text, std::string& storage);

}  // namespace lockstep
