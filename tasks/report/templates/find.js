"use strict";
(() => {
  const box = document.getElementById("find"), said = document.getElementById("found");
  const rows = [...document.querySelectorAll("tr[data-source]")];
  const passages = [...document.querySelectorAll("ol.passages > li")];
  const queries = [...document.querySelectorAll("section.query")];
  const folds = [...document.querySelectorAll("details")];
  const wasOpen = new Map(folds.map((each) => [each, each.open]));
  const texts = new Map();
  const textOf = (element) => {
    if (!texts.has(element)) texts.set(element, element.textContent.toLowerCase());
    return texts.get(element);
  };
  const asked = (query) => `${query.querySelector("h3").textContent} ${query.querySelector("pre").textContent}`.toLowerCase();
  const find = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (text) => words.every((word) => text.includes(word));
    const whole = new Set(queries.filter((query) => fits(asked(query))));
    for (const element of [...rows, ...passages])
      element.hidden = !whole.has(element.closest("section.query")) && !fits(textOf(element));
    for (const query of queries)
      query.hidden = !whole.has(query) && ![...query.querySelectorAll("ol.passages > li")].some((each) => !each.hidden);
    for (const folded of folds)
      folded.open = words.length
        ? [...folded.querySelectorAll("tr[data-source], ol.passages > li")].some((each) => !each.hidden)
        : wasOpen.get(folded);
    const shown = (elements) => elements.filter((each) => !each.hidden).length;
    said.textContent = words.length ? `${shown(queries)} of ${queries.length} queries, ${shown(passages)} of ${passages.length} passages` : "";
  };
  box.addEventListener("input", find);
  document.addEventListener("click", (event) => {
    const chosen = event.target.closest("button[data-find]");
    if (!chosen) return;
    box.value = chosen.dataset.find;
    find();
    box.focus();
  });
  document.querySelectorAll("button[data-find]").forEach((each) => { each.disabled = false; });
  box.closest("p").hidden = false;
})();
