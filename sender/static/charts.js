// Interactive charts of metrics: one per name, a line per rank or per job. Colours come from the style
// sheet, so light and dark follow the page. The data are the same as the API's; news are asked for by cursor.

const MOST_POINTS = 1500; // of one line on the screen; each bucket keeps its lowest and highest value
const MOST_PAGES = 100;
const LOOK_MS = 5000; // where no stream tells of news
const KEPT = "trainforge.charts";
const hidden = new Set(["progress", "epoch", "step", "epochs", "total_epochs", "total_steps", "max_steps"]);

export async function showCharts(section) {
  const jobs = JSON.parse(section.dataset.jobs).map((job) => ({ ...job, cursor: 0, names: new Map() }));
  const board = new Board(section, jobs);
  document.addEventListener("trainforge:news", () => board.news());
  if ("going" in section.dataset) setInterval(() => board.news(), LOOK_MS);
  await board.news();
}

class Board {
  constructor(section, jobs) {
    this.section = section;
    this.jobs = jobs;
    this.plots = new Map();
    this.options = section.querySelector("#chart-options");
    this.ready = false;
    this.busy = false;
    restore(this.options);
    this.options.addEventListener("submit", (event) => event.preventDefault());
    this.options.addEventListener("input", () => { keep(this.options); this.draw(); });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  names() {
    const found = new Set(this.jobs.flatMap((job) => [...job.names.keys()]));
    return [...found].filter((name) => !hidden.has(name)).sort();
  }

  async open() {
    await import(this.section.dataset.library);
    this.ready = true;
    this.section.hidden = false;
    const values = document.getElementById("values");
    if (values) values.open = false;
    const along = this.options.elements.along;
    if (!this.options.dataset.restored) along.value = this.has("step") ? "step" : this.has("epoch") ? "epoch" : "time";
    this.draw();
  }

  has(axis) {
    return this.jobs.some((job) => [...job.names.values()].some((points) => points.some((one) => one[axis] !== null)));
  }

  async news() {
    if (this.busy) return;
    this.busy = true;
    try {
      if (!(await this.read())) return;
      if (this.ready) this.draw(); else if (this.names().length) await this.open();
    } finally {
      this.busy = false;
    }
  }

  async read() {
    const grown = await Promise.all(this.jobs.map(readJob));
    return grown.some(Boolean);
  }

  draw() {
    if (!this.ready) return;
    const said = { ranks: this.options.elements.ranks?.value ?? "first", along: this.options.elements.along.value,
      smoothing: Number(this.options.elements.smoothing.value), log: this.options.elements.log.checked };
    const colours = palette();
    for (const name of this.names()) {
      if (!this.plots.has(name)) this.plots.set(name, new Plot(this.section.querySelector(".plots"), name));
      this.plots.get(name).draw(this.lines(name, said), said, colours);
    }
  }

  lines(name, said) {
    if (this.jobs.length > 1) {
      return this.jobs.map((job, index) => ({ label: job.name, colour: index, points: first(job.names.get(name) ?? []) }));
    }
    const points = this.jobs[0].names.get(name) ?? [];
    if (said.ranks === "first") return [{ label: name, colour: 0, points: first(points) }];
    const ranks = [...new Set(points.map((one) => one.rank))].sort((a, b) => a - b);
    return ranks.map((rank) => ({ label: `rank ${rank}`, colour: rank, points: points.filter((one) => one.rank === rank) }));
  }
}

function first(points) {
  const lowest = Math.min(...new Set(points.map((one) => one.rank)));
  return points.filter((one) => one.rank === lowest);
}

async function readJob(job) {
  const before = job.cursor;
  for (let page = 0; page < MOST_PAGES; page += 1) {
    const answer = await fetch(`/api/jobs/${job.id}/metrics?after=${job.cursor}`);
    if (!answer.ok) break;
    const { points } = await answer.json();
    for (const point of points) take(job, point);
    if (!points.length) break;
    job.cursor = points.at(-1).cursor;
    if (points.length < 5000) break;
  }
  return job.cursor !== before;
}

function take(job, point) {
  job.start ??= point.time;
  for (const [name, value] of Object.entries(point.values)) {
    if (typeof value !== "number") continue;
    if (!job.names.has(name)) job.names.set(name, []);
    const points = job.names.get(name);
    points.push({ step: point.step, epoch: point.epoch, time: point.time - job.start, rank: point.rank,
      attempt: point.attempt, value });
  }
}

class Plot {
  constructor(parent, name) {
    this.name = name;
    this.range = null;
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    const title = document.createElement("strong");
    title.textContent = name;
    this.newest = document.createElement("span");
    this.newest.className = "num";
    caption.append(title, this.newest, button("PNG", `Save the chart of ${name} as PNG`, () => this.savePicture()),
      button("CSV", `Save the values of ${name} as CSV`, () => this.saveValues()));
    const frame = document.createElement("div");
    frame.className = "canvas";
    this.canvas = document.createElement("canvas");
    this.canvas.setAttribute("role", "img");
    frame.append(this.canvas);
    figure.append(caption, frame);
    parent.append(figure);
    this.zoomByDragging();
  }

  draw(lines, said, colours) {
    this.lines = lines.filter((line) => line.points.length);
    const datasets = [];
    for (const line of this.lines) {
      const colour = colours.lines[((line.colour % 8) + 8) % 8];
      const raw = course(line.points, said.along);
      const shown = said.smoothing ? smooth(raw, said.smoothing) : raw;
      const few = raw.length < 3 ? 3 : 0;
      datasets.push({ label: line.label, data: thin(shown), borderColor: colour, backgroundColor: colour,
        borderWidth: 1.5, pointRadius: few, pointHitRadius: 6 });
      if (said.smoothing) {
        datasets.push({ label: "", data: thin(raw), borderColor: `${colour}40`, borderWidth: 1, pointRadius: 0, pointHitRadius: 0 });
      }
    }
    const last = this.lines.map((line) => line.points.at(-1).value);
    this.newest.textContent = this.lines.length === 1 ? shorten(last[0]) : "";
    this.canvas.setAttribute("aria-label", `${this.name}: ${this.lines.map((line, index) => `${line.label} ${shorten(last[index])}`).join(", ")}`);
    const options = settings(said, colours, this.lines.length > 1, this.range);
    if (this.chart) {
      Object.assign(this.chart, { options });
      this.chart.data.datasets = datasets;
      this.chart.update("none");
    } else {
      this.chart = new globalThis.Chart(this.canvas, { type: "line", data: { datasets }, options, plugins: [this.marks()] });
    }
    this.again = () => this.draw(lines, said, colours);
  }

  marks() {
    return { id: "marks", beforeDraw: (chart) => {
      const { ctx, width, height, chartArea } = chart;
      ctx.save();
      ctx.fillStyle = getComputedStyle(this.canvas.closest("figure")).backgroundColor;
      ctx.fillRect(0, 0, width, height);
      if (this.drag) {
        ctx.fillStyle = "rgb(128 128 128 / 25%)";
        ctx.fillRect(Math.min(...this.drag), chartArea.top, Math.abs(this.drag[1] - this.drag[0]), chartArea.bottom - chartArea.top);
      }
      ctx.restore();
    } };
  }

  zoomByDragging() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => { this.drag = [event.offsetX, event.offsetX]; });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.drag) return;
      this.drag[1] = event.offsetX;
      this.chart.draw();
    });
    const end = () => {
      if (!this.drag) return;
      const [from, to] = this.drag.sort((a, b) => a - b);
      this.drag = null;
      if (to - from > 8) {
        const axis = this.chart.scales.x;
        this.range = [axis.getValueForPixel(from), axis.getValueForPixel(to)];
      }
      this.again();
    };
    canvas.addEventListener("pointerup", end);
    canvas.addEventListener("pointerleave", end);
    canvas.addEventListener("dblclick", () => { this.range = null; this.again(); });
  }

  savePicture() {
    this.canvas.toBlob((blob) => save(blob, `${this.name}.png`));
  }

  saveValues() {
    const quoted = (text) => `"${String(text).replaceAll('"', '""')}"`;
    const rows = this.lines.flatMap((line) => line.points.map((one) =>
      [quoted(line.label), one.attempt, one.rank, one.step ?? "", one.epoch ?? "", one.time, one.value].join(",")));
    save(new Blob([["line,attempt,rank,step,epoch,seconds,value", ...rows, ""].join("\n")], { type: "text/csv" }), `${this.name}.csv`);
  }
}

function settings(said, colours, several, range) {
  const line = { grid: { color: colours.line }, border: { color: colours.line }, ticks: { color: colours.dim, maxTicksLimit: 6, font: { size: 11 } } };
  const ends = range ? { min: range[0], max: range[1] } : {};
  return {
    animation: false, parsing: false, normalized: false, maintainAspectRatio: false, spanGaps: false,
    interaction: { mode: "nearest", axis: "x", intersect: false },
    scales: {
      x: { type: "linear", bounds: "data", ...line, ...ends, title: { display: true, text: said.along === "time" ? "seconds" : said.along, color: colours.dim, font: { size: 11 } } },
      y: { type: said.log ? "logarithmic" : "linear", ...line, ...(said.log ? {} : { afterDataLimits: room }) },
    },
    plugins: {
      legend: { display: several, position: "bottom", labels: { color: colours.ink, boxWidth: 10, boxHeight: 2, font: { size: 11 }, filter: (item) => item.text !== "" } },
      tooltip: { filter: (item) => item.dataset.label !== "", callbacks: {
        title: (items) => (items.length ? `${said.along} ${shorten(items[0].parsed.x)}` : ""),
        label: (item) => `${item.dataset.label} ${shorten(item.parsed.y)}` } },
    },
  };
}

// A margin above and below, which reaches below zero only where values do.
function room(axis) {
  const margin = 0.04 * (axis.max - axis.min);
  axis.min = axis.min >= 0 ? Math.max(0, axis.min - margin) : axis.min - margin;
  axis.max += margin;
}

// A line's points; an attempt that begins anew begins a new stroke.
function course(points, along) {
  const drawn = [];
  points.forEach((one, index) => {
    if (index && one.attempt !== points[index - 1].attempt) drawn.push({ x: NaN, y: NaN });
    drawn.push({ x: one[along] ?? (along === "time" ? one.time : index), y: one.value });
  });
  return drawn;
}

// An exponential mean without the pull of its beginning.
function smooth(points, weight) {
  let mean = 0, count = 0;
  return points.map(({ x, y }) => {
    if (Number.isNaN(y)) { mean = 0; count = 0; return { x, y }; }
    mean = mean * weight + (1 - weight) * y;
    count += 1;
    return { x, y: mean / (1 - weight ** count) };
  });
}

function thin(points) {
  if (points.length <= MOST_POINTS) return points;
  const size = Math.ceil(points.length / (MOST_POINTS / 2));
  const kept = [];
  for (let start = 0; start < points.length; start += size) {
    const bucket = points.slice(start, start + size);
    const low = bucket.reduce((a, b) => (b.y < a.y ? b : a)), high = bucket.reduce((a, b) => (b.y > a.y ? b : a));
    kept.push(...(low === high ? [low] : bucket.indexOf(low) < bucket.indexOf(high) ? [low, high] : [high, low]));
  }
  return kept;
}

function palette() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  return { lines: [...Array(8).keys()].map((index) => of(`--c${index}`)), ink: of("--ink"), dim: of("--dim"), line: of("--line") };
}

function button(text, label, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = "quiet";
  made.textContent = text;
  made.setAttribute("aria-label", label);
  made.addEventListener("click", act);
  return made;
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name.replace(/[^\w.-]+/g, "-");
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function shorten(value) {
  return Number.isFinite(value) ? String(Number(value.toPrecision(6))) : "";
}

function keep(form) {
  const { ranks, along, smoothing, log } = form.elements;
  const said = { ranks: ranks?.value, along: along.value, smoothing: smoothing.value, log: log.checked };
  try { localStorage.setItem(KEPT, JSON.stringify(said)); } catch { /* a browser that keeps nothing */ }
}

function restore(form) {
  let said = null;
  try { said = JSON.parse(localStorage.getItem(KEPT)); } catch { /* nothing was kept */ }
  if (!said) return;
  if (form.elements.ranks && said.ranks) form.elements.ranks.value = said.ranks;
  form.elements.smoothing.value = said.smoothing;
  form.elements.log.checked = said.log;
}
