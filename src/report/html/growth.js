// Error by depth, on a logarithmic scale. Series differ by colour, dash and mark.

const STYLES = [["s0", "", "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0"], ["s1", "6 4", "M-4 -4h8v8h-8z"], ["s2", "2 3", "M0 -5l5 9h-10z"],
  ["s3", "8 3 2 3", "M0 -5l5 5l-5 5l-5 -5z"]];

// series: [{label, points: [[layer, value], …]}]; only what is finite and above 0 is drawn, and how much is not, said.
function lineChart(title, unit, series, limit) {
  const drawn = series.map((one, i) => ({ ...one, style: STYLES[i % STYLES.length],
    points: one.points.filter(([, v]) => v > 0 && Number.isFinite(v)), zero: one.points.filter(([, v]) => v === 0).length,
    odd: one.points.filter(([, v]) => v !== null && !Number.isFinite(v) && !Number.isNaN(v)).length })).filter((one) => one.points.length + one.zero + one.odd);
  const all = drawn.flatMap((one) => one.points);
  const note = drawn.flatMap((one) => [one.zero && `${one.label}: exactly 0 in ${count(one.zero, "layer")}`, one.odd && `${one.label}: infinite in ${count(one.odd, "layer")}`]).filter(Boolean);
  if (!all.length) return el("figure", { class: "chart" }, el("figcaption", {}, el("b", {}, title)), el("p", { class: "quiet" }, note.join("; ") || "Nothing to draw."));
  const width = 420, height = 230, left = 46, right = 14, top = 12, bottom = 34;
  const values = all.map(([, v]) => v);
  const scale = scaleOf(values, 10 ** Math.floor(Math.log10(Math.min(...values))), 10 ** (Math.floor(Math.log10(Math.min(...values))) + 1));
  const layers = all.map(([layer]) => layer);
  const least = Math.min(...layers), most = Math.max(...layers);
  const x = (layer) => left + (most === least ? 0.5 : (layer - least) / (most - least)) * (width - left - right);
  const y = (v) => height - bottom - along(v, scale) * (height - top - bottom);
  const step = Math.max(1, Math.ceil((most - least) / 10));
  const ticks = Array.from({ length: Math.floor((most - least) / step) + 1 }, (_, i) => least + i * step);
  return el("figure", { class: "chart" }, el("figcaption", {}, el("b", {}, title), el("span", { class: "quiet" }, ` ${unit}`)),
    svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}, ${unit}, by layer: ` + drawn.map((one) =>
      `${one.label} from ${num(one.points[0]?.[1])} to ${num(one.points.at(-1)?.[1])}`).join("; ") },
      decades(scale).map((v) => [svg("path", { class: "gridline", d: `M${left} ${y(v)}H${width - right}` }),
        svg("text", { x: left - 6, y: y(v) + 3.5, "text-anchor": "end" }, power(v))]),
      ticks.map((layer) => svg("text", { x: x(layer), y: height - bottom + 16, "text-anchor": "middle" }, layer)),
      svg("text", { x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" }, "layer"),
      limit > scale.low && limit < scale.high && [svg("path", { class: "limit", d: `M${left} ${y(limit)}H${width - right}` }),
        svg("text", { x: width - right, y: y(limit) - 4, "text-anchor": "end" }, `clean below ${noise(limit)}`)],
      drawn.map((one) => [svg("path", { class: `line ${one.style[0]}`, "stroke-dasharray": one.style[1] || null,
        d: "M" + one.points.map(([layer, v]) => `${x(layer)} ${y(v)}`).join("L") }),
        one.points.map(([layer, v]) => svg("path", { class: `dot ${one.style[0]}`, d: one.style[2], transform: `translate(${x(layer)} ${y(v)})` },
          svg("title", {}, `${one.label}, layer ${layer}: ${num(v)}`)))])),
    el("ul", { class: "key" }, drawn.map((one) => el("li", {}, svg("svg", { viewBox: "-16 -8 32 16", width: 32, height: 16, "aria-hidden": "true" },
      svg("path", { class: `line ${one.style[0]}`, "stroke-dasharray": one.style[1] || null, d: "M-16 0H16" }),
      svg("path", { class: `dot ${one.style[0]}`, d: one.style[2] })), one.label))),
    note.length > 0 && el("p", { class: "quiet" }, note.join("; ")));
}

const phasesOf = (point, key) => point.details[key]?.phases;
function byDepth(label, list, get) {
  return { label, points: list.map((point) => [point.layer, value(get(point))]).filter(([, v]) => v !== null && !Number.isNaN(v)) };
}

function differenceChart() {
  const stream = points.filter((point) => point.point === "layer_output" && point.compared);
  const phases = ["prefill", "decode"].map((phase) => byDepth(`${phase} only`, stream, (point) => phasesOf(point, "compared")?.[phase]));
  const both = phases.every((one) => one.points.length);
  return lineChart("Difference in the residual stream", "relative L2 of layer_output",
    [byDepth("all tokens", stream, (point) => point.compared.relative_l2), ...(both ? phases : [])]);
}

// The largest of a layer's ops.
function localChart(side) {
  const layers = new Map();
  const series = { "worst row": (p) => localError(p[side]), "prefill, whole tensor": (p) => value(phasesOf(p, side)?.prefill),
    "decode, whole tensor": (p) => value(phasesOf(p, side)?.decode) };
  for (const point of points) {
    if (point.layer < 0 || !point[side]) continue;
    const largest = layers.get(point.layer) ?? {};
    layers.set(point.layer, largest);
    for (const [label, get] of Object.entries(series)) {
      const v = get(point);
      if (v !== null && !Number.isNaN(v)) largest[label] = Math.max(largest[label] ?? 0, v);
    }
  }
  const limits = cleanLimits(side);
  return lineChart(`Own error of the ops${compares ? `, ${side}` : ""}`, "noise units, the worst op of each layer",
    Object.keys(series).map((label) => ({ label, points: [...layers].filter(([, one]) => one[label] !== undefined).map(([layer, one]) => [layer, one[label]]) })),
    limits.length ? Math.min(...limits) : 0);
}

function growthSection() {
  const charts = [compares && differenceChart(), ...["candidate", "reference"].filter((side) => replays[side]).map(localChart)].filter(Boolean);
  if (!points.some((point) => point.layer >= 0)) return null;
  const growth = report.growth;
  return section("growth", "Growth by depth", growth && el("p", {}, `The relative L2 of the residual stream goes from `, el("b", {}, figure(growth.first.relative_l2)),
    ` (layer ${growth.first.layer}) over `, el("b", {}, figure(growth.middle.relative_l2)), ` (${growth.middle.layer}) to `,
    el("b", {}, figure(growth.last.relative_l2)), ` (${growth.last.layer}): a factor of `, el("b", {}, figure(growth.per_layer)), " a layer."),
    el("div", { class: "charts" }, charts));
}
