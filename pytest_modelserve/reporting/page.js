(() => {
  "use strict";
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (selector) => document.querySelector(selector);
  const gates = all(".gate");
  const text = new Map(gates.map((gate) => [gate, gate.querySelector("summary").textContent.toLowerCase()]));
  const search = one("#search"), model = one("#model"), kind = one("#kind"), groups = all("[data-group]", one("#groups"));
  const shown = () => gates.filter((gate) => !gate.hidden);

  function count() {
    one("#count").textContent = `${shown().length} of ${gates.length} shown`;
  }

  function apply() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const on = new Set(groups.filter((button) => button.getAttribute("aria-pressed") === "true").map((b) => b.dataset.group));
    for (const gate of gates) {
      const data = gate.dataset;
      gate.hidden = (on.size > 0 && !on.has(data.group)) || (model.value !== "" && data.model !== model.value)
        || (kind.value !== "" && data.gate !== kind.value) || !words.every((word) => text.get(gate).includes(word));
    }
    for (const section of all("section.group")) section.hidden = !section.querySelector(".gate:not([hidden])");
    count();
    const state = new URLSearchParams();
    if (search.value) state.set("q", search.value);
    if (model.value) state.set("model", model.value);
    if (kind.value) state.set("gate", kind.value);
    if (on.size) state.set("show", [...on].join("."));
    history.replaceState(null, "", `#${state}`);
  }

  function restore() {
    const state = new URLSearchParams(location.hash.slice(1));
    const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    if (target) { target.open = true; target.scrollIntoView(); count(); return; }
    search.value = state.get("q") || "";
    model.value = state.get("model") || "";
    kind.value = state.get("gate") || "";
    const on = (state.get("show") || "").split(".");
    for (const button of groups) button.setAttribute("aria-pressed", String(on.includes(button.dataset.group)));
    apply();
  }

  function move(step) {
    const list = shown(), at = list.findIndex((gate) => gate.contains(document.activeElement));
    const next = list[at < 0 ? (step > 0 ? 0 : list.length - 1) : Math.min(list.length - 1, Math.max(0, at + step))];
    if (next) next.querySelector("summary").focus();
  }

  search.addEventListener("input", apply);
  for (const choice of [model, kind]) choice.addEventListener("change", apply);
  for (const button of groups) button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
    apply();
  });
  one("#open").addEventListener("click", () => { for (const gate of shown()) gate.open = true; });
  one("#close").addEventListener("click", () => { for (const gate of gates) gate.open = false; });
  one("#reset").addEventListener("click", () => {
    search.value = model.value = kind.value = "";
    for (const button of groups) button.setAttribute("aria-pressed", "false");
    apply();
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(document.activeElement.tagName);
    if (event.key === "Escape" && typing) { document.activeElement.blur(); }
    else if (typing) return;
    else if (event.key === "/") { event.preventDefault(); search.focus(); }
    else if (event.key === "j") move(1);
    else if (event.key === "k") move(-1);
    else if (event.key === "o") { const gate = document.activeElement.closest(".gate"); if (gate) gate.open = !gate.open; }
  });
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = shown().filter((gate) => !gate.open && ["failed", "inconclusive"].includes(gate.dataset.group));
    for (const gate of closed) gate.open = true;
  });
  addEventListener("afterprint", () => { for (const gate of closed) gate.open = false; });
  addEventListener("hashchange", () => { if (document.getElementById(location.hash.slice(1))) restore(); });
  one("#tools").hidden = false;
  restore();
})();
