(() => {
  "use strict";
  document.documentElement.classList.add("scripted");

  // Sorting: a click on a heading, and another one for the other direction. Rows without a figure stay at the end.
  for (const button of document.querySelectorAll("th button")) {
    button.addEventListener("click", () => {
      const heading = button.closest("th");
      const body = heading.closest("table").tBodies[0];
      const column = heading.cellIndex;
      const down = heading.getAttribute("aria-sort") === "ascending";
      for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => {
        const value = row.cells[column].dataset.value;
        return column && value !== "" ? Number(value) : value;
      };
      const rows = [...body.rows].sort((a, b) => {
        const [left, right] = [key(a), key(b)];
        if (left === "" || right === "") return (left === "") - (right === "");
        return (left < right ? -1 : left > right ? 1 : 0) * (down ? -1 : 1);
      });
      body.append(...rows);
    });
  }

  // One query at a time, with its dots marked in the strips
  const select = document.getElementById("query");
  if (!select) return;
  const show = () => {
    for (const part of document.querySelectorAll(".query")) part.hidden = part.dataset.query !== select.value;
    for (const dot of document.querySelectorAll(".dot[data-query]")) {
      dot.classList.toggle("chosen", dot.dataset.query === select.value);
    }
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
  for (const dot of document.querySelectorAll(".dot[data-query]")) {
    dot.addEventListener("click", () => {
      if (![...select.options].some((option) => option.value === dot.dataset.query)) return;
      select.value = dot.dataset.query;
      show();
    });
  }
  // A browser that comes back to the page keeps what was chosen
  window.addEventListener("pageshow", show);
  show();
})();
