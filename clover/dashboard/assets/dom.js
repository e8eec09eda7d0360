// Elements are made and filled by these alone: text is always text, and nothing is parsed as HTML.

export const byId = (id) => document.getElementById(id);

export function el(name, properties = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "text") node.textContent = value;
    else if (key === "class") node.className = value;
    else if (key === "data") Object.assign(node.dataset, value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// A text that does not change is not set again: a screen reader would read it out, and a selection would be lost.
export function say(node, text) {
  const wanted = text ?? "";
  if (node.textContent !== wanted) node.textContent = wanted;
}

export function show(node, shown) {
  if (node.hidden === shown) node.hidden = !shown;
}

// Fills the rows of a table: each row is a list of cells, each of them a text or {text, class, title}.
export function fill(body, rows, none) {
  const wanted = rows.length ? rows : [[{ text: none, class: "note", span: true }]];
  while (body.rows.length > wanted.length) body.deleteRow(-1);
  wanted.forEach((cells, index) => {
    const row = body.rows[index] ?? body.insertRow();
    while (row.cells.length > cells.length) row.deleteCell(-1);
    cells.forEach((cell, at) => {
      const made = typeof cell === "object" && cell !== null ? cell : { text: cell };
      const node = row.cells[at] ?? row.insertCell();
      say(node, String(made.text ?? ""));
      if (node.className !== (made.class ?? "")) node.className = made.class ?? "";
      node.title = made.title ?? "";
      node.colSpan = made.span ? body.parentElement.tHead.rows[0].cells.length : 1;
    });
  });
}

export function clone(id) {
  return byId(id).content.firstElementChild.cloneNode(true);
}
