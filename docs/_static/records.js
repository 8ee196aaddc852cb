// The table of the records: sorted by its headings, filtered by what stands above it; the marks of the plots
// lead to their rows. Without this file table and plots are whole, and merely stand still.
"use strict";

function element(kind, settings, ...inside) {
  const made = Object.assign(document.createElement(kind), settings);
  made.append(...inside);
  return made;
}

function value(row, column) {
  const cell = row.cells[column];
  return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim().toLowerCase();
}

function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = element("button", { type: "button" }, ...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => {
        const [x, y] = [value(a, column), value(b, column)];
        return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
      });
      table.tBodies[0].append(...rows);
    });
  });
}

function makeFilters(table, names) {
  const heads = [...table.tHead.rows[0].cells].map((head) => head.textContent.trim());
  const rows = [...table.tBodies[0].rows];
  const status = element("p", { className: "status" });
  status.setAttribute("role", "status");
  const inputs = {};
  const show = () => {
    let shown = 0;
    for (const row of rows) {
      row.hidden = !Object.entries(inputs).every(([name, input]) => {
        const text = row.cells[heads.indexOf(name)].textContent.trim();
        return !input.value || (input.tagName === "INPUT" ? text.includes(input.value.trim()) : text === input.value);
      });
      shown += row.hidden ? 0 : 1;
    }
    status.textContent = `${shown} of ${rows.length} measurements shown`;
    document.querySelectorAll(".mark").forEach((mark) => {
      const out = (inputs.data.value && mark.dataset.data !== inputs.data.value) ||
        !mark.dataset.method.includes(inputs.method.value.trim());
      mark.classList.toggle("faint", Boolean(out));
    });
  };
  const form = element("form", { className: "filters" });
  form.setAttribute("aria-label", "Filter the records");
  for (const name of names) {
    const column = heads.indexOf(name);
    if (name === "method") {
      inputs[name] = element("input", { type: "search", placeholder: "all", autocomplete: "off" });
    } else {
      const found = [...new Set(rows.map((row) => row.cells[column].textContent.trim()))].sort();
      const options = found.map((text) => element("option", { value: text }, text));
      inputs[name] = element("select", {}, element("option", { value: "" }, "all"), ...options);
    }
    inputs[name].addEventListener("input", show);
    form.append(element("label", {}, name, inputs[name]));
  }
  const reset = element("button", { type: "reset" }, "show all");
  form.addEventListener("reset", () => setTimeout(show));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.append(reset);
  table.parentElement.before(form, status);
  show();
  return { inputs, show };
}

// One stop for the tabulator a plot; arrows go from mark to mark, Enter shows the rows of one.
function makePlot(plot, filters) {
  const marks = [...plot.querySelectorAll(".mark")];
  const said = element("p", { className: "said" }, "Arrow keys or a pointer tell the figures; Enter shows the rows.");
  said.setAttribute("aria-live", "polite");
  plot.append(said);
  const tell = (mark) => { said.textContent = mark.getAttribute("aria-label"); };
  const open = (mark) => {
    filters.inputs.method.value = mark.dataset.method;
    filters.inputs.data.value = mark.dataset.data;
    filters.inputs.attack.value = "autoattack";
    filters.show();
    document.querySelector(".filters").scrollIntoView({ block: "start" });
    filters.inputs.method.focus({ preventScroll: true });
  };
  marks.forEach((mark, k) => {
    mark.setAttribute("tabindex", k === 0 ? "0" : "-1");
    mark.setAttribute("role", "button");
    mark.addEventListener("pointerenter", () => tell(mark));
    mark.addEventListener("focus", () => tell(mark));
    mark.addEventListener("click", () => open(mark));
    mark.addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
      if (step) {
        const next = marks[(k + step + marks.length) % marks.length];
        marks.forEach((other) => other.setAttribute("tabindex", other === next ? "0" : "-1"));
        next.focus();
      } else if (event.key === "Enter" || event.key === " ") {
        open(mark);
      } else {
        return;
      }
      event.preventDefault();
    });
  });
}

document.addEventListener("DOMContentLoaded", () => {
  const table = document.querySelector("table.records");
  if (!table) return;
  const filters = makeFilters(table, ["method", "data", "threat", "attack", "weights", "from"]);
  makeSortable(table);
  document.querySelectorAll(".plot").forEach((plot) => makePlot(plot, filters));
});
