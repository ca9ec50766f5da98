"use strict";
// The page's only script. Text from models and datasets reaches the document as text nodes, never as markup.
(() => {
  const ROW = 28; // height of a row of the list, as in the style sheet
  const KEPT = 24; // opened text blocks that are kept
  const meta = JSON.parse(document.getElementById("meta").textContent);

  const make = (tag, className, ...children) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    node.append(...children.map((c) => (c instanceof Node ? c : String(c))));
    return node;
  };

  async function openBlock(number) {
    const packed = atob(document.getElementById(`block-${number}`).textContent);
    const bytes = Uint8Array.from(packed, (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).json();
  }

  // Tables sort by a click on a column's name: first the highest numbers or the first letters, then reversed.
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const rows = [...table.tBodies[0].rows];
        const value = (row) => row.cells[column].dataset.value;
        const number = (row) => (value(row).trim() === "" ? NaN : Number(value(row)));
        const numeric = rows.some((row) => !Number.isNaN(number(row)));
        const before = head.getAttribute("aria-sort");
        const down = before ? before === "ascending" : numeric;
        const compare = numeric
          ? (a, b) => number(a) - number(b)
          : (a, b) => value(a).localeCompare(value(b), "en", { numeric: true });
        const last = (row) => numeric && Number.isNaN(number(row));
        rows.sort((a, b) => last(a) - last(b) || (down ? compare(b, a) : compare(a, b)));
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        table.tBodies[0].append(...rows);
      });
    });
  }

  for (const choice of document.querySelectorAll(".matrix-choice")) {
    const matrices = choice.closest("section").querySelectorAll(".matrix");
    choice.addEventListener("change", () => {
      matrices.forEach((matrix, i) => { matrix.hidden = i !== Number(choice.value); });
    });
  }

  // Items of one task: a list that holds only the rows in sight, and the selected item beside it.
  const section = document.getElementById("items");
  const heading = document.getElementById("h-items");
  const list = document.getElementById("list");
  const spacer = document.getElementById("spacer");
  const detail = document.getElementById("detail");
  const count = document.getElementById("count");
  const runA = document.getElementById("run-a");
  const runB = document.getElementById("run-b");
  const filter = document.getElementById("filter");
  const goto_ = document.getElementById("goto");
  const [SCORE, EMPTY, LONG, CUT] = [0, 1, 2, 3];

  let task = null; // entry of meta.tasks
  let index = null; // its opened index: ids, and for each run an entry [score, empty, long, cut] an item
  let shown = []; // places in the index that pass the filter
  let selected = 0; // place in `shown`
  let opener = null; // the button that opened the task
  let opening = 0; // counts openings, so that a slow one does not overwrite a later one
  const texts = new Map(); // chunk number -> promise of its items

  meta.runs.forEach((name, i) => {
    runA.append(new Option(name, i));
    runB.append(new Option(name, i));
  });
  runB.append(new Option("none", -1));

  function chunk(number) {
    const key = task.payload.chunks[number];
    const held = texts.get(key) ?? openBlock(key);
    texts.delete(key);
    texts.set(key, held);
    if (texts.size > KEPT) texts.delete(texts.keys().next().value);
    return held;
  }

  const textOf = async (place) => {
    const size = task.payload.chunk;
    return (await chunk(Math.floor(place / size)))[place % size];
  };

  const gain = (a, b) => task.sign * (b[SCORE] - a[SCORE]);
  const TESTS = {
    all: () => true,
    wrong: (a) => a && a[SCORE] < 1,
    right: (a) => a && a[SCORE] === 1,
    flipped: (a, b) => a && b && a[SCORE] !== b[SCORE],
    worse: (a, b) => a && b && gain(a, b) < 0,
    better: (a, b) => a && b && gain(a, b) > 0,
    empty: (a) => a && a[EMPTY],
    length: (a) => a && a[LONG],
    truncated: (a) => a && a[CUT],
  };

  const sides = () => [Number(runA.value), Number(runB.value)].filter((run, i, all) => run >= 0 && all.indexOf(run) === i);

  function applyFilter(keep) {
    const [a, b] = [index.runs[Number(runA.value)], index.runs[Number(runB.value)]];
    const passes = TESTS[filter.value];
    shown = [...index.ids.keys()].filter((i) => passes(a[i], b ? b[i] : null));
    selected = Math.max(0, shown.indexOf(keep));
    count.textContent = `${shown.length.toLocaleString("en")} of ${index.ids.length.toLocaleString("en")} items`;
    spacer.style.height = `${shown.length * ROW}px`;
    reveal();
  }

  function reveal() {
    const top = selected * ROW;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    draw();
    showDetail();
  }

  function score(entry) {
    if (!entry || entry[SCORE] === null) return make("span", "", "–");
    const value = entry[SCORE];
    return make("span", value >= 1 ? "right" : value <= 0 ? "wrong" : "", value >= 1 ? "✓" : value <= 0 ? "✗" : value.toFixed(2));
  }

  function draw() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 5);
    const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 5);
    const rows = [];
    for (let at = first; at < last; at++) {
      const place = shown[at];
      const preview = make("span", "preview");
      const row = make("div", "row", make("span", "", index.ids[place]),
        ...sides().map((run) => score(index.runs[run][place])), preview);
      row.id = `item-${at}`;
      row.role = "option";
      row.style.top = `${at * ROW}px`;
      row.setAttribute("aria-selected", at === selected);
      row.setAttribute("aria-posinset", at + 1);
      row.setAttribute("aria-setsize", shown.length);
      row.addEventListener("click", () => { selected = at; reveal(); });
      fill(preview, place);
      rows.push(row);
    }
    spacer.replaceChildren(...rows);
    if (shown.length) list.setAttribute("aria-activedescendant", `item-${selected}`);
    else list.removeAttribute("aria-activedescendant");
  }

  async function fill(preview, place) {
    const item = await textOf(place);
    const answers = sides().map((run) => item.runs[run]).filter(Boolean).map((run) => run.answer.slice(0, 80) || "(none)");
    preview.textContent = [...new Set(answers)].join(" | ");
  }

  async function showDetail() {
    const turn = ++opening;
    if (!shown.length) {
      detail.replaceChildren(make("p", "", "No item passes this filter."));
      return;
    }
    const place = shown[selected];
    const item = await textOf(place);
    if (turn !== opening) return;
    const parts = [make("h3", "", `${task.name}, item ${item.id}`)];
    const chosen = sides();
    const asked = [...new Set(chosen.map((run) => item.runs[run]?.q).filter((q) => q !== undefined))];
    if (asked.length === 1) parts.push(...question(item.questions[asked[0]]));
    const columns = make("div", "sides");
    for (const run of chosen) {
      const answer = item.runs[run];
      const side = make("section", "", make("h3", "", meta.runs[run], " ", score(index.runs[run][place])));
      if (!answer) side.append(make("p", "", "This run has no such item."));
      else {
        if (asked.length > 1) side.append(...question(item.questions[answer.q]));
        side.append(...response(answer, item.questions[answer.q]));
      }
      columns.append(side);
    }
    detail.replaceChildren(...parts, columns);
    detail.scrollTop = 0;
  }

  const labelled = (name, text) => [make("div", "", make("small", "", name)), make("pre", "", text)];

  // The images of a prompt, in the order of their marks: small copies, or the first letters of their digests.
  function pictures(asked) {
    if (!asked.images) return [];
    const row = make("div", "pictures");
    asked.images.forEach(([digest, block], i) => {
      if (block === null) return row.append(make("code", "", digest));
      const picture = make("img", "");
      picture.alt = `image ${i + 1} of the prompt`;
      picture.title = digest;
      openBlock(block).then((data) => { picture.src = data; });
      row.append(picture);
    });
    return [make("div", "", make("small", "", asked.images.length > 1 ? "images" : "image")), row];
  }

  const question = (asked) =>
    [...pictures(asked), ...labelled("prompt", asked.prompt), ...labelled("gold answer", asked.target)];

  function response(answer, asked) {
    const parts = [];
    if (answer.logprobs && asked.choices.length) {
      const table = make("table", "");
      const top = Math.max(...answer.logprobs);
      asked.choices.forEach((choice, i) => {
        const best = answer.logprobs[i] === top;
        const gold = choice.trim() === asked.target.trim();
        const mark = (best ? "most likely" : "") + (best && gold ? ", " : "") + (gold ? "gold" : "");
        table.append(make("tr", best ? "best" : "", make("td", "text", choice),
          make("td", "", answer.logprobs[i].toFixed(3)), make("td", "text", mark)));
      });
      parts.push(make("div", "", make("small", "", "choices and their log-likelihoods")), table);
    }
    if (answer.repeats) {
      answer.repeats.forEach((each, i) => {
        parts.push(make("h4", "", `answer ${i + 1} of ${answer.repeats.length}`), ...response(each, asked));
      });
      parts.push(make("h4", "", "together"));
    } else if (answer.text !== null) {
      if (answer.thought !== null) {
        const ends = { budget: " (ended by its budget)", unclosed: " (never ended: no answer)" };
        parts.push(...labelled(`thought${ends[answer.thought_end] ?? ""}`, answer.thought));
      }
      parts.push(...labelled(answer.finish === "length" ? "response (cut by the length limit)" : "response", answer.text));
      if (answer.rule !== null) parts.push(...labelled(`extracted by rule: ${answer.rule}`, answer.answer || "(no answer found)"));
    }
    const facts = make("dl", "");
    for (const [name, value] of Object.entries(answer.scores)) {
      facts.append(make("dt", "", name), make("dd", "", typeof value === "number" ? value.toFixed(4) : JSON.stringify(value)));
    }
    if (answer.margin !== null) facts.append(make("dt", "", "margin"), make("dd", "", answer.margin.toFixed(4)));
    if (answer.truncated) facts.append(make("dt", "", "truncated"), make("dd", "", `${answer.truncated} tokens`));
    parts.push(facts);
    return parts;
  }

  async function openTask(name, button) {
    task = meta.tasks.find((t) => t.name === name);
    opener = button;
    texts.clear();
    index = await openBlock(task.payload.index);
    const present = index.runs.map((entries, i) => (entries.some(Boolean) ? i : -1)).filter((i) => i >= 0);
    runA.value = present[0];
    runB.value = present.length > 1 ? present[1] : -1;
    heading.textContent = `Items of ${name} (${task.metric})`;
    section.hidden = false;
    list.scrollTop = 0;
    applyFilter(0);
    section.scrollIntoView();
    list.focus({ preventScroll: true });
  }

  for (const button of document.querySelectorAll("button.open")) {
    button.addEventListener("click", () => openTask(button.dataset.task, button));
  }
  for (const control of [runA, runB, filter]) {
    control.addEventListener("change", () => applyFilter(shown[selected]));
  }
  goto_.addEventListener("change", () => {
    const at = shown.findIndex((place) => index.ids[place] === Number(goto_.value));
    if (at < 0) return;
    selected = at;
    reveal();
  });
  section.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  let frame = 0;
  list.addEventListener("scroll", () => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(draw);
  });
  list.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(list.clientHeight / ROW) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -shown.length, End: shown.length };
    if (event.key === "Escape") {
      opener.scrollIntoView({ block: "center" });
      opener.focus({ preventScroll: true });
    } else if (event.key in steps) {
      selected = Math.min(Math.max(selected + steps[event.key], 0), Math.max(shown.length - 1, 0));
      reveal();
    } else return;
    event.preventDefault();
  });
  document.documentElement.dataset.ready = "true";
})();
