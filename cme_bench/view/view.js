"use strict";
// The page's only script. It asks for the state of the runs and shows it; texts become text nodes, never markup.
(() => {
  const EVERY = 2000; // ms between two questions
  const at = (id) => document.getElementById(id);
  const [table, filter, sort, report, all, empty] = ["runs", "filter", "sort", "report", "all", "empty"].map(at);

  const make = (tag, className, ...children) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    node.append(...children.map((c) => (c instanceof Node ? c : String(c))));
    return node;
  };

  let state = { runs: [], notes: [], root: "", seen: "" };
  let skew = 0; // the server's clock less this one's, in seconds
  let asked = 0; // counts questions, so that a late answer does not overwrite a later one
  const opened = new Set();
  const marked = new Set();
  const bodies = new Map(); // id -> tbody
  const drawn = new Map(); // id -> what it was drawn from
  let order = { key: "state", down: false };

  const count = (n) => Math.round(n).toLocaleString("en");
  const short = (n) => (n >= 1e6 ? `${(n / 1e6).toFixed(1)}M` : n >= 1e4 ? `${(n / 1e3).toFixed(0)}k` : n >= 10 ? count(n) : n.toFixed(1));
  const span = (s) => (s >= 172800 ? `${Math.round(s / 86400)} d` : s >= 5400 ? `${(s / 3600).toFixed(1)} h` : s >= 90 ? `${Math.round(s / 60)} min` : `${Math.max(0, Math.round(s))} s`);
  const percent = (run) => (run.total ? (100 * run.done) / run.total : 0);

  const STATES = ["running", "preparing", "incomplete", "stopped", "broken", "finished"];
  const age = (run) => (run.changed === null ? 0 : Date.now() / 1000 + skew - run.changed);
  // key -> [name, value of a run, whether the largest comes first]
  const KEYS = {
    state: ["state", (run) => STATES.indexOf(run.state) * 1e12 + age(run), false],
    name: ["name", (run) => run.name.toLowerCase(), false],
    progress: ["progress", percent, true],
    score: ["score", (run) => run.scores[0]?.value ?? null, true],
    age: ["age", age, false],
  };
  for (const [key, [name]] of Object.entries(KEYS)) sort.append(new Option(name, key));

  function bar(score, partial) {
    const track = make("div", partial ? "track partial" : "track");
    if (!score.places) return make("span", "sub", "");
    const [value, low, high] = score.places;
    const [fill, whisker] = [make("i", ""), make("b", "")];
    fill.style.width = `${value}%`;
    whisker.style.left = `${low}%`;
    whisker.style.width = `${high - low}%`;
    track.append(fill, whisker);
    track.role = "img";
    track.ariaLabel = `${score.text}, 95 % interval ${score.interval}`;
    track.title = track.ariaLabel;
    return track;
  }

  function scored(score, partial, label) {
    const cell = make("div", "score", bar(score, partial), make("span", "text", score.text));
    if (label) cell.append(make("span", "sub", label));
    return cell;
  }

  function progress(run) {
    const parts = [];
    if (run.total) {
      const [track, fill] = [make("div", "progress"), make("i", "")];
      fill.style.width = `${percent(run)}%`;
      track.append(fill);
      track.role = "progressbar";
      track.ariaValueNow = Math.round(percent(run));
      track.ariaLabel = `Progress of ${run.name}`;
      parts.push(track);
    }
    const facts = [];
    if (run.total) facts.push(`${count(run.done)} of ${count(run.total)}`, `${run.tasks_done} of ${run.tasks} tasks`);
    if (run.tokens_per_second) facts.push(`${short(run.tokens_per_second)} tokens/s`);
    else if (run.items_per_second) facts.push(`${short(run.items_per_second)} answers/s`);
    if (run.seconds_left !== null) facts.push(`about ${span(run.seconds_left)} left`);
    if (run.resumable) facts.push("resumable");
    parts.push(make("div", "sub", facts.join(" · ")));
    return parts;
  }

  function tasks(run) {
    if (!run.rows) return make("p", "sub", run.fault || "…");
    const head = make("tr", "", ...["task", "domain", "progress", "score, 95 % interval"].map((name, i) => {
      const cell = make("th", i === 1 || i === 2 ? "hide" : "", name);
      cell.scope = "col";
      return cell;
    }));
    const rows = run.rows.map((task) => {
      const name = make("th", "", task.name);
      name.scope = "row";
      const how = task.fault || (task.finished ? count(task.total) : `${count(task.done)} of ${count(task.total)}`);
      const score = make("td", "");
      if (task.score) score.append(scored(task.score, !task.finished, task.finished ? "" : `so far, ${how}`));
      else score.append(make("span", "sub", task.done ? `no score yet, ${how}` : "–"));
      return make("tr", "", name, make("td", "hide", task.domain), make("td", "hide", how), score);
    });
    const notes = run.notes.map((note) => make("p", "sub", note));
    return [make("table", "", make("thead", "", head), make("tbody", "", ...rows)), ...notes];
  }

  function draw(run) {
    const text = JSON.stringify([run, opened.has(run.id)]);
    if (drawn.get(run.id) === text) return;
    drawn.set(run.id, text);
    let body = bodies.get(run.id);
    if (!body) {
      body = make("tbody", "");
      body.dataset.id = run.id;
      bodies.set(run.id, body);
    }
    const focused = body.contains(document.activeElement) ? document.activeElement.dataset.part : null;
    const open = opened.has(run.id);
    const [mark, name] = [make("input", "mark"), make("button", "name", run.name)];
    Object.assign(mark, { type: "checkbox", checked: marked.has(run.id), disabled: !run.reportable });
    mark.ariaLabel = `Mark ${run.name}`;
    mark.dataset.part = "mark";
    mark.addEventListener("change", () => {
      if (mark.checked) marked.add(run.id); else marked.delete(run.id);
      tools();
    });
    name.type = "button";
    name.dataset.part = "name";
    name.ariaExpanded = open;
    name.addEventListener("click", () => {
      if (opened.has(run.id)) opened.delete(run.id); else opened.add(run.id);
      draw({ ...run, rows: null });
      ask();
    });
    const who = [run.model, run.adapter].filter(Boolean).join(" + ");
    const partial = run.state !== "finished";
    const several = run.scores.length > 1;
    const cells = [
      make("td", "mark-cell", mark),
      make("td", "run", name, make("div", "sub", run.fault || who)),
      make("td", "", make("span", `state ${run.state}`, run.state)),
      make("td", "progress-cell", ...progress(run)),
      make("td", "score-cell", ...run.scores.map((s) => scored(s, partial, several ? s.form : ""))),
      make("td", "age-cell age", run.changed === null ? "now" : span(age(run))),
    ];
    body.replaceChildren(make("tr", "main", ...cells));
    if (open) {
      const cell = make("td", "", ...[tasks(run)].flat());
      cell.colSpan = cells.length;
      body.append(make("tr", "detail", cell));
    }
    if (focused) body.querySelector(`[data-part=${focused}]`).focus({ preventScroll: true });
  }

  const shown = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    return state.runs.filter((run) => {
      const text = [run.name, run.model, run.adapter, run.state].join(" ").toLowerCase();
      return words.every((word) => text.includes(word));
    });
  };

  function tools() {
    const n = state.runs.filter((run) => marked.has(run.id) && run.reportable).length;
    report.disabled = n === 0;
    report.textContent = n > 1 ? `Compare ${n} runs` : n === 1 ? "Open report" : "Compare";
    const here = shown().filter((run) => run.reportable);
    all.checked = here.length > 0 && here.every((run) => marked.has(run.id));
  }

  function arrange() {
    const [, value] = KEYS[order.key];
    const rank = (run) => value(run);
    const runs = shown().sort((a, b) => {
      const [x, y] = [rank(a), rank(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      const by = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y;
      return (order.down ? -by : by) || a.name.localeCompare(b.name, "en", { numeric: true });
    });
    const wanted = runs.map((run) => bodies.get(run.id));
    const present = [...table.tBodies];
    if (wanted.length !== present.length || wanted.some((body, i) => body !== present[i])) {
      const focus = document.activeElement;
      present.forEach((body) => body.remove());
      table.append(...wanted);
      if (table.contains(focus)) focus.focus({ preventScroll: true });
    }
    empty.hidden = runs.length > 0;
    empty.textContent = state.runs.length ? "No run passes the filter." : "No run yet. A run that is started shows up here.";
    for (const head of table.tHead.querySelectorAll("th[data-key]")) {
      if (head.dataset.key === order.key) head.setAttribute("aria-sort", order.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    sort.value = order.key;
    tools();
  }

  function totals() {
    const of = (name) => state.runs.filter((run) => run.state === name).length;
    const parts = [`${count(state.runs.length)} run${state.runs.length === 1 ? "" : "s"}`];
    for (const name of STATES) if (of(name)) parts.push(`${of(name)} ${name}`);
    const speed = state.runs.reduce((sum, run) => sum + (run.tokens_per_second ?? 0), 0);
    if (speed) parts.push(`${short(speed)} tokens/s`);
    at("totals").textContent = parts.join(" · ");
    at("totals").classList.remove("gone");
    at("root").textContent = state.root;
    document.title = of("running") ? `(${of("running")} running) cme-bench` : "cme-bench: runs";
    at("notes").replaceChildren(...state.notes.map((note) => make("li", "", note)));
  }

  function show() {
    const ids = new Set(state.runs.map((run) => run.id));
    for (const id of [...bodies.keys()]) {
      if (ids.has(id)) continue;
      bodies.get(id).remove();
      [bodies, drawn].forEach((map) => map.delete(id));
      [opened, marked].forEach((set) => set.delete(id));
    }
    state.runs.forEach(draw);
    totals();
    arrange();
  }

  async function ask() {
    const turn = ++asked;
    const query = new URLSearchParams([...opened].map((id) => ["open", id]));
    query.set("seen", state.seen);
    try {
      const answer = await fetch(`state.json?${query}`, { credentials: "omit" });
      if (!answer.ok) throw new Error(answer.status);
      const found = await answer.json();
      if (turn !== asked) return;
      skew = found.now - Date.now() / 1000;
      if (found.runs) {
        state = found;
        show();
      } else {
        totals();
        ages();
      }
    } catch {
      if (turn !== asked) return;
      at("totals").textContent = "cme-bench view has ended: start it again, and open the address that it prints.";
      at("totals").classList.add("gone");
      state.seen = "";
    }
    document.documentElement.dataset.ready = "true";
  }

  function ages() {
    for (const run of state.runs) {
      const cell = bodies.get(run.id)?.querySelector(".age-cell");
      if (cell && run.changed !== null) cell.textContent = span(age(run));
    }
  }

  function sorted(key) {
    order = order.key === key ? { key, down: !order.down } : { key, down: KEYS[key][2] };
    arrange();
  }
  for (const head of table.tHead.querySelectorAll("th[data-key]")) {
    head.querySelector("button").addEventListener("click", () => sorted(head.dataset.key));
  }
  sort.addEventListener("change", () => { order = { key: sort.value, down: KEYS[sort.value][2] }; arrange(); });
  filter.addEventListener("input", arrange);
  at("tools").addEventListener("submit", (event) => event.preventDefault());
  all.addEventListener("change", () => {
    for (const run of shown()) {
      if (!run.reportable) continue;
      if (all.checked) marked.add(run.id); else marked.delete(run.id);
      const box = bodies.get(run.id).querySelector("input.mark");
      box.checked = all.checked;
    }
    tools();
  });
  report.addEventListener("click", () => {
    const chosen = state.runs.filter((run) => marked.has(run.id) && run.reportable);
    location.href = `report?${new URLSearchParams(chosen.map((run) => ["run", run.id]))}`;
  });

  const tick = async () => {
    if (!document.hidden) await ask();
    setTimeout(tick, EVERY);
  };
  document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });
  tick();
})();
