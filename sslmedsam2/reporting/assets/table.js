// The table of series: sorting, filtering, moving about. Text from the input is only ever set as
// text, never as markup.
"use strict";

const qcTable = (() => {
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const byId = new Map(page.series.map((series) => [series.id, series]));
  const statusTones = {
    ok: "good", skipped_resume: "good", fallback: "warn", interrupted: "warn", empty: "bad", failed: "bad",
  };
  const statusWords = { skipped_resume: "ok, from an earlier run" };

  const element = (id) => document.getElementById(id);

  function make(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  const figure = (value, digits) => (value === null ? "" : value.toFixed(digits));
  const statusWord = (status) => statusWords[status] || status;

  function statusBadge(series) {
    return make("span", `status ${statusTones[series.status] || ""}`, statusWord(series.status));
  }

  function fillTold(cell, series) {
    for (const flag of series.flags) {
      const chip = make("span", "flag", flag.replaceAll("_", " "));
      chip.title = series.warnings.filter((warning) => warning.startsWith(`${flag}:`)).join("\n");
      cell.append(chip);
    }
    const told = series.problem || series.error;
    if (told) {
      const text = make("span", "told", told);
      text.title = told;
      cell.append(text);
    }
  }

  function fillCase(cell, series) {
    const link = make("a", "", series.case);
    link.href = `#series-${series.id}`;
    cell.append(link);
  }

  const columns = [
    { name: "Case", value: (s) => s.case, fill: fillCase },
    { name: "Sequence", value: (s) => s.sequence },
    { name: "Vendor", value: (s) => s.vendor },
    { name: "Status", value: (s) => s.status, fill: (cell, s) => cell.append(statusBadge(s)) },
    { name: "Warnings and errors", value: (s) => -s.flags.length - (s.error || s.problem ? 100 : 0), fill: fillTold },
    { name: "Liver ml", value: (s) => s.volume_ml, digits: 0 },
    { name: "Confidence", value: (s) => s.confidence, digits: 3 },
    { name: "Dice", value: (s) => s.dice, digits: 4, scored: true },
    { name: "HD mm", value: (s) => s.hausdorff_mm, digits: 1, scored: true },
    { name: "Seconds", value: (s) => s.seconds, digits: 1 },
  ].filter((column) => page.scored || !column.scored);

  const filters = [
    { id: "filter-status", values: (s) => [s.status], word: statusWord },
    { id: "filter-vendor", values: (s) => [s.vendor || "none"] },
    { id: "filter-sequence", values: (s) => [s.sequence] },
    { id: "filter-flag", values: (s) => (s.flags.length ? s.flags : ["none"]), word: (flag) => flag.replaceAll("_", " ") },
  ];

  function makeRow(series) {
    const row = make("tr");
    row.dataset.id = series.id;
    for (const column of columns) {
      const cell = make("td", column.digits === undefined ? "" : "figure");
      const value = column.value(series);
      if (column.fill) column.fill(cell, series);
      else cell.textContent = column.digits === undefined ? value || "" : figure(value, column.digits);
      row.append(cell);
    }
    row.addEventListener("click", () => { location.hash = `series-${series.id}`; });
    return row;
  }

  const rows = page.series.map((series) => ({ series, row: makeRow(series), text: searchText(series) }));
  let sorting = null;
  let shown = [];

  function searchText(series) {
    const parts = [series.case, series.sequence, series.vendor, series.status, ...series.warnings, series.error, series.problem];
    return parts.filter(Boolean).join("\n").toLowerCase();
  }

  function compare(one, other) {
    const { value } = sorting.column;
    return qcSorting.compare(value(one.series), value(other.series), sorting.down);
  }

  function isWanted({ series, text }) {
    if (!text.includes(element("search").value.trim().toLowerCase())) return false;
    return filters.every((filter) => {
      const wanted = element(filter.id).value;
      return wanted === "" || filter.values(series).includes(wanted);
    });
  }

  function refresh() {
    const wanted = rows.filter(isWanted);
    if (sorting) wanted.sort(compare);
    shown = wanted.map(({ series }) => series);
    element("rows").replaceChildren(...wanted.map(({ row }) => row));
    element("none-shown").hidden = wanted.length > 0;
    element("shown-count").textContent = `${wanted.length} of ${rows.length} series`;
    for (const heading of element("headings").children) {
      const isSorted = sorting && sorting.column.name === heading.dataset.name;
      qcSorting.mark(heading, isSorted ? sorting.down : null);
    }
    for (const button of element("counts").children) {
      button.setAttribute("aria-pressed", String(button.dataset.status === element("filter-status").value));
    }
  }

  function sortBy(column) {
    const again = sorting && sorting.column === column;
    sorting = { column, down: again ? !sorting.down : false };
    refresh();
  }

  function fillHeadings() {
    for (const column of columns) {
      const heading = make("th", column.digits === undefined ? "" : "figure");
      heading.scope = "col";
      heading.dataset.name = column.name;
      heading.append(qcSorting.makeButton(column.name, () => sortBy(column)));
      element("headings").append(heading);
    }
  }

  function fillFilters() {
    for (const filter of filters) {
      const select = element(filter.id);
      select.append(new Option("all", ""));
      const values = [...new Set(page.series.flatMap(filter.values))].sort();
      for (const value of values) select.append(new Option(filter.word ? filter.word(value) : value, value));
      select.addEventListener("change", refresh);
    }
    element("search").addEventListener("input", refresh);
    // The fields are empty only after the event.
    element("filters").addEventListener("reset", () => setTimeout(refresh));
    element("filters").addEventListener("submit", (event) => event.preventDefault());
    element("worst-first").addEventListener("click", () => { sorting = null; refresh(); });
  }

  function fillSummary() {
    for (const [status, count] of Object.entries(page.counts)) {
      const button = make("button");
      button.type = "button";
      button.dataset.status = status;
      button.append(make("strong", "", String(count)), make("span", `status ${statusTones[status] || ""}`, statusWord(status)));
      button.addEventListener("click", () => {
        const select = element("filter-status");
        select.value = select.value === status ? "" : status;
        refresh();
      });
      element("counts").append(button);
    }
    for (const [name, value] of page.run) {
      element("run-facts").append(make("dt", "", name), make("dd", "", value));
    }
    const facts = new Map(page.run);
    element("run-line").textContent = ["Model", "Device", "Software", "Started"]
      .filter((name) => facts.has(name)).map((name) => facts.get(name)).join(" \u00b7 ");
    for (const note of page.notes) element("notes").append(make("li", "", note));
    element("notes").hidden = page.notes.length === 0;
  }

  function fillLeftOut() {
    const tones = { left_out: "", unusable: "bad" };
    for (const item of page.left_out) {
      const row = make("tr");
      const images = item.images === null ? "" : String(item.images);
      row.append(
        make("td", "", item.case), make("td", "name", item.series), make("td", "", item.sequence || ""),
        make("td", "figure", images), make("td"), make("td", "", item.reason),
      );
      row.children[4].append(make("span", `status ${tones[item.use] || ""}`, item.use.replaceAll("_", " ")));
      element("left-out-rows").append(row);
    }
    const count = page.left_out.length;
    element("left-out-line").textContent = `${count} series not segmented, and why`;
    element("left-out").hidden = count === 0;
  }

  function moveWithArrows(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || event.target.tagName !== "A") return;
    const links = [...element("rows").querySelectorAll("a")];
    const next = links[links.indexOf(event.target) + step];
    if (next) next.focus();
    event.preventDefault();
  }

  fillSummary();
  fillLeftOut();
  fillHeadings();
  fillFilters();
  element("rows").addEventListener("keydown", moveWithArrows);
  refresh();

  return {
    element,
    make,
    figure,
    statusBadge,
    byId,
    // The series as the table shows them now, for "previous" and "next".
    shown: () => shown,
    focus: (id) => {
      const link = document.querySelector(`tr[data-id="${id}"] a`);
      if (link) link.focus();
    },
  };
})();
