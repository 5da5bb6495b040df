// Layers × points: every cell is a button with a colour and a letter; arrows move, Enter opens.

const mapRows = [];  // [[cell or null, …], …] as the arrows see them
const cells = new Map();  // name → button

function columnsOf() {
  const names = [];
  const seen = new Set();
  for (const point of points) {
    if (point.layer < 0 || seen.has(point.point)) continue;
    seen.add(point.point);
    names.push(point.point);
  }
  return names;
}

function cellOf(point, label) {
  const cell = el("button", { class: "cell", type: "button", role: "gridcell", tabindex: "-1", "data-point": point.name,
    onclick: () => show({ point: point.name }), onmouseenter: () => inspect(point), onfocus: () => inspect(point) },
    label && el("span", { class: "label" }, label), el("span", { class: "glyph" }));
  cells.set(point.name, cell);
  return cell;
}

function paintCell(point, measure) {
  const cell = cells.get(point.name);
  const v = measure.of(point);
  const state = stateOf(point, measure);
  const odd = v !== null && !Number.isFinite(v);
  const coloured = v !== null && v > 0 && !odd;
  const rgb = coloured ? ramp(along(v, measure.scale)) : null;
  cell.classList.toggle("odd", odd);
  cell.classList.toggle("none", v === null);
  cell.classList.toggle("fails", fails(point));
  cell.classList.toggle("first", point === firstFault);
  cell.style.backgroundColor = rgb ? css(rgb) : "";
  cell.style.color = rgb ? inkOn(rgb) : "";
  cell.lastChild.textContent = state === null ? "" : odd && state !== "faulty" ? "∞" : GLYPHS[state]?.[0] ?? "";
  cell.setAttribute("aria-label", shown(`${shortened(point.name)}: ${state === null ? "unknown" : GLYPHS[state]?.[1] ?? state}, ` +
    `${v === null ? "no figure" : measure.format(v)}${point === firstFault ? ", the first fault" : fails(point) ? ", fails" : ""}`));
}

// Points outside the layers, in a row of their own.
function stripRow(label, list) {
  const row = list.map((point) => cellOf(point, shortened(point.point, 24)));
  mapRows.push(row);
  return el("div", { class: "strip", role: "row" }, el("span", { class: "rowhead", role: "rowheader" }, label), row);
}

function layerGrid(columns) {
  const layers = [...new Set(points.filter((point) => point.layer >= 0).map((point) => point.layer))].sort((a, b) => a - b);
  const grid = el("div", { class: "layers", role: "presentation" });
  grid.style.gridTemplateColumns = `3.4rem repeat(${columns.length}, minmax(1.55rem, 1fr))`;
  grid.append(...columnHeads(columns));
  const at = new Map(points.filter((point) => point.layer >= 0).map((point) => [`${point.layer}/${point.point}`, point]));
  for (const layer of layers) {
    const row = columns.map((name) => at.get(`${layer}/${name}`)).map((point) => (point ? cellOf(point) : null));
    mapRows.push(row);
    grid.append(el("div", { class: "row", role: "row" }, el("span", { class: "rowhead", role: "rowheader" }, `L${layer}`),
      row.map((cell) => cell ?? el("span", { class: "hole", role: "gridcell" }))));
  }
  return grid;
}

// Attention and MLP stand above, the rest of the names upright below.
function columnHeads(columns) {
  const part = (name) => (name.startsWith("attn_") ? "attention" : name.startsWith("mlp_") ? "MLP" : "");
  const heads = [el("span", { class: "corner", "aria-hidden": "true" })];
  for (let begin = 0; begin < columns.length;) {
    let end = begin + 1;
    while (end < columns.length && part(columns[end]) === part(columns[begin])) ++end;
    const head = el("span", { class: `part ${part(columns[begin]) ? "" : "blank"}`, "aria-hidden": "true" }, part(columns[begin]));
    head.style.gridColumn = `span ${end - begin}`;
    heads.push(head);
    begin = end;
  }
  heads.push(el("span", { class: "corner", "aria-hidden": "true" }));
  for (const name of columns) {
    heads.push(el("span", { class: "columnhead", role: "columnheader", title: name },
      el("span", {}, shortened(name.replace(/^(attn|mlp)_/, ""), 22))));
  }
  return heads;
}

function moveFocus(event) {
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -1e9], End: [0, 1e9] };
  const step = steps[event.key];
  const row = mapRows.findIndex((one) => one.includes(event.target));
  if (!step || row < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  const column = mapRows[row].indexOf(event.target);
  focusCell(step[0] === 0 ? alongRow(row, column, step[1]) : acrossRows(row, column, step[0]));
}
function alongRow(row, column, step) {
  const cells = mapRows[row].filter(Boolean);
  const to = cells.indexOf(mapRows[row][column]) + step;
  return cells[Math.min(cells.length - 1, Math.max(0, to))];
}
function acrossRows(row, column, step) {
  for (let to = row + step; to >= 0 && to < mapRows.length; to += step) {
    for (let c = Math.min(column, mapRows[to].length - 1); c >= 0; --c) if (mapRows[to][c]) return mapRows[to][c];
  }
  return null;
}
function focusCell(cell) {
  if (!cell) return;
  for (const other of cells.values()) if (other.tabIndex === 0) other.tabIndex = -1;
  cell.tabIndex = 0;
  cell.focus();
}

// ---- the figures of the cell under the pointer

const inspector = el("aside", { id: "inspector", "aria-label": "Figures of the point", "aria-live": "polite" });
function inspect(point) {
  inspector.replaceChildren(...parts(el("h3", { class: "name", title: point.name }, shortened(point.name)), el("p", { class: "badges" }, badgesOf(point)),
    point === firstFault && el("p", { class: "firstnote" }, "⚑ the first fault"), figuresOf(point),
    ...findingsOf(point).slice(0, 1).map((finding) => el("p", { class: "why" }, causeOf(finding))),
    el("p", { class: "quiet hint" }, "Click or Enter opens the tensor; arrows move.")));
}
function badgesOf(point) {
  return [point.compared && badge(point.compared.bit_identical ? "equal to the bit" : point.compared.class),
    ...SIDES.filter((side) => point[side]).map((side) => badge(point[side].verdict + (compares ? ` (${side})` : ""),
      kindOf(point[side].verdict)))];
}
function figuresOf(point) {
  const c = point.compared;
  return facts([
    c && ["shape", `(${[c.rows, ...c.row_shape].join(", ")})`],
    c && ["max |c − r|", figure(c.max_abs)], c && ["worst token, rel. L2", figure(c.worst.token_relative_l2)],
    c && c.bound !== null && ["its bound", figure(c.bound)], c && ["cosine", figure(c.cosine)],
    ...SIDES.filter((side) => point[side]?.worst_row).map((side) => [`op error${compares ? `, ${side}` : ""}`, figure(point[side].worst_row.error, noise)]),
    c && ["worst element", place(c.worst.element)],
  ]);
}

// ---- the section

function measureSwitch() {
  return el("fieldset", { class: "switch" }, el("legend", { class: "hidden" }, "Colour by"), MEASURES.map((measure) =>
    el("label", {}, el("input", { type: "radio", name: "measure", value: measure.id, onchange: () => show({ map: measure.id }) }),
      el("span", {}, measure.label))));
}

function glyphLegend(measure) {
  const states = [...new Set(points.map((point) => stateOf(point, measure)).filter((state) => state !== null))];
  return el("ul", { class: "glyphs", "aria-label": "Letters" },
    Object.keys(GLYPHS).filter((state) => states.includes(state)).map((state) => el("li", {}, el("b", {}, GLYPHS[state][0]), ` ${GLYPHS[state][1]}`)),
    firstFault && el("li", {}, el("b", { class: "flag" }, "⚑"), " first fault"),
    points.some(fails) && el("li", {}, el("b", { class: "failmark" }), " fails"));
}

const TABLE = [
  ["layer", (p) => (p.layer < 0 ? "" : p.layer)], ["point", (p) => openButton(p.name, shortened(p.point, 40))],
  ["class", (p) => p.compared && badge(p.compared.bit_identical ? "equal to the bit" : p.compared.class)],
  ["max |c − r|", (p) => p.compared && figure(p.compared.max_abs)], ["cosine", (p) => p.compared && figure(p.compared.cosine)],
  ["worst token", (p) => p.compared && figure(p.compared.worst.token_relative_l2)],
  ["op err, ref.", (p) => p.reference && [figure(localError(p.reference), noise), " ", badge(p.reference.verdict)]],
  ["op err, cand.", (p) => p.candidate && [figure(localError(p.candidate), noise), " ", badge(p.candidate.verdict)]],
];
function pointTable(list) {
  const columns = TABLE.filter(([, get], i) => i < 2 || points.some((point) => get(point)));
  return el("table", { class: "points" }, el("thead", {}, el("tr", {}, columns.map(([title]) => el("th", { scope: "col" }, title)))),
    el("tbody", {}, list.map((point) => el("tr", { class: fails(point) ? "fails" : "" }, columns.map(([, get]) => el("td", {}, get(point)))))));
}

function mapSection() {
  if (!points.length) return section("map", "Map", el("p", { class: "quiet" }, "No point is in common: there is nothing to draw."));
  const firstLayer = points.findIndex((point) => point.layer >= 0);
  const before = firstLayer < 0 ? [] : points.slice(0, firstLayer).filter((point) => point.layer < 0);
  const after = points.filter((point) => point.layer < 0 && !before.includes(point));
  const columns = columnsOf();
  const grid = el("div", { id: "grid", role: "grid", "aria-label": "Layers by points", onkeydown: moveFocus },
    before.length > 0 && stripRow("Input", before), columns.length > 0 && layerGrid(columns), after.length > 0 && stripRow("Final", after));
  const legends = el("div", { class: "legends" });
  const found = el("output", { class: "quiet", "aria-live": "polite", for: "filter" });
  const filter = el("input", { id: "filter", type: "search", placeholder: "Filter: attn_q L3 faulty", autocomplete: "off", spellcheck: "false",
    "aria-label": "Filter points by name, layer, class or verdict", oninput: () => show({ find: filter.value }),
    onkeydown: openFirst });
  function openFirst(event) {
    const first = points.find(matcher(view.find));
    if (event.key !== "Enter" || !first) return;
    event.preventDefault();  // or the same key would press the button that gets the focus
    show({ point: first.name });
  }
  const switcher = measureSwitch();
  const table = el("details", { class: "all", ontoggle: () => update() }, el("summary", {}), el("div", { class: "scroll" }));
  let painted = "";
  let listed = null;
  function update(force) {
    const measure = measureShown();
    for (const input of switcher.querySelectorAll("input")) input.checked = input.value === measure.id;
    if (painted !== measure.id || force === true) {
      painted = measure.id;
      for (const point of points) paintCell(point, measure);
      legends.replaceChildren(legend(measure.scale, measure.unit, measure.marks), glyphLegend(measure));
    }
    if (filter.value !== view.find) filter.value = view.find;
    const matches = matcher(view.find);
    const hits = points.filter(matches);
    for (const point of points) cells.get(point.name).classList.toggle("dim", view.find !== "" && !matches(point));
    found.textContent = view.find ? `${hits.length} of ${count(points.length, "point")}` : "";
    table.firstChild.textContent = view.find ? `${count(hits.length, "point")} found, as a table` : `All ${count(points.length, "point")} as a table`;
    if (table.open && listed !== view.find) {
      listed = view.find;
      table.lastChild.replaceChildren(pointTable(hits));
    }
  }
  listeners.push(() => {
    if (view.find && !table.open && listed === null) table.open = true;
    update();
  });
  dark.addEventListener("change", () => update(true));
  update();
  if (view.find) table.open = true;
  const start = firstFault ?? points[0];
  cells.get(start.name).tabIndex = 0;
  inspect(start);
  return section("map", "Map", el("div", { class: "tools" }, switcher, filter, found),
    el("div", { class: "mapbody" }, el("div", { class: "mapleft" }, el("div", { class: "scroll" }, grid), legends), inspector), table);
}
