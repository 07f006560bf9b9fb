// The table of series: filtering and moving about. Text from the input is only ever set as text,
// never as markup.
"use strict";

const qcTable = (() => {
  const { series: allSeries } = JSON.parse(document.getElementById("page-data").textContent);
  const byId = new Map(allSeries.map((series) => [series.id, series]));
  const element = (id) => document.getElementById(id);
  const rows = element("rows");
  const filters = [...document.querySelectorAll("#filters select")];
  const visible = () => [...rows.rows].filter((row) => !row.hidden);

  function make(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  const figure = (value, digits) => (value === null ? "" : value.toFixed(digits));
  const rowOf = (id) => rows.querySelector(`tr[data-id="${id}"]`);

  // "flags" holds several values, each other field one.
  function isWanted({ dataset }, words, chosen) {
    if (!dataset.text.includes(words)) return false;
    return chosen.every(([field, value]) =>
      dataset[field] === value || (field === "flags" && dataset.flags.split(" ").includes(value)));
  }

  function refresh() {
    const words = element("search").value.trim().toLowerCase();
    const chosen = filters.filter(({ value }) => value !== "").map(({ dataset, value }) => [dataset.field, value]);
    for (const row of [...rows.rows]) row.hidden = !isWanted(row, words, chosen);
    const count = visible().length;
    element("none-shown").hidden = count > 0;
    element("shown-count").textContent = `${count} of ${rows.rows.length} scans`;
    for (const button of element("counts").children) {
      button.setAttribute("aria-pressed", String(button.dataset.status === element("filter-status").value));
    }
  }

  function filterByStatus(status) {
    const select = element("filter-status");
    select.value = select.value === status ? "" : status;
    refresh();
  }

  function moveWithArrows(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    // Fields use the arrows themselves, and so does an open case.
    if (!step || event.target.matches("input, select, textarea") || event.target.closest("dialog")) return;
    const links = visible().map((row) => row.querySelector("a"));
    const next = links[links.indexOf(event.target) + step] || (links.includes(event.target) ? null : links[0]);
    if (next) next.focus();
    event.preventDefault();
  }

  // Columns that do not fit are announced.
  function tellHiddenColumns() {
    const frame = rows.closest(".table-frame");
    element("more-columns").hidden = frame.scrollWidth <= frame.clientWidth + 1;
  }

  for (const select of filters) select.addEventListener("change", refresh);
  element("search").addEventListener("input", refresh);
  // The fields are empty only after the event.
  element("filters").addEventListener("reset", () => setTimeout(refresh));
  element("filters").addEventListener("submit", (event) => event.preventDefault());
  element("worst-first").addEventListener("click", () => qcTables.restore(rows.closest("table")));
  for (const button of element("counts").children) {
    button.addEventListener("click", () => filterByStatus(button.dataset.status));
  }
  rows.addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row) location.hash = `series-${row.dataset.id}`;
  });
  document.addEventListener("keydown", moveWithArrows);
  window.addEventListener("resize", tellHiddenColumns);
  refresh();
  tellHiddenColumns();

  return {
    element,
    make,
    figure,
    statusBadge: (series) => rowOf(series.id).querySelector(".status").cloneNode(true),
    byId,
    // The series as the table shows them now, for "previous" and "next".
    shown: () => visible().map((row) => byId.get(row.dataset.id)),
    focus: (id) => rowOf(id).querySelector("a").focus(),
  };
})();
