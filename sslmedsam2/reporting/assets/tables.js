// Tables whose headings sort them, the same on all pages.
"use strict";

const qcTables = (() => {
  const restorers = new Map();

  // A cell of figures says its number; an empty one has none.
  function valueOf(cell) {
    const number = cell.dataset.value;
    const shown = number === undefined ? cell.textContent : number;
    if (shown === "") return null;
    return number === undefined ? shown : Number(number);
  }

  function compare(a, b, down) {
    // What has no value comes last, whichever way the column is sorted.
    if (a === null || b === null) return (a === null) - (b === null);
    const order = typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
    return down ? -order : order;
  }

  function makeSortable(table) {
    const headings = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    const given = [...body.rows];
    let sorted = { index: -1, down: false };

    function show(rows) {
      body.replaceChildren(...rows);
      headings.forEach((heading, index) => {
        if (index === sorted.index) heading.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
        else heading.removeAttribute("aria-sort");
      });
    }

    function sortBy(index) {
      sorted = { index, down: sorted.index === index && !sorted.down };
      const keyed = given.map((row) => ({ row, value: valueOf(row.cells[index]) }));
      keyed.sort((one, other) => compare(one.value, other.value, sorted.down));
      show(keyed.map(({ row }) => row));
    }

    headings.forEach((heading, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = heading.textContent;
      button.addEventListener("click", () => sortBy(index));
      heading.replaceChildren(button);
    });
    restorers.set(table, () => { sorted = { index: -1, down: false }; show(given); });
  }

  document.querySelectorAll("table.sortable").forEach(makeSortable);

  // Return to the order of the page.
  return { restore: (table) => restorers.get(table)() };
})();
