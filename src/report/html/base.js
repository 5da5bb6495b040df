"use strict";
// Every text on the page goes through shown() into a text node or an attribute: names and messages come from traces and
// are not trusted, and nothing is ever parsed as markup.

// Control characters and direction overrides become \xNN and \u{NNNN}, as in the other reports.
const CONTROL = /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;
function shown(text) {
  return String(text).replace(CONTROL, (c) => {
    const code = c.charCodeAt(0);
    return code < 0x80 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u{${code.toString(16).padStart(4, "0")}}`;
  });
}

// The middle of what is longer becomes "…".
function shortened(text, width = 64) {
  const characters = Array.from(shown(text));
  if (characters.length <= width) return characters.join("");
  const tail = Math.floor((width - 1) / 2);
  return [...characters.slice(0, width - 1 - tail), "…", ...characters.slice(-tail)].join("");
}

function fill(node, properties, children) {
  for (const [key, value] of Object.entries(properties ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : shown(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(shown(child)));
  }
  return node;
}
const parts = (...children) => children.flat(Infinity).filter((child) => child);
const el = (tag, properties, ...children) => fill(document.createElement(tag), properties, children);
const svg = (tag, properties, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);

// ---- numbers; those that JSON lacks come as "NaN", "Infinity", "-Infinity"

const value = (x) => (x === null || x === undefined ? null : Number(x));

function num(x) {
  const v = value(x);
  if (v === null) return "–";
  if (!Number.isFinite(v)) return Number.isNaN(v) ? "NaN" : v > 0 ? "∞" : "−∞";
  if (v === 0) return "0";
  if (Number.isInteger(v) && Math.abs(v) < 1e6) return String(v);
  const size = Math.abs(v);
  return size >= 1e-3 && size < 1e5 ? String(Number(v.toPrecision(5))) : v.toExponential(2);
}

// An error in noise units: "0.93", "312", "3.1e+4".
function noise(x) {
  const v = value(x);
  if (v === null) return "–";
  if (!Number.isFinite(v)) return Number.isNaN(v) ? "NaN" : "∞";
  if (v < 99.5) return String(Number(v.toPrecision(2)));
  return v < 9999.5 ? v.toFixed(0) : v.toExponential(1);
}

const share = (x) => (value(x) === null ? "–" : `${num(100 * value(x))} %`);
const count = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;

// A figure, with all its digits on hover.
const figure = (x, format = num) => el("span", { class: "figure", title: value(x) === null ? null : String(x) }, format(x));

function place(at) {
  if (!at) return "–";
  let text = `sequence ${at.sequence}, position ${at.position}`;
  if (at.head !== undefined) text += `, head ${at.head}`;
  if (at.channel !== undefined) text += `, channel ${at.channel}`;
  return text;
}

// ---- colour: magma, perceptually even and safe for colour-blind eyes; what is worse stands out from the background

const MAGMA = ["#000004", "#140e36", "#3b0f70", "#641a80", "#8c2981", "#b73779", "#de4968", "#f7705c", "#fe9f6d",
  "#fecf92", "#fcfdbf"].map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
const dark = matchMedia("(prefers-color-scheme: dark)");

// share: 0 (best) to 1 (worst). Returns [r, g, b].
function ramp(share) {
  const clamped = Math.min(1, Math.max(0, share));
  const along = (dark.matches ? 0.1 + 0.9 * clamped : 1 - 0.93 * clamped) * (MAGMA.length - 1);
  const low = Math.min(MAGMA.length - 2, Math.floor(along));
  return MAGMA[low].map((c, i) => Math.round(c + (along - low) * (MAGMA[low + 1][i] - c)));
}
const css = (rgb) => `rgb(${rgb.join(" ")})`;
const inkOn = (rgb) => (0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 140 ? "#1b1b1f" : "#ffffff");

// Where a value stands between low and high, on a logarithmic scale.
const along = (v, scale) => Math.log(v / scale.low) / Math.log(scale.high / scale.low);

// From `least`, or the power of ten below the smallest, to at least `most`.
function scaleOf(values, least, most) {
  let low = Infinity;
  let high = 0;
  for (const v of values) {
    if (!(v > 0) || !Number.isFinite(v)) continue;
    low = Math.min(low, v);
    high = Math.max(high, v);
  }
  if (high === 0) return { low: least ?? most / 1e6, high: most };
  return { low: least ?? 10 ** Math.floor(Math.log10(low) + 1e-9), high: Math.max(most, 10 ** Math.ceil(Math.log10(high) - 1e-9)) };
}

const power = (v) => {
  const exponent = Math.round(Math.log10(v));
  return exponent >= 0 && exponent <= 3 ? String(10 ** exponent) : exponent < 0 && exponent >= -2 ? String(10 ** exponent)
    : `1e${exponent < 0 ? "−" : "+"}${Math.abs(exponent)}`;
};

// At most `most` powers of ten between low and high.
function decades(scale, most = 7) {
  const first = Math.ceil(Math.log10(scale.low) - 1e-9);
  const last = Math.floor(Math.log10(scale.high) + 1e-9);
  const step = Math.max(1, Math.ceil((last - first) / most));
  const ticks = [];
  for (let exponent = first; exponent <= last; exponent += step) ticks.push(10 ** exponent);
  return ticks;
}

// The legend of a scale; marks: [[value, label], …].
function legend(scale, unit, marks = []) {
  const width = 340;
  const steps = 52;
  const x = (v) => 10 + (width - 20) * Math.min(1, Math.max(0, along(v, scale)));
  // The unit keeps out of the way of the marks.
  const left = marks.some(([v]) => v > scale.low && along(v, scale) < 0.5);
  const bar = Array.from({ length: steps }, (_, i) =>
    svg("rect", { x: 10 + (i * (width - 20)) / steps, y: 14, width: (width - 20) / steps + 0.5, height: 9,
      fill: css(ramp((i + 0.5) / steps)) }));
  return svg("svg", { class: "legend", viewBox: `0 0 ${width} 40`, width, height: 40, role: "img",
    "aria-label": `Colour scale, ${unit}, from ${num(scale.low)} to ${num(scale.high)}` },
    svg("text", { x: left ? width - 10 : 10, y: 9, "text-anchor": left ? "end" : "start" }, unit), bar,
    decades(scale, 5).map((v) => svg("text", { x: x(v), y: 36, "text-anchor": x(v) < 20 ? "start" : x(v) > width - 20 ? "end" : "middle" }, power(v))),
    marks.filter(([v]) => v > scale.low && v < scale.high).map(([v, label]) => [
      svg("path", { d: `M${x(v)} 11v15`, class: "mark" }),
      svg("text", { x: Math.max(x(v), 4), y: 9, "text-anchor": x(v) < 50 ? "start" : x(v) > width - 50 ? "end" : "middle", class: "strong" }, label)]));
}
