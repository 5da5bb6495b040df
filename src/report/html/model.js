// The data as the page uses it: one object a point, whatever the report says of it.

const data = JSON.parse(document.getElementById("data").textContent);
const report = data.report;
const compares = report.schema.startsWith("lockstep-compare/");
const replays = compares ? (report.replay ?? {}) : { candidate: report };
const SIDES = ["reference", "candidate"];

// {name, layer, point, compared, reference, candidate: of the report or null, details: {compare, reference, candidate}}
const points = [];
const byName = new Map();
function pointOf(entry) {
  let point = byName.get(entry.name);
  if (!point) {
    point = { name: entry.name, layer: entry.layer, point: entry.point, details: {}, compared: null, reference: null,
      candidate: null };
    byName.set(entry.name, point);
    points.push(point);
  }
  return point;
}
function addAll(list, key, details) {
  (list ?? []).forEach((entry, i) => {
    const point = pointOf(entry);
    point[key] = entry;
    point.details[key] = details?.[i] ?? null;
  });
}
if (compares) addAll(report.points, "compared", data.details.compare);
for (const side of SIDES) addAll(replays[side]?.points, side, data.details[side]);

const findings = SIDES.flatMap((side) => (replays[side]?.findings ?? []).map((finding) => ({ ...finding, side })));
const isFaulty = (local) => local?.verdict === "faulty";
const fails = (point) => Boolean(point.compared?.fails) || isFaulty(point.reference) || isFaulty(point.candidate);
const firstFault = points.find(fails) ?? null;
const findingsOf = (point) => findings.filter((finding) => finding.points.includes(point.name));

// Of worst rows, the strictest of all points; without details what the findings say.
function cleanLimits(side) {
  const limits = points.map((point) => point.details[side]?.limits?.row).filter((limit) => limit > 0);
  return limits.length ? limits : findings.filter((finding) => finding.side === side).map((finding) => value(finding.clean));
}
const localError = (local) => (local?.worst_row ? value(local.worst_row.error) : null);
// What the switch of the map chooses between; `of` is null where nothing is known.
const MEASURES = [
  { id: "difference", label: "Difference", unit: "relative L2 of the worst token", format: num,
    of: (point) => (point.compared ? value(point.compared.worst.token_relative_l2) : null) },
  { id: "candidate", label: compares ? "Op error, candidate" : "Op error", unit: "noise units, worst row", format: noise,
    of: (point) => localError(point.candidate) },
  { id: "reference", label: "Op error, reference", unit: "noise units, worst row", format: noise,
    of: (point) => localError(point.reference) },
].filter((measure) => points.some((point) => point[measure.id === "difference" ? "compared" : measure.id]));
// What is well within its bound looks clean. A bound is that of 16-bit arithmetic at its depth, or of f32; the least is shown.
const bounds = points.map((point) => value(point.compared?.bound ?? null)).filter((bound) => bound > 0);
const leastBound = bounds.length ? Math.min(...bounds) : null;
for (const measure of MEASURES) {
  const values = points.map(measure.of);
  measure.scale = measure.id === "difference" ? scaleOf(values, leastBound && leastBound / 10, 10) : scaleOf(values, 1, 1e4);
  const limits = measure.id === "difference" ? [] : cleanLimits(measure.id);
  if (measure.id === "difference") measure.marks = leastBound ? [[leastBound, `bound ${num(leastBound)}`]] : [];
  else measure.marks = limits.length ? [[Math.min(...limits), `clean < ${noise(Math.min(...limits))}`]] : [];
}

const GLYPHS = {
  EXCELLENT: ["E", "excellent"], GOOD: ["G", "good"], ACCEPTABLE: ["A", "acceptable"],
  "SIGNIFICANT DIFF": ["S", "significant difference"], equal: ["=", "equal to the bit"],
  clean: ["✓", "clean"], suspect: ["?", "suspect"], faulty: ["✗", "faulty"], "not-observable": ["–", "not observable"],
};
// What a cell of the map says in words, beside its colour.
function stateOf(point, measure) {
  if (measure.id !== "difference") return point[measure.id]?.verdict ?? null;
  return point.compared ? (point.compared.bit_identical ? "equal" : point.compared.class) : null;
}

// Words of the filter must all be found; "L3" is the layer, "*" stands for anything.
function matcher(filter) {
  const tests = filter.toLowerCase().split(/\s+/).filter(Boolean).map((word) => {
    const layer = /^l(\d+)$/.exec(word);
    if (layer) return (point) => point.layer === Number(layer[1]);
    const pattern = new RegExp(word.split("*").map((part) => part.replace(/[.+?^${}()|[\]\\]/g, "\\$&")).join(".*"));
    return (point) => pattern.test(haystackOf(point));
  });
  return (point) => tests.every((test) => test(point));
}
function haystackOf(point) {
  point.haystack ??= [point.name, point.compared?.class, point.reference?.verdict, point.candidate?.verdict,
    fails(point) ? "fails" : ""].join(" ").toLowerCase();
  return point.haystack;
}

// ---- the view, kept in the fragment of the address

const view = { point: "", map: "", find: "" };
const listeners = [];
function readFragment() {
  const parameters = new URLSearchParams(location.hash.slice(1));
  for (const key of Object.keys(view)) view[key] = parameters.get(key) ?? "";
  if (!MEASURES.some((measure) => measure.id === view.map)) view.map = defaultMeasure();
  if (!byName.has(view.point)) view.point = "";
}
function defaultMeasure() {
  const faulty = MEASURES.find((measure) => measure.id !== "difference" && points.some((p) => isFaulty(p[measure.id])));
  return (faulty ?? MEASURES[0])?.id ?? "";
}
function show(change) {
  Object.assign(view, change);
  const parameters = new URLSearchParams();
  for (const [key, text] of Object.entries(view)) {
    if (text && !(key === "map" && text === defaultMeasure())) parameters.set(key, text);
  }
  const fragment = parameters.toString();
  history.replaceState(null, "", fragment ? `#${fragment}` : location.pathname + location.search);
  for (const listener of listeners) listener();
}
const measureShown = () => MEASURES.find((measure) => measure.id === view.map);
