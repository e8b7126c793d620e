// Sorts by data-value where a cell has one, else by its text; numbers before words, cells without a value last.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
  const key = (row, column) => {
    const cell = row.cells[column];
    const text = (cell.dataset.value ?? cell.textContent).trim();
    return { text, number: text === "" ? NaN : Number(text.replace("\u2212", "-")) };
  };
  const empty = entry => entry.text === "" || entry.text === "\u2013" || entry.text === "nan";
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const descending = header.getAttribute("aria-sort") === "ascending";
      for (const other of headers) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const sign = descending ? -1 : 1;
      const rows = [...body.rows].map(row => [key(row, column), row]);
      rows.sort(([a], [b]) => {
        if (empty(a) || empty(b)) return empty(a) - empty(b);
        const words = isNaN(a.number) - isNaN(b.number);
        if (words) return words;
        return sign * (isNaN(a.number) ? a.text.localeCompare(b.text, undefined, { numeric: true }) : a.number - b.number);
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
}
