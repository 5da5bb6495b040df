// What was read and what would be written: the tokens as text, and the five largest logits of both sides after each.

const texts = data.texts && new Map(data.texts);
const spelled = (id) => (texts?.get(id) ?? "").replace(/\n/g, "⏎").replace(/\t/g, "⇥");
const tokenText = (id) => (id < 0 ? "–" : texts && texts.get(id) ? spelled(id) : `#${id}`);

const rowMark = (row) => (!row.same_next ? "differs" : row.near_tie ? "tie" : "");
const rowNote = (row) => (row.same_next ? (row.near_tie ? "near tie" : "same token") : row.near_tie ? "different token, a near tie"
  : row.within_noise ? "different token, by noise that rounding does not explain" : "different token, NOT a near tie");

function topTable(side, other, label) {
  return el("table", { class: "top" }, el("caption", {}, label), el("thead", {}, el("tr", {}, ["", "token", "id", "logit"].map((t) => el("th", { scope: "col" }, t)))),
    el("tbody", {}, side.top_ids.map((id, i) => id >= 0 && el("tr", { class: other.top_ids.includes(id) ? "" : "alone" },
      el("td", { class: "quiet" }, i + 1), el("td", {}, el("code", { class: "token" }, tokenText(id)), id === side.next && el("span", { class: "quiet" }, " ← chosen")),
      el("td", {}, id), el("td", {}, figure(side.top_values[i]))))));
}

function rowPanel(row, before) {
  return [el("h3", {}, "After ", el("code", { class: "token" }, before), el("span", { class: "quiet" }, ` sequence ${row.sequence}, position ${row.position}`), " ",
    badge(rowNote(row), row.same_next && !row.near_tie ? "good" : row.near_tie ? "warn" : "bad")),
    el("div", { class: "tops" }, topTable(row.reference, row.candidate, "Reference"), topTable(row.candidate, row.reference, "Candidate"),
      facts([["KL divergence", [figure(row.kl), " nats"]], ["margin, reference", figure(row.reference.margin)], ["margin, candidate", figure(row.candidate.margin)],
        ["logit noise", figure(row.noise_rms)], ["its reach", figure(row.noise_reach)], ["in common", `${row.common_top5} of 5, ${row.common_top10} of 10`]]))];
}

// One sequence: chips; those with logits open the row.
function sequenceText(sequence, rows, select) {
  const chips = sequence.ids.map((id, i) => {
    const row = rows.get(`${sequence.reference}/${sequence.positions[i]}`);
    const mark = row ? rowMark(row) : "";
    const generated = sequence.first_decode >= 0 && sequence.positions[i] >= sequence.first_decode;
    const properties = { class: `chip ${mark} ${generated ? "generated" : ""}`, title: `position ${sequence.positions[i]}, id ${id}${row ? `, then: ${rowNote(row)}, KL ${num(row.kl)}` : ""}` };
    const content = [tokenText(id), mark && el("span", { class: "chipmark" }, mark === "tie" ? "≈" : "≠")];
    return row ? el("button", { ...properties, type: "button", "data-row": `${row.sequence}/${row.position}`, onclick: () => select(row, tokenText(id)) }, content) : el("span", properties, content);
  });
  const last = rows.get(`${sequence.reference}/${sequence.positions.at(-1)}`);
  const next = last && el("span", { class: `chip next ${last.same_next ? "" : "differs"}` },
    last.same_next ? `→ ${tokenText(last.reference.next)}` : `→ ${tokenText(last.reference.next)} ≠ ${tokenText(last.candidate.next)}`);
  return el("div", { class: "sequence" }, el("h3", {}, `Sequence ${sequence.reference}`, sequence.candidate !== sequence.reference && ` ⇄ ${sequence.candidate}`,
    el("span", { class: "quiet" }, ` ${count(sequence.ids.length, "token")}`)), el("p", { class: "text" }, chips, next));
}

const ROW_COLUMNS = [["sequence", (r) => r.sequence], ["position", (r) => r.position], ["reference", (r) => el("code", { class: "token" }, tokenText(r.reference.next))],
  ["candidate", (r) => el("code", { class: "token" }, tokenText(r.candidate.next))], ["margin, ref.", (r) => figure(r.reference.margin)],
  ["margin, cand.", (r) => figure(r.candidate.margin)], ["noise", (r) => figure(r.noise_rms)], ["KL", (r) => figure(r.kl)],
  ["", (r) => (rowMark(r) ? badge(r.same_next ? "near tie" : r.near_tie ? "≠, near tie" : "≠", r.near_tie ? "warn" : "bad") : null)]];
function rowTable(rows, select) {
  const shownRows = rows.slice(-1000);
  return [rows.length > 1000 && el("p", { class: "quiet" }, `The last 1000 of ${rows.length} rows; the others are in the JSON report.`), el("div", { class: "scroll" }, el("table", { class: "points" },
    el("thead", {}, el("tr", {}, ROW_COLUMNS.map(([title]) => el("th", { scope: "col" }, title)))), el("tbody", {}, shownRows.map((row) =>
      el("tr", {}, ROW_COLUMNS.map(([title, get], i) => el("td", {}, i === 1 ? el("button", { class: "link", type: "button", onclick: () => select(row, `position ${row.position}`) }, get(row)) : get(row))))))))];
}

function tokensSection() {
  if (!compares || !data.sequences.some((sequence) => sequence.ids.length)) return null;
  const tokens = report.tokens;
  const rows = new Map(tokens.rows.map((row) => [`${row.sequence}/${row.position}`, row]));
  const panel = el("div", { class: "rowpanel", "aria-live": "polite" });
  const body = el("div", {}, data.sequences.slice(0, 100).map((sequence) => sequenceText(sequence, rows, select)));
  function select(row, before) {
    body.querySelector(".chip.selected")?.classList.remove("selected");
    body.querySelector(`[data-row="${row.sequence}/${row.position}"]`)?.classList.add("selected");
    panel.replaceChildren(...rowPanel(row, before));
  }
  const start = tokens.first_different ?? tokens.rows.at(-1);
  if (start) {
    const sequence = data.sequences.find((one) => one.reference === start.sequence);
    select(start, tokenText(sequence?.ids[sequence.positions.indexOf(start.position)] ?? -1));
  }
  const list = el("details", { ontoggle: () => list.childElementCount === 1 && list.append(...rowTable(tokens.rows, select).filter(Boolean)) },
    el("summary", {}, `All ${count(tokens.rows.length, "row")} of logits as a table`));
  return section("tokens", "Tokens", !texts && el("p", { class: "quiet" }, "As ids: no tokenizer was given. With --model and its tokenizer.json they are text."),
    tokens.rows.length > 0 ? el("p", {}, `The largest logit agrees in `, el("b", {}, `${tokens.same_top} of ${tokens.rows.length}`), ` rows; `,
      el("b", {}, count(tokens.near_ties, "near tie")), `; of the five largest ${num(tokens.mean_common_top5)} in common; KL mean `, el("b", {}, figure(tokens.mean_kl)),
      tokens.max_kl && [" nats, largest ", el("b", {}, figure(tokens.max_kl.kl)), ` at position ${tokens.max_kl.position}`], ".") : el("p", { class: "quiet" }, "No logits are in common."),
    el("ul", { class: "glyphs" }, [["generated", "generated (decode steps); the others are the prompt", ""], ["differs", "the sides choose different tokens next", "≠"], ["tie", "near tie", "≈"]].filter(([kind]) => body.querySelector(`.chip.${kind}`))
      .map(([kind, text, mark]) => el("li", {}, el("span", { class: `chip ${kind}` }, "abc", mark && el("span", { class: "chipmark" }, mark)), ` ${text}`))),
    body, panel, tokens.rows.length > 0 && list);
}
