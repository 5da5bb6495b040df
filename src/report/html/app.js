// The page: first what is seen first, then the rest.

readFragment();
document.title = shown(`${report.verdict.toUpperCase()} – Lockstep report`);
const sections = [["findings", "Findings"], ["map", "Map"], ["growth", "Growth"], ["tokens", "Tokens"], ["compared", "Compared"]];
const main = el("main", {}, findingsSection(), mapSection());
const links = el("nav", { class: "sections", "aria-label": "Sections" });
document.body.append(verdictHeader(), links, main, dialog);

function rest() {
  main.append(...[growthSection(), tokensSection(), comparedSection()].filter(Boolean));
  links.append(...sections.filter(([id]) => document.getElementById(id)).map(([id, title]) =>
    // No fragment of its own: that keeps the view.
    el("button", { type: "button", onclick: () => document.getElementById(id).scrollIntoView({ behavior: "smooth" }) }, title)));
  updateTensor();
  document.documentElement.dataset.ready = "yes";
}
requestAnimationFrame(() => setTimeout(rest));
window.addEventListener("hashchange", () => {
  readFragment();
  for (const listener of listeners) listener();
});
