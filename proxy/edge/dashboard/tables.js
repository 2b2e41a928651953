// Tables and cards. Text is put in as text: names of models and keys are whatever callers choose.

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

// `columns`: { title, text(row), left, mark(row) }; the first one heads its rows. The caption is for those who do not
// see the heading above. Rows are replaced in one step, so that nothing flickers.
export function fillTable(table, caption, columns, rows, empty = "Nothing yet") {
  const head = element("tr", {}, ...columns.map((column) =>
    element("th", { scope: "col", class: column.left && "left" }, column.title)));
  const lines = rows.map((row) => element("tr", {}, ...columns.map((column, place) => {
    const content = column.text(row);
    const attributes = { class: [column.left && "left", column.mark?.(row)].filter(Boolean).join(" ") || null };
    return place ? element("td", attributes, content) : element("th", { scope: "row", ...attributes }, content);
  })));
  if (!lines.length) {
    lines.push(element("tr", {}, element("td", { colspan: columns.length, class: "left muted" }, empty)));
  }
  table.replaceChildren(
    element("caption", { class: "unseen" }, caption), element("thead", {}, head), element("tbody", {}, ...lines));
}

// `cards`: [title, value, note, mark]. Cards stay the same elements, so that nothing moves when figures come.
export function fillCards(list, cards) {
  while (list.children.length > cards.length) list.lastElementChild.remove();
  cards.forEach(([title, value, note = "", mark = ""], place) => {
    let card = list.children[place];
    if (!card) {
      card = element("div", {}, element("dt"), element("dd", { class: "value" }), element("dd", { class: "note" }));
      list.append(card);
    }
    card.className = mark;
    [title, value, note].forEach((text, part) => {
      if (card.children[part].textContent !== text) card.children[part].textContent = text;
    });
  });
}
