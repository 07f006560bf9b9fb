// Opens the part of the page that a link leads to.
"use strict";

(() => {
  function openLinked() {
    const part = document.getElementById(location.hash.slice(1));
    if (part && part.tagName === "DETAILS") part.open = true;
  }

  window.addEventListener("hashchange", openLinked);
  openLinked();
})();
