// A log of any length in a window of a few hundred rows: what is scrolled to is fetched by cursor, what is
// far away is dropped, and what is said meanwhile is appended while the window is at the log's end.

const KEPT = 600;
const PAGE = 200;
const NEAR = 400; // pixels from an edge at which the next page is fetched

export class Log {
  constructor(box) {
    this.box = box;
    this.form = document.getElementById("log-filter");
    this.follow = document.getElementById("follow");
    this.newest = document.getElementById("log-newest");
    this.seen = Number(box.dataset.cursor);
    this.older = box.hasAttribute("data-older");
    this.atEnd = true;
    this.missed = 0;
    this.lastMissed = 0;
    this.waiting = [];
    this.turn = 0; // another one makes answers to what was asked before it worthless
    this.busy = false;
    this.follow.closest("label").hidden = false;
    document.querySelector(".more-lines")?.remove();
    this.form.querySelector("button").hidden = true;
    box.scrollTop = box.scrollHeight;
    box.addEventListener("scroll", () => this.scrolled(), { passive: true });
    this.newest.addEventListener("click", () => this.reload());
    this.follow.addEventListener("change", () => { if (this.follow.checked) this.reload(); });
    this.form.addEventListener("submit", (event) => { event.preventDefault(); this.reload(); });
    let rest = 0;
    this.form.addEventListener("input", (event) => {
      if (event.target === this.follow) return;
      clearTimeout(rest);
      rest = setTimeout(() => this.reload(), event.target.type === "search" ? 250 : 0);
    });
  }

  // --- what is said now

  take(line) {
    if (line.cursor <= this.seen) return;
    this.seen = line.cursor;
    if (!this.wants(line)) return;
    if (!this.atEnd) { this.miss(line); return; }
    this.waiting.push(line);
    if (this.waiting.length > KEPT) { this.waiting.shift(); this.jumped = true; }
    this.frame ??= requestAnimationFrame(() => this.flush());
  }

  // More was said than is shown: go on at the newest lines, or say that there are some.
  skipped() {
    if (this.atEnd && this.follow.checked) { this.waiting = []; this.jumped = true; }
    else { this.atEnd = false; this.tell(); }
  }

  flush() {
    this.frame = null;
    const lines = this.waiting.splice(0).filter((line) => line.cursor > this.lastCursor());
    if (!this.follow.checked && this.box.childElementCount + lines.length > 2 * KEPT) {
      lines.forEach((line) => this.miss(line));
      this.atEnd = false;
      return;
    }
    if (this.jumped) { this.box.replaceChildren(); this.older = true; this.jumped = false; }
    this.append(lines);
    if (this.follow.checked) { this.trimTop(); this.box.scrollTop = this.box.scrollHeight; }
  }

  miss(line) {
    this.missed += 1;
    this.lastMissed = line.cursor;
    this.tell();
  }

  tell() {
    this.newest.hidden = this.atEnd && this.follow.checked;
    this.newest.textContent = this.missed ? `Newest (${this.missed} more)` : "Newest";
  }

  // --- what was said before

  scrolled() {
    const below = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight;
    this.follow.checked = below < 8 && this.atEnd;
    this.tell();
    if (this.box.scrollTop < NEAR && this.older) this.more("before");
    else if (below < NEAR && !this.atEnd) this.more("after");
  }

  async more(direction) {
    if (this.busy || !this.box.firstElementChild) return;
    this.busy = true;
    const turn = this.turn;
    try {
      const edge = direction === "before" ? this.box.firstElementChild : this.box.lastElementChild;
      const answer = await this.ask({ [direction]: edge.dataset.c });
      if (!answer || turn !== this.turn) return;
      if (direction === "before") this.prepend(answer); else this.extend(answer);
    } finally {
      this.busy = false;
    }
  }

  prepend(answer) {
    const height = this.box.scrollHeight, top = this.box.scrollTop;
    this.box.prepend(...answer.lines.map((line) => this.row(line)));
    this.older = answer.more;
    this.box.scrollTop = top + this.box.scrollHeight - height;
    while (this.box.childElementCount > KEPT) { this.box.lastElementChild.remove(); this.atEnd = false; }
    this.tell();
  }

  extend(answer) {
    this.append(answer.lines);
    this.atEnd = !answer.more && this.lastMissed <= this.lastCursor();
    if (this.atEnd) this.missed = 0;
    this.trimTop();
    this.tell();
  }

  async reload() {
    this.turn += 1;
    const turn = this.turn;
    this.waiting = [];
    const answer = await this.ask({ before: Number.MAX_SAFE_INTEGER });
    if (!answer || turn !== this.turn) return;
    this.box.replaceChildren();
    this.append(answer.lines);
    Object.assign(this, { older: answer.more, atEnd: true, missed: 0, lastMissed: 0 });
    this.follow.checked = true;
    this.box.scrollTop = this.box.scrollHeight;
    document.getElementById("log-download").href = `/jobs/${this.box.dataset.job}/log.txt?${this.query()}`;
    this.tell();
  }

  async ask(cursor) {
    const query = this.query();
    const said = { ...cursor, level: query.getAll("level").join(","), page: 1, limit: PAGE };
    for (const [name, value] of Object.entries(said)) query.set(name, value);
    const answer = await fetch(`/api/jobs/${this.box.dataset.job}/logs?${query}`).catch(() => null);
    if (!answer?.ok) return null;
    const { lines } = await answer.json();
    return { lines, more: lines.length === PAGE };
  }

  // --- which lines, and as what

  query() {
    return new URLSearchParams([...new FormData(this.form)].filter(([, value]) => value !== ""));
  }

  wants(line) {
    const said = new FormData(this.form);
    const levels = said.getAll("level"), rank = said.get("rank"), text = said.get("q");
    return (!levels.length || levels.includes(line.level)) && (rank === "" || Number(rank) === line.rank)
      && (!text || line.text.toLowerCase().includes(text.toLowerCase()));
  }

  append(lines) {
    this.box.append(...lines.map((line) => this.row(line)));
  }

  trimTop() {
    const top = this.box.scrollTop, height = this.box.scrollHeight;
    let removed = false;
    while (this.box.childElementCount > KEPT) { this.box.firstElementChild.remove(); removed = true; }
    if (removed) { this.older = true; this.box.scrollTop = top - (height - this.box.scrollHeight); }
  }

  lastCursor() {
    return Number(this.box.lastElementChild?.dataset.c ?? 0);
  }

  row(line) {
    const row = document.createElement("div");
    row.className = `${line.stream} ${line.level}`;
    row.dataset.c = line.cursor;
    const time = document.createElement("time");
    time.dateTime = new Date(line.time * 1000).toISOString();
    time.dataset.exact = "";
    time.textContent = time.dateTime.slice(11, 19);
    const who = line.rank < 0 ? `node ${line.node}` : `rank ${line.rank}`;
    row.append(time, part("rank " + (line.rank < 0 ? "own" : `r${line.rank % 8}`), who), this.text(line.text));
    return row;
  }

  text(said) {
    const sought = this.form.elements.q.value.toLowerCase();
    const at = sought ? said.toLowerCase().indexOf(sought) : -1;
    if (at < 0) return part("text", said);
    const shown = part("text", said.slice(0, at)), found = document.createElement("mark");
    found.textContent = said.slice(at, at + sought.length);
    shown.append(found, said.slice(at + sought.length));
    return shown;
  }
}

function part(name, text) {
  const made = document.createElement("span");
  made.className = name;
  made.textContent = text;
  return made;
}
