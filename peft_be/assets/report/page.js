(() => {
  "use strict";
  document.documentElement.classList.add("scripted");

  // A click on a heading sorts, with the best first; another click turns the order round. Rows without a figure stay last.
  for (const button of document.querySelectorAll("th button")) {
    button.addEventListener("click", () => {
      const heading = button.closest("th");
      const body = heading.closest("table").tBodies[0];
      const column = heading.cellIndex;
      const [first, second] = heading.dataset.best === "high" ? ["descending", "ascending"] : ["ascending", "descending"];
      const order = heading.getAttribute("aria-sort") === first ? second : first;
      for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", order);
      const key = (row) => {
        const value = row.cells[column].dataset.value;
        return column && value !== "" ? Number(value) : value;
      };
      const rows = [...body.rows].sort((a, b) => {
        const [left, right] = [key(a), key(b)];
        if (left === "" || right === "") return (left === "") - (right === "");
        return (left < right ? -1 : left > right ? 1 : 0) * (order === "descending" ? -1 : 1);
      });
      body.append(...rows);
    });
  }

  // One query at a time
  const select = document.getElementById("query");
  if (!select) return;
  const show = () => {
    for (const part of document.querySelectorAll(".query")) part.hidden = part.dataset.query !== select.value;
    document.getElementById("previous").disabled = select.selectedIndex === 0;
    document.getElementById("next").disabled = select.selectedIndex === select.length - 1;
  };
  const step = (by) => {
    select.selectedIndex += by;
    show();
  };
  select.addEventListener("change", show);
  document.getElementById("previous").addEventListener("click", () => step(-1));
  document.getElementById("next").addEventListener("click", () => step(1));
  // A browser that comes back to the page keeps what was chosen
  window.addEventListener("pageshow", show);
  show();
})();
