// One tensor, on demand: where its errors are, how they are distributed, what the values are.

const DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const LEVEL = new Map(Array.from(DIGITS, (digit, i) => [digit, i]));

// Of a cell: 0, Infinity, or what its level stands for (within the width of a level).
function levelValue(map, level) {
  if (level === 0) return 0;
  return level === 63 ? Infinity : map.low * (map.high / map.low) ** ((level - 1) / 61);
}
function floats(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const numbers = new DataView(bytes.buffer);
  return Array.from({ length: bytes.length / 4 }, (_, i) => numbers.getFloat32(4 * i, true));
}

// ---- errors by token and head or block of channels

function columnName(map, column) {
  if (!map.columns) return "whole row";
  const first = column * map.per_column;
  const word = map.heads ? "head" : "channel";
  return map.per_column === 1 ? `${word} ${first}` : `${word}s ${first}–${first + map.per_column - 1}`;
}
const bandName = ([sequence, first, last]) => `sequence ${sequence}, position${first === last ? ` ${first}` : `s ${first}–${last}`}`;

function errorMap(map, measure) {
  const columns = map.columns || 1, rows = map.bands.length;
  const levels = Array.from(map.cells, (digit) => LEVEL.get(digit));
  const scale = scaleOf(levels.map((level) => levelValue(map, level)), measure.scale.low, measure.scale.high);
  const canvas = el("canvas", { class: "heat", tabindex: "0", role: "img",
    "aria-label": `Errors of ${count(rows, "row")} of tokens by ${count(columns, "column")}; arrows move and read the figures` });
  const readout = el("output", { class: "readout", "aria-live": "polite" });
  const cellWidth = Math.max(4, Math.min(60, Math.floor(540 / columns))), cellHeight = Math.max(3, Math.min(18, Math.floor(300 / rows)));
  const density = Math.max(1, Math.round(window.devicePixelRatio || 1));
  canvas.width = columns * cellWidth * density;
  canvas.height = rows * cellHeight * density;
  canvas.style.width = `${columns * cellWidth}px`;
  canvas.style.height = `${rows * cellHeight}px`;
  let at = levels.indexOf(Math.max(...levels));
  function draw() {
    const context = canvas.getContext("2d");
    context.setTransform(density, 0, 0, density, 0, 0);
    levels.forEach((level, i) => {
      const x = (i % columns) * cellWidth, y = Math.floor(i / columns) * cellHeight;
      const v = levelValue(map, level);
      context.fillStyle = level === 63 ? "#00a0c8" : css(ramp(v === 0 ? 0 : along(v, scale)));
      context.fillRect(x, y, cellWidth, cellHeight);
    });
    const x = (at % columns) * cellWidth, y = Math.floor(at / columns) * cellHeight;
    context.lineWidth = 2;
    for (const [grow, colour] of [[1, "#ffffff"], [-1, "#0067c0"]]) {
      context.strokeStyle = colour;
      context.strokeRect(x - grow, y - grow, cellWidth + 2 * grow, cellHeight + 2 * grow);
    }
    const v = levelValue(map, levels[at]);
    readout.textContent = shown(`${bandName(map.bands[Math.floor(at / columns)])}, ${columnName(map, at % columns)}: ${v > 0 && v < Infinity ? "≈ " : ""}${v < Infinity ? measure.format(Number(v.toPrecision(2))) : "not finite on one side"}`);
  }
  function go(i) {
    if (i >= 0 && i < levels.length && i !== at) at = i;
    draw();
  }
  canvas.addEventListener("mousemove", (event) => {
    const column = Math.floor((event.offsetX * columns) / canvas.clientWidth), row = Math.floor((event.offsetY * rows) / canvas.clientHeight);
    if (column >= 0 && column < columns && row >= 0 && row < rows) go(row * columns + column);
  });
  canvas.addEventListener("keydown", (event) => {
    const column = at % columns;
    const steps = { ArrowLeft: column > 0 ? -1 : 0, ArrowRight: column < columns - 1 ? 1 : 0, ArrowUp: -columns, ArrowDown: columns };
    if (!(event.key in steps)) return;
    event.preventDefault();
    event.stopPropagation();
    go(at + steps[event.key]);
  });
  draw();
  const folded = map.bands.some(([, first, last]) => first !== last);
  const infinite = levels.includes(63) && [el("span", { class: "swatch" }), " not finite on one side. "];
  return [el("div", { class: "heatbox" }, el("span", { class: "axis down" }, "tokens ↓"),
    el("div", {}, el("span", { class: "axis" }, map.columns ? (map.heads ? "heads →" : "channels →") : "whole rows"), canvas)), readout,
    legend(scale, measure.id === "difference" ? "relative L2" : "noise units (RMS)", measure.marks),
    (folded || infinite) && el("p", { class: "quiet" }, infinite, folded && "A row shows the worst of several tokens.")];
}

// ---- signed errors, beside what rounding alone would give

function histogram(one, label, limit) {
  const counts = one.counts, half = (counts.length * one.width) / 2;
  const total = counts.reduce((sum, n) => sum + n, one.below + one.above);
  if (!total) return el("p", { class: "quiet" }, `${label}: nothing was judged.`);
  const width = 520, height = 170, left = 44, right = 10, top = 8, bottom = 34;
  const normal = counts.map((_, i) => {
    const x = (i + 0.5) * one.width - half;
    return (total * one.width * Math.exp((-x * x) / 2)) / Math.sqrt(2 * Math.PI);
  });
  const most = Math.max(...counts, ...normal, 10);
  const y = (n) => height - bottom - (n < 0.5 ? 0 : Math.log(n / 0.5) / Math.log(most / 0.5)) * (height - top - bottom);
  const step = (width - left - right) / counts.length;
  const x = (units) => left + ((units + half) / (2 * half)) * (width - left - right);
  const curve = normal.map((n, i) => [left + (i + 0.5) * step, y(n), n]).filter(([, , n]) => n >= 0.5).map(([cx, cy]) => `${cx} ${cy}`);
  return el("figure", { class: "chart" }, el("figcaption", {}, el("b", {}, label), el("span", { class: "quiet" }, ` ${count(total, "element")}`)),
    svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Histogram of signed errors in noise units: ${one.below} below ${num(-half)}, ${one.above} above ${num(half)} of ${total}` },
      decades({ low: 1, high: most }, 4).map((v) => [svg("path", { class: "gridline", d: `M${left} ${y(v)}H${width - right}` }), svg("text", { x: left - 5, y: y(v) + 3.5, "text-anchor": "end" }, power(v))]),
      counts.map((n, i) => n > 0 && svg("rect", { class: "bar", x: left + i * step + 0.5, y: y(n), width: step - 1, height: height - bottom - y(n) },
        svg("title", {}, `${num(i * one.width - half)} to ${num((i + 1) * one.width - half)}: ${n}`))),
      [-8, -4, 0, 4, 8].filter((u) => Math.abs(u) < half).map((u) => svg("text", { x: x(u), y: height - bottom + 14, "text-anchor": "middle" }, u)),
      svg("text", { x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" }, "error in noise units"),
      limit < half && [-limit, limit].map((v) => svg("path", { class: "limit", d: `M${x(v)} ${top}V${height - bottom}` })),
      curve.length > 1 && svg("path", { class: "curve", d: `M${curve.join("L")}` })),
    el("ul", { class: "key" }, el("li", {}, el("span", { class: "barkey" }), "counted"), el("li", {}, el("span", { class: "curvekey" }), "normal curve: rounding alone"),
      limit > 0 && el("li", {}, limit < half && el("span", { class: "limitkey" }), `single values are clean to ±${noise(limit)}`),
      one.below + one.above > 0 && el("li", {}, el("b", {}, one.below), ` further left, `, el("b", {}, one.above), " further right")));
}

// ---- values around the worst element

function windowTable(window, worst) {
  const sides = { reference: floats(window.reference), candidate: floats(window.candidate) };
  const columns = window.channels.length;
  const differences = sides.reference.map((v, i) => Math.abs(sides.candidate[i] - v));
  const scale = { low: 1e-7, high: 1 };
  const largest = Math.max(...sides.reference.map(Math.abs).filter(Number.isFinite), 1e-30);
  const cell = (row, column) => {
    const i = row * columns + column;
    const isWorst = window.positions[row] === worst.position && window.channels[column] === worst.channel;
    const share = differences[i] / largest;
    const td = el("td", { class: isWorst ? "worst" : "", title: `position ${window.positions[row]}, channel ${window.channels[column]}: reference ${sides.reference[i]}, candidate ${sides.candidate[i]}` },
      el("span", {}, num(Number(sides.reference[i]))), el("span", {}, num(Number(sides.candidate[i]))));
    const rgb = differences[i] === 0 ? null : ramp(share > 0 && Number.isFinite(share) ? along(share, scale) : 1);
    if (rgb) Object.assign(td.style, { backgroundColor: css(rgb), color: inkOn(rgb) });
    return td;
  };
  return el("div", { class: "scroll" }, el("table", { class: "window" }, el("caption", {}, `sequence ${window.sequence}${window.head >= 0 ? `, head ${window.head}` : ""}: the reference above, the candidate below; the stronger the colour, the further apart; the worst is framed`),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "position"), window.channels.map((channel) => el("th", { scope: "col" }, `ch ${channel}`)))),
    el("tbody", {}, window.positions.map((position, row) => el("tr", {}, el("th", { scope: "row" }, position), window.channels.map((_, column) => cell(row, column)))))));
}

// ---- figures

function metricFacts(c) {
  return facts([
    ["max |c − r|", figure(c.max_abs)], ["mean |c − r|", figure(c.mean_abs)], ["max relative", figure(c.max_rel)], ["mean relative", figure(c.mean_rel)],
    ["relative L2", figure(c.relative_l2)], ["cosine", figure(c.cosine)], ["SNR", [figure(c.snr_db), " dB"]], ["best factor", figure(c.best_scale)],
    ["worst token", [figure(c.worst.token_relative_l2), ` at ${place(c.worst.token)}`]], c.bound !== null && ["its bound", figure(c.bound)],
    ["smallest token cosine", [figure(c.worst.min_token_cosine), ` at ${place(c.worst.min_token_cosine_at)}`]],
    c.worst.head !== undefined && ["worst head", [`${c.worst.head}: relative L2 `, figure(c.worst.head_relative_l2), ", smallest cosine ", figure(c.worst.min_head_cosine)]],
    ["worst element", `${place(c.worst.element)}: reference ${num(c.worst.reference)}, candidate ${num(c.worst.candidate)}`],
    ...c.within.map((one) => [`within ${one.rtol}`, figure(one.share, share)]), c.within_user !== null && ["within your own", figure(c.within_user, share)],
    c.zero_mismatches > 0 && ["0 in the reference only", c.zero_mismatches],
    c.non_finite_mismatches > 0 && ["NaN or ∞ on one side", `${c.non_finite_mismatches}, first at ${place(c.first_non_finite_mismatch)}`],
    c.mask_mismatches > 0 && ["masks differ", `${c.mask_mismatches}, first at ${place(c.first_mask_mismatch)}`],
    c.rows_only_reference + c.rows_only_candidate > 0 && ["rows on one side", `${c.rows_only_reference} reference, ${c.rows_only_candidate} candidate`],
  ]);
}
function statisticFacts(c) {
  const rows = [["dtype", (s) => s.dtype], ["mean", (s) => figure(s.mean)], ["std", (s) => figure(s.std)], ["min", (s) => figure(s.min)], ["max", (s) => figure(s.max)],
    ["NaN", (s) => s.nan_count], ["infinite", (s) => s.inf_count], ["first NaN", (s) => s.first_nan && place(s.first_nan)], ["first infinite", (s) => s.first_inf && place(s.first_inf)]];
  return facts(rows.map(([key, get]) => [key, get(c.reference), get(c.candidate)]), ["", "Reference", "Candidate"]);
}
function localFacts(local, detail) {
  const { phases, limits } = detail ?? {};
  const limit = (key, format = noise) => (limits?.[key] > 0 ? el("span", { class: "quiet" }, ` (clean below ${format(limits[key])})`) : null);
  return facts([
    ["verdict", [badge(local.verdict), local.why && ` ${local.why}`]], ["op", local.op],
    ["recomputed from", local.from.join(", ") + (local.bridged ? " (through points that were not captured)" : "")],
    local.worst_row && ["worst row", [figure(local.worst_row.error, noise), limit("row"), ` at ${place(local.worst_row)}`]],
    local.worst_head && ["worst head", [figure(local.worst_head.error, noise), limit("head"), ` at ${place(local.worst_head)}`]],
    local.whole !== null && ["whole tensor", figure(local.whole, noise)],
    local.max && ["largest value", [figure(local.max.error, noise), limit("max"), ` at ${place(local.max)}: captured ${num(local.max.captured)}, recomputed ${num(local.max.recomputed)}`]],
    local.scale && ["scale", [figure(local.scale.value), " ± ", figure(local.scale.standard_error), limit("scale", num)]],
    phases && ["by phase", [["prefill ", phases.prefill], [", decode ", phases.decode]].filter(([, v]) => v !== "NaN").flatMap(([label, v]) => [label, figure(v, noise)])],
    local.non_finite > 0 && ["not finite", `${local.non_finite}, first at ${place(local.first_non_finite)}`],
    ["rows judged", `${local.rows}${local.rows_inherited ? `, ${local.rows_inherited} with inputs that are not finite` : ""}${local.rows_not_observable ? `, ${local.rows_not_observable} not observable` : ""}`],
    ["arithmetic", arithmeticText(local.arithmetic)],
  ]);
}

// ---- the view

function inWords(point) {
  const c = point.compared;
  const sentences = findingsOf(point).map((finding) => el("li", {}, compares && `${finding.side}: `, el("b", {}, causeOf(finding)), finding.patterns.length > 0 && ` — ${finding.patterns.map((p) => p.text).join(", ")}.`,
    finding.advice && ` Usual fix: ${finding.advice}`));
  if (c) sentences.push(...c.reasons.map((reason) => el("li", {}, reason)));
  if (c?.bit_identical) sentences.push(el("li", {}, "Equal to the bit."));
  if (c?.fails && !sentences.length) sentences.push(el("li", {}, "This point makes the run different."));
  if (!findingsOf(point).length && fails(point) && point !== firstFault) sentences.push(el("li", {}, "What comes before it is wrong already: start at ", openButton(firstFault.name), "."));
  return sentences.length > 0 && el("ul", { class: "words" }, sentences);
}

function mapTabs(point) {
  const drawn = MEASURES.map((measure) => [measure, point.details[measure.id === "difference" ? "compared" : measure.id]?.map]).filter(([, map]) => map);
  if (!drawn.length) return el("p", { class: "quiet" }, noDetails(point));
  const body = el("div", {});
  const choose = (measure, map, button) => {
    for (const other of tabs.children) other.setAttribute("aria-pressed", other === button);
    body.replaceChildren(...[errorMap(map, measure)].flat(2).filter((x) => x));
  };
  const tabs = el("div", { class: "tabs" }, drawn.map(([measure, map]) => {
    const button = el("button", { type: "button", "aria-pressed": "false", onclick: () => choose(measure, map, button) }, measure.label);
    return button;
  }));
  const start = Math.max(0, drawn.findIndex(([measure]) => measure.id === view.map));
  choose(...drawn[start], tabs.children[start]);
  return el("div", {}, tabs, body);
}
const noDetails = (point) => (point.compared?.bit_identical ? "Both sides are equal to the bit: there is no error to draw."
  : "No map of errors: this report was made from results without details.");

function tensorParts(point) {
  const c = point.compared;
  const histograms = SIDES.toReversed().map((side) => [side, point.details[side]?.histogram]).filter(([, one]) => one);
  const window = point.details.compared?.window;
  return [
    el("div", { class: "panel wide" }, inWords(point)),
    el("div", { class: "panel" }, el("h3", {}, "Where the errors are"), mapTabs(point)),
    histograms.length > 0 ? el("div", { class: "panel" }, el("h3", {}, "How large they are"), histograms.map(([side, one]) => histogram(one, compares ? side : "errors", point.details[side].limits?.max))) : null,
    c && el("div", { class: "panel wide" }, el("h3", {}, "Values around the worst element"), window ? windowTable(window, c.worst.element) : el("p", { class: "quiet" }, c.bit_identical ? "Equal to the bit." : "No values: this report was made from results without details.")),
    c && el("div", { class: "panel" }, el("h3", {}, "Difference"), metricFacts(c)),
    c && el("div", { class: "panel" }, el("h3", {}, "Statistics of both sides"), statisticFacts(c),
      point.details.compared && el("div", {}, el("h3", {}, "Relative L2 by phase"), facts(["prefill", "decode"].map((phase) => [phase, point.details.compared.phases[phase] === "NaN" ? null : figure(point.details.compared.phases[phase])])))),
    SIDES.toReversed().filter((side) => point[side]).map((side) => el("div", { class: "panel", "data-side": side }, el("h3", {}, compares ? `The op itself, ${side}` : "The op itself"), localFacts(point[side], point.details[side]))),
  ].flat().filter((part) => part && part.hasChildNodes());
}

const dialog = el("dialog", { id: "tensor", "aria-labelledby": "tensor-title", onclose: () => view.point && show({ point: "" }),
  onclick: (event) => event.target === dialog && dialog.close() });
function step(by) {
  const to = points[points.indexOf(byName.get(view.point)) + by];
  if (to) show({ point: to.name });
}
dialog.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "CANVAS") return;
  if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
    event.preventDefault();
    step(event.key === "ArrowLeft" ? -1 : 1);
  }
});

let openPoint = "";
function updateTensor() {
  if (view.point === openPoint) return;
  openPoint = view.point;
  if (!openPoint) {
    dialog.close();
    return;
  }
  const point = byName.get(openPoint);
  const at = points.indexOf(point);
  const c = point.compared;
  dialog.replaceChildren(el("header", {}, el("div", {}, el("h2", { id: "tensor-title", class: "name", title: point.name }, point.name),
    el("p", { class: "badges" }, badgesOf(point), point === firstFault && el("span", { class: "badge bad" }, "⚑ the first fault"),
      el("span", { class: "quiet" }, [c && `(${[c.rows, ...c.row_shape].join(", ")})`, c && count(c.elements, "element"), (point.candidate ?? point.reference)?.op].filter(Boolean).join(" · ")))),
    el("nav", { "aria-label": "Points" }, el("button", { type: "button", disabled: at === 0, onclick: () => step(-1), "aria-label": "Previous point" }, "←"),
      el("button", { type: "button", disabled: at === points.length - 1, onclick: () => step(1), "aria-label": "Next point" }, "→"),
      el("button", { type: "button", onclick: () => dialog.close(), "aria-label": "Close" }, "✕"))),
    el("div", { class: "panels" }, tensorParts(point)));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  dialog.querySelector("nav button:last-child").focus();
}
listeners.push(updateTensor);
// Its colours are those of the mode that it was drawn in.
dark.addEventListener("change", () => {
  openPoint = "";
  if (view.point) updateTensor();
});
