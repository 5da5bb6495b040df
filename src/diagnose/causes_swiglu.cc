// SwiGLU: silu(gate) * up.
#include "diagnose/causes.h"

namespace lockstep {

void ProposeForSwiGlu(const Case& fault, std::vector<Hypothesis>* out) {
  const auto activation = [](Activation a) { return [a](OpCall& c) { c.swiglu.activation = a; }; };
  const Row rows[] = {
      {"swiglu-gelu", "applies gelu instead of silu", activation(Activation::kGelu)},
      {"swiglu-gelu-tanh", "applies gelu (tanh) instead of silu", activation(Activation::kGeluTanh)},
      {"swiglu-quick-gelu", "applies x * sigmoid(1.702 x) instead of silu", activation(Activation::kQuickGelu)},
      {"swiglu-relu", "applies relu instead of silu", activation(Activation::kRelu)},
      {"swiglu-sigmoid", "applies sigmoid instead of silu", activation(Activation::kSigmoid)},
      {"swiglu-no-activation", "multiplies gate by up without an activation", activation(Activation::kIdentity)},
      {"swiglu-swapped", "applies silu to up instead of gate", [](OpCall& c) { c.swiglu.swapped = true; }},
      {"swiglu-no-product", "gives silu(gate) without multiplying by up", [](OpCall& c) { c.swiglu.multiply = false; }},
      {"swiglu-no-product", "gives silu(up) alone",
       [](OpCall& c) { c.swiglu.multiply = false, c.swiglu.swapped = true; }},
      {"swiglu-sum", "adds up instead of multiplying by it",
       [](OpCall& c) { c.swiglu.multiply = false, c.swiglu.add = true; }},
      {"swiglu-no-product", "multiplies silu(gate) by gate instead of up",
       [](OpCall& c) { c.inputs[1] = c.inputs[0]; }},
      {"swiglu-swapped", "reads up as gate, too", [](OpCall& c) { c.inputs[0] = c.inputs[1]; }},
  };
  AddRows(fault, rows, out);
  for (const size_t input : {0, 1}) {
    AddRow(fault,
           {"op-skipped", std::string("gives ") + (input == 0 ? "gate" : "up") + " as it is",
            [input](OpCall& c) {
              c.op = Op::kCopy;
              c.inputs = {c.inputs[input]};
            }},
           out);
  }
  AddWrongInputs(fault, 0, "swiglu-wrong-input", {}, out);
  AddWrongInputs(fault, 1, "swiglu-wrong-input", {}, out);
}

}  // namespace lockstep
