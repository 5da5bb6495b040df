#include <memory>

#include "cli/command.h"
#include "cli/compare_output.h"

namespace lockstep::cli {

void AddCompare(CLI::App& app, int& exit_code) {
  struct Options : ComparisonOptions {
    std::string reference, candidate, model;
    std::vector<std::string> more_reference, more_candidate;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("compare", "Compare two traces: REFERENCE CANDIDATE");
  command->add_option("reference", options->reference, "Trace of the reference")->required();
  command->add_option("candidate", options->candidate, "Trace of the candidate")->required();
  command
      ->add_option("--more-reference", options->more_reference,
                   "A further trace of the reference: a batch run in parts, or another rank")
      ->allow_extra_args(false);
  command->add_option("--more-candidate", options->more_candidate, "A further trace of the candidate")
      ->allow_extra_args(false);
  command->add_option(
      "--model", options->model,
      "The checkpoint: recompute every op of both sides in float64, and say which one is wrong and why");
  command->add_option("--points", options->points, "Compare only these points: attn_*,logits");
  command->add_option("--layers", options->layers, "Compare only these layers: 0,2-4");
  command->add_option("--pair", options->pairs, "Pair these sequences: REFERENCE:CANDIDATE; repeat it")
      ->allow_extra_args(false);
  options->AddTo(*command);
  command->callback([options, &exit_code] {
    std::vector<std::string> reference = {options->reference};
    std::vector<std::string> candidate = {options->candidate};
    reference.insert(reference.end(), options->more_reference.begin(), options->more_reference.end());
    candidate.insert(candidate.end(), options->more_candidate.begin(), options->more_candidate.end());
    Judged judged{Compare(reference, candidate, OptionsOf(*options))};
    if (!options->model.empty()) {
      judged.reference = DiagnoseSide(Side::kReference, reference, options->model, *options);
      judged.candidate = DiagnoseSide(Side::kCandidate, candidate, options->model, *options);
    }
    exit_code = Print(judged, *options, options->model);
  });
}

}  // namespace lockstep::cli
