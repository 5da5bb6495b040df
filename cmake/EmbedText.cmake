# cmake -DOUT=file.cc -DDIR=folder -P EmbedText.cmake: template.html, style.css and the scripts of the folder, these one
# after the other, as C++ strings (src/report/html/assets.h), and the hashes by which the page's Content-Security-Policy
# allows style and script.
set(scripts base.js model.js overview.js map.js growth.js tokens.js tensor.js app.js)
set(limit 60000)  # characters of one literal, which compilers bound

# The text as literals that are joined; REQUIRES: it does not contain `)~~~"`.
function(literal text out)
  string(LENGTH "${text}" length)
  set(parts "")
  set(begin 0)
  while(begin LESS length)
    string(SUBSTRING "${text}" ${begin} ${limit} part)
    string(APPEND parts "R\"~~~(${part})~~~\"\n")
    math(EXPR begin "${begin} + ${limit}")
  endwhile()
  set(${out} "${parts}" PARENT_SCOPE)
endfunction()

# 64 hexadecimal digits as base64: groups of three bytes, the last of two.
function(base64 hex out)
  set(digits ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/)
  set(text "")
  string(APPEND hex 00)
  foreach(begin RANGE 0 60 6)
    string(SUBSTRING ${hex} ${begin} 6 group)
    math(EXPR bits "0x${group}")
    foreach(shift 18 12 6 0)
      math(EXPR digit "(${bits} >> ${shift}) & 63")
      string(SUBSTRING ${digits} ${digit} 1 character)
      string(APPEND text ${character})
    endforeach()
  endforeach()
  string(SUBSTRING ${text} 0 43 text)
  set(${out} "${text}=" PARENT_SCOPE)
endfunction()

# Adds k<name> and k<name>Hash to `code`.
function(add_asset name text)
  literal("${text}" literals)
  string(SHA256 hex "${text}")
  base64(${hex} hash)
  string(APPEND code "const std::string_view k${name} =\n${literals};\n"
    "const std::string_view k${name}Hash = \"sha256-${hash}\";\n\n")
  set(code "${code}" PARENT_SCOPE)
endfunction()

set(code "// Made by cmake/EmbedText.cmake.\n#include \"report/html/assets.h\"\n\nnamespace lockstep {\n\n")
file(READ "${DIR}/template.html" template)
file(READ "${DIR}/style.css" style)
set(script "")
foreach(file ${scripts})
  file(READ "${DIR}/${file}" text)
  string(APPEND script "${text}")
endforeach()
add_asset(Template "${template}")
add_asset(Style "${style}")
add_asset(Script "${script}")
file(WRITE "${OUT}" "${code}}  // namespace lockstep\n")
