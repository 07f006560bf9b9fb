// The page of a retraining is complete without a script. This one makes its tables sortable, and
// opens the part that a link leads to.
"use strict";

(() => {
  // A cell of figures says its number; an empty one has none.
  function valueOf(cell) {
    const number = cell.dataset.value;
    const shown = number === undefined ? cell.textContent : number;
    if (shown === "") return null;
    return number === undefined ? shown : Number(number);
  }

  function makeSortable(table) {
    const headings = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    let sorted = { index: -1, down: false };

    function sortBy(index) {
      sorted = { index, down: sorted.index === index && !sorted.down };
      const value = (row) => valueOf(row.cells[index]);
      const rows = [...body.rows];
      rows.sort((one, other) => qcSorting.compare(value(one), value(other), sorted.down));
      body.replaceChildren(...rows);
      headings.forEach((heading, place) => qcSorting.mark(heading, place === index ? sorted.down : null));
    }

    headings.forEach((heading, index) => {
      heading.replaceChildren(qcSorting.makeButton(heading.textContent, () => sortBy(index)));
    });
  }

  function openLinked() {
    const part = document.getElementById(location.hash.slice(1));
    if (part && part.tagName === "DETAILS") part.open = true;
  }

  document.querySelectorAll("table.sortable").forEach(makeSortable);
  window.addEventListener("hashchange", openLinked);
  openLinked();
})();
