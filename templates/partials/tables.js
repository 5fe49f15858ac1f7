// Tables of class "sortable": a header orders the rows of every body by its column.
{
  const numberOf = (text) => {
    const found = text.replaceAll(",", "").replace("−", "-").match(/^[+-]?\d+(\.\d+)?(e[+-]?\d+)?/i);
    return found ? Number(found[0]) : null;
  };
  const inOrder = (one, other) => {
    if (!one || !other || one === "–" || other === "–") return 0;
    const [a, b] = [numberOf(one), numberOf(other)];
    return a != null && b != null ? a - b : one.localeCompare(other, undefined, { numeric: true });
  };
  const sort = (table, head, column) => {
    const first = head.classList.contains("number") ? "descending" : "ascending";
    const second = first === "ascending" ? "descending" : "ascending";
    const direction = head.getAttribute("aria-sort") === first ? second : first;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    const textOf = (row) => row.cells[column]?.textContent.trim() ?? "";
    const absent = (text) => !text || text === "–";
    for (const body of table.tBodies) {
      const rows = [...body.rows].filter((row) => !row.classList.contains("band"));
      rows.sort((a, b) => absent(textOf(a)) - absent(textOf(b)) || sign * inOrder(textOf(a), textOf(b)));
      body.append(...rows);
    }
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      if (!head.textContent.trim() || head.querySelector("a")) return;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, head, column));
      head.append(button);
    });
  }
}
