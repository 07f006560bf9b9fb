// Sorting tables by their headings, the same on all pages.
"use strict";

const qcSorting = (() => {
  function compare(a, b, down) {
    // What has no value comes last, whichever way the column is sorted.
    if (a === null || b === null) return (a === null) - (b === null);
    const order = typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
    return down ? -order : order;
  }

  // Show in a heading that its column is sorted; "down" is null for one that is not.
  function mark(heading, down) {
    if (down === null) heading.removeAttribute("aria-sort");
    else heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  }

  function makeButton(name, action) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.addEventListener("click", action);
    return button;
  }

  return { compare, mark, makeButton };
})();
