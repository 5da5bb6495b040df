// The verdict, what was found, and what was compared.

const badge = (state, kind) => el("span", { class: `badge ${kind ?? kindOf(state)}` }, state);
function kindOf(state) {
  if (/^(faulty|different|significant)/i.test(state)) return "bad";
  if (/^(suspect|acceptable|near tie)/i.test(state)) return "warn";
  return /^(clean|same|excellent|good|equal)/i.test(state) ? "good" : "plain";
}
const openButton = (name, text) =>
  el("button", { class: "link name", type: "button", title: name, onclick: () => show({ point: name }) },
    text ?? shortened(name));

function section(id, title, ...children) {
  return el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title` }, title), ...children);
}

// rows: [[key, value…], …]; rows without a value are left out.
function facts(rows, titles) {
  return el("table", { class: "facts" },
    titles && el("thead", {}, el("tr", {}, titles.map((title) => el("th", { scope: "col" }, title)))),
    el("tbody", {}, rows.filter((row) => row && row.slice(1).some((x) => x !== null && x !== undefined && x !== "")).map(
      ([key, ...cells]) => el("tr", {}, el("th", { scope: "row" }, key), cells.map((cell) => el("td", {}, cell ?? "–"))))));
}

// ---- the verdict

function tile(label, text, note, kind) {
  return el("div", { class: `tile ${kind ?? ""}` }, el("dt", {}, label), el("dd", {}, text),
    note && el("dd", { class: "note" }, note));
}

function replayTile(side) {
  const counts = replays[side]?.counts;
  if (!counts) return null;
  const judged = counts.clean + counts.suspect + counts.faulty;
  const notes = [`${counts.clean} clean`, counts.suspect && `${counts.suspect} suspect`,
    counts.not_observable && `${counts.not_observable} not observable`];
  return tile(compares ? `Ops of the ${side}` : "Ops", counts.faulty ? `${counts.faulty} faulty` : `${judged} judged`,
    notes.filter(Boolean).join(", "), counts.faulty ? "bad" : "good");
}

function compareTiles() {
  const tokens = report.pairs.reduce((sum, pair) => sum + pair.tokens, 0);
  const counts = report.counts;
  const classes = [["EXCELLENT", "excellent"], ["GOOD", "good"], ["ACCEPTABLE", "acceptable"],
    ["SIGNIFICANT DIFF", "significant"]].filter(([key]) => counts[key]).map(([key, word]) => `${counts[key]} ${word}`);
  const next = report.next_tokens;
  return [
    tile("Compared", count(report.points.length, "point"),
      `${count(tokens, "token")} in ${count(report.pairs.length, "sequence")}`),
    tile("Differences", counts.bit_identical === report.points.length ? "none" : classes.pop() ?? "none",
      classes.reverse().join(", "), counts["SIGNIFICANT DIFF"] ? "warn" : "good"),
    tile("Next tokens", next.compared ? `${next.agree} of ${next.compared} agree` : "none",
      report.tokens.rows.length ? `${count(report.tokens.rows.length, "row")} of logits, ${count(report.tokens.near_ties, "near tie")}`
        : null, next.agree === next.compared ? "good" : "warn"),
    tile("Complete", report.failures.length ? `no: ${count(report.failures.length, "failure")}` : "yes",
      `${count(report.weights_compared, "weight")} compared, ${report.weights.length || "none"} differ${report.weights.length === 1 ? "s" : ""}`,
      report.failures.length || report.weights.length ? "bad" : "good"),
  ];
}

function verdictHeader() {
  const bad = report.exit_code !== 0;
  const traces = compares ? SIDES.flatMap((side) => report[side].traces) : report.trace;
  return el("header", { class: `verdict ${bad ? "bad" : "good"}` },
    el("p", { class: "brand" }, el("b", {}, "Lockstep"), compares ? " comparison" : " replay",
      el("span", { class: "paths", title: traces.join("\n") }, traces.map((trace) => shortened(trace, 48)).join("  ⇄  "))),
    el("h1", {}, el("span", { class: "word" }, el("span", { "aria-hidden": "true" }, bad ? "✗ " : "✓ "),
      report.verdict.toUpperCase()), el("span", { class: "sentence" }, data.verdict)),
    el("dl", { class: "tiles" }, compares ? compareTiles() : null, SIDES.map(replayTile)));
}

// ---- findings

// One line from 0.1 to the largest error: what was found, what would be clean, what is left under each explanation.
function evidenceChart(finding) {
  const known = [["error", value(finding.error), "found"], ["clean", value(finding.clean), "clean below"],
    ["left", value(finding.explained), "left, explained"], ["next", value(finding.next?.explained), "next best leaves"]]
    .filter(([, v]) => v !== null && v > 0 && Number.isFinite(v));
  if (!known.some(([kind]) => kind === "error")) return null;
  const scale = scaleOf(known.map(([, v]) => v), 0.1, 100);
  const width = 520;
  const x = (v) => 14 + (width - 28) * Math.min(1, Math.max(0, along(v, scale)));
  const clean = known.find(([kind]) => kind === "clean")?.[1];
  return el("figure", { class: "evidence" },
    svg("svg", { viewBox: `0 0 ${width} 42`, role: "img", "aria-label": "Errors in noise units, on a logarithmic scale: " +
      known.map(([, v, text]) => `${text} ${noise(v)}`).join(", ") },
      svg("rect", { class: "track", x: 14, y: 12, width: width - 28, height: 10, rx: 5 }),
      clean && svg("rect", { class: "clean", x: 14, y: 12, width: x(clean) - 14, height: 10, rx: 5 }),
      decades(scale, 8).map((v) => svg("text", { x: x(v), y: 38, "text-anchor": "middle" }, power(v))),
      known.map(([kind, v]) => marker(kind, x(v), 17))),
    el("figcaption", {}, known.map(([kind, v, text]) => el("span", {},
      svg("svg", { viewBox: "0 0 14 14", width: 14, height: 14, "aria-hidden": "true" }, marker(kind, 7, 7)),
      `${text} `, el("b", {}, figure(v, noise)))), el("span", { class: "quiet" }, "in noise units")));
}
function marker(kind, x, y) {
  const shapes = {
    error: `M${x - 6} ${y - 6}l12 12m0 -12l-12 12`, clean: `M${x} ${y - 7}v14`,
    left: `M${x - 5} ${y}a5 5 0 1 0 10 0a5 5 0 1 0 -10 0`, next: `M${x} ${y - 6}l6 6l-6 6l-6 -6z`,
  };
  return svg("path", { class: `marker ${kind}`, d: shapes[kind] });
}

const causeOf = (finding) => finding.text ?? (finding.next
  ? `Unexplained. The best of the known mistakes, ${finding.next.text}, leaves ${noise(finding.next.explained)}.` : "Unexplained.");

function findingCard(finding) {
  const scope = finding.layers ? `layer${/^\d+$/.test(finding.layers) ? "" : "s"} ${finding.layers.replaceAll("-", "–")}` : "";
  const first = byName.get(finding.points[0])?.[finding.side];
  return el("article", { class: "finding" },
    el("h3", {}, compares && badge(finding.side, "plain"), el("code", { title: finding.point }, shortened(finding.point)),
      el("span", { class: "quiet" }, [scope, finding.op].filter(Boolean).join(" · "))),
    el("p", { class: "cause" }, causeOf(finding)),
    evidenceChart(finding),
    finding.patterns.length > 0 && el("ul", { class: "chips", "aria-label": "What the error looks like" },
      finding.patterns.map((pattern) => el("li", {}, pattern.text))),
    facts([
      finding.also.length > 0 && ["Fits as well", finding.also.map((other) => `${other.text} (${noise(other.explained)})`).join("; ")],
      finding.next && finding.text && ["Next best", `${finding.next.text} (${noise(finding.next.explained)})`],
      finding.advice && ["Usual fix", finding.advice],
      ["Worst at", place(finding.worst)],
      first?.max && ["Largest value", `${noise(first.max.error)} noise units at ${place(first.max)}`],
      first?.scale && ["Scale", `${num(first.scale.value)} ± ${num(first.scale.standard_error)}`],
      ["Points", el("span", { class: "names" }, finding.points.slice(0, 6).map((name) => openButton(name)),
        finding.points.length > 6 && el("span", { class: "quiet" }, `and ${finding.points.length - 6} more`))],
    ]));
}

function plainList(kind, items) {
  return items.length > 0 && el("div", { class: "failures" }, el("h3", {}, kind), el("ul", {}, items.slice(0, 200).map((item) =>
    el("li", {}, item.side && [badge(item.side, "plain"), " "], item.kind && [badge(item.kind, "bad"), " "],
      item.name && [byName.has(item.name) ? openButton(item.name) : el("code", { title: item.name }, shortened(item.name)), " "],
      item.text)), items.length > 200 && el("li", {}, `and ${items.length - 200} more, in the JSON report`)));
}

function failing() {
  const beyond = compares ? report.points.filter((point) => point.fails && !findings.some((f) => f.points.includes(point.name))) : [];
  return beyond.map((point) => ({ name: point.name, text: point.reasons.join("; ") ||
    (point.user_tolerance_missed ? "misses the tolerance that was asked for" : "faulty") }));
}

function findingsSection() {
  const weights = [...(report.weights ?? []).map((weight) => ({ ...weight, side: "" })),
    ...SIDES.flatMap((side) => (compares ? (replays[side]?.weights ?? []) : []).map((weight) => ({ ...weight, side })))];
  const layouts = SIDES.flatMap((side) => (replays[side]?.layouts ?? []).map((layout) => ({ text: layout.text, side })));
  const beyond = failing();
  const parts = [...findings.map(findingCard),
    plainList("Completeness", (report.failures ?? []).map((failure) => ({ ...failure, name: failure.point }))),
    plainList("Weights that differ", weights),
    plainList(beyond.length > 8 ? `Points beyond tolerance: the first 8 of ${beyond.length}` : "Points beyond tolerance", beyond.slice(0, 8)),
    plainList("Other layouts, which change nothing", layouts)].filter(Boolean);
  return section("findings", "Findings", parts.length ? el("div", { class: "cards" }, parts) : el("p", { class: "quiet" },
    replays.candidate || replays.reference ? "No faulty op, nothing missing, no weight that differs."
      : "Nothing beyond its bounds, nothing missing. No op was judged: give --model to have every op recomputed."));
}

// ---- what was compared

function sideFacts() {
  const both = (get) => SIDES.map((side) => get(report[side]));
  return facts([
    ["Traces", ...both((side) => side.traces.map((trace) => el("div", { class: "path" }, trace)))],
    ["Producer", ...both((side) => side.producer || "unnamed")],
    ["Model", ...both((side) => side.model_type || "unnamed")],
    ["Storage", ...both((side) => side.storage + (side.storage_declared ? "" : " (undeclared)"))],
    ["Steps", ...both((side) => side.steps)], ["Sequences", ...both((side) => side.sequences)],
    ["Tokens", ...both((side) => side.tokens)], ["Points", ...both((side) => side.points)],
    ["Written to the end", ...both((side) => (side.closed ? "yes" : "NO: not closed"))],
    ["Arithmetic", ...SIDES.map((side) => replays[side] && arithmeticText(replays[side].arithmetic))],
  ], ["", "Reference", "Candidate"]);
}
const arithmeticText = (a) => `${a.storage} storage, ${a.operands} operands, ${a.accumulate} sums, ${a.cache} cache` +
  (a.declared === false ? " (inferred)" : "");

function onlyIn(side) {
  const list = report[`only_${side}`] ?? [];
  return list.length > 0 && el("details", {}, el("summary", {}, `Only in the ${side}: ${count(list.length, "point")}`),
    el("ul", {}, list.slice(0, 1000).map((one) => el("li", {}, el("code", { title: one.name }, shortened(one.name)), ` ${one.why}`))));
}

function comparedSection() {
  const notes = [...(report.notes ?? []), ...SIDES.flatMap((side) =>
    (compares ? (replays[side]?.notes ?? []) : []).map((note) => `replay of the ${side}: ${note}`))];
  const tolerance = report.tolerance ?? {};
  const model = replays.candidate?.model ?? replays.reference?.model;
  return section("compared", compares ? "What was compared" : "What was replayed",
    compares ? sideFacts() : facts([["Traces", report.trace.map((trace) => el("div", { class: "path" }, trace))],
      ["Arithmetic", arithmeticText(report.arithmetic)]]),
    facts([
      ["Command", data.command && el("code", { class: "path" }, data.command)],
      ["Lockstep", data.version], ["Checkpoint", model && el("span", { class: "path" }, model)],
      ["Weights", `${report.weights_compared} compared, ${report.weights.length} differ`],
      compares && ["Sequences", report.pairs.map((pair) => `${pair.reference} ⇄ ${pair.candidate}: ${count(pair.tokens, "token")}`).join("; ")],
      compares && ["Your tolerance", tolerance.atol === null && tolerance.rtol === null ? "none"
        : `|c − r| ≤ ${num(tolerance.atol ?? 0)} + ${num(tolerance.rtol ?? 0)} |r|`],
      compares && ["Classes", "by the largest absolute difference: EXCELLENT < 1e-4, GOOD < 1e-3, ACCEPTABLE < 1e-2 or cosines of the worst token and head > 0.999, else SIGNIFICANT DIFF"],
      compares && ["Decides", replays.reference && replays.candidate
        ? "the replay: a faulty op on either side, and your own tolerance; classes and bounds describe"
        : "classes, the bound of each point by dtype and depth, and your own tolerance"],
      findings.length > 0 && ["Clean limits", [...new Set(findings.map((f) => `${f.point} < ${noise(f.clean)}`))].join(", ") + " noise units"],
      ["Noise unit", (replays.candidate || replays.reference) && "1 is what rounding alone gives under the arithmetic above: the standard deviation of each element"],
    ]),
    compares && [onlyIn("reference"), onlyIn("candidate")],
    notes.length > 0 && el("div", {}, el("h3", {}, "Notes"), el("ul", {}, notes.map((note) => el("li", {}, note)))));
}
